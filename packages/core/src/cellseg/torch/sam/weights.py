"""Weights of Segment Anything from files of several kinds, and from publishers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.download.published import fetch_weights
from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit
from cellseg.files import sha256_of
from cellseg.specs import BaseWeights, PublishedModel
from cellseg.torch.reading import UnsafeWeightsError, read_file
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg.torch.sam.published import PUBLISHED

_Model = TypeVar("_Model", bound=SegmentAnything)

_EXPORT = (
    "If it is from a training with micro-SAM, and you trust it, export it once, in Python: after"
    " train_sam by micro_sam.util.export_custom_sam_model(checkpoint_path={path!r},"
    " model_type='vit_b', save_path='exported.pt', with_segmentation_decoder=True); after"
    " train_instance_segmentation by micro_sam.training.export_instance_segmentation_model("
    "{path!r}, 'exported.pt', model_type='vit_b'). Then give --checkpoint exported.pt."
)
_LORA = re.compile(r"(image_encoder\.blocks\.\d+\.attn\.qkv\.)w_a_linear_([qkv])\.weight")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with weights, on the CPU, set to evaluation."""

    model: SegmentAnything
    name: str
    """Of a published model; else of the one that it resembles most, as ``Architecture.closest``."""
    base: BaseWeights | None = None
    """Where the weights are from; None for random ones."""


@dataclass(frozen=True)
class States:
    """The tensors in a file, under the names that they have in their networks."""

    sam: Mapping[str, Tensor]
    """Of a ``segment_anything.modeling.Sam``."""
    decoder: Mapping[str, Tensor] | None = None
    """micro-SAM's ``decoder_state``, where there is one."""


def load_published(name: str, emit: Emit) -> Loaded:
    """A published model, downloaded if it is not there yet; without its decoder.

    Args:
        name: a key of ``PUBLISHED``.
        emit: gets the progress of a download.

    Raises:
        ConfigError: there is no such model, or its encoder is MobileSAM's, which is not installed.
        WeightsError: it cannot be downloaded, or is not as its checksum says.
    """
    published = find_published(name)
    path, base = fetch_weights(published, published.files[0], emit)
    states = replace(read_states(path), decoder=None)
    return Loaded(model=fill(SegmentAnything, states, path), name=name, base=base)


def load_checkpoint(path: Path) -> Loaded:
    """A model from a file, as ``read_states`` reads it; without its decoder.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: it is missing or damaged, is none of these, or could run code.
    """
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, not a file with weights.",
            hint="Give a file in it, such as weights.safetensors.",
        )
    model = fill(SegmentAnything, replace(read_states(path), decoder=None), path)
    return Loaded(model=model, name=model.architecture.closest, base=base_of(path))


def find_published(name: str) -> PublishedModel:
    """Where a model can be downloaded from.

    Raises:
        ConfigError: there is no such model, or its encoder is MobileSAM's, which is not installed.
    """
    if name not in PUBLISHED:
        raise ConfigError(
            f"There are no published weights of {name!r}.",
            hint=f"There are: {', '.join(PUBLISHED)}.",
        )
    if Architecture.named(name).tiny_vit:
        SegmentAnything(Architecture.named(name))  # before a download that would be of no use
    return PUBLISHED[name]


def base_of(path: Path) -> BaseWeights:
    """What a bundle says of a file of the user."""
    return BaseWeights(
        name=path.name, source=str(path), licence="as its source says", sha256=sha256_of(path)
    )


def read_tensors(path: Path) -> dict[str, Any]:
    """What a file holds, at the top; nothing in it is executed.

    Raises:
        WeightsError: it is missing or damaged, or holds more than tensors in dictionaries.
    """
    try:
        values = read_file(path)
    except UnsafeWeightsError as error:
        raise _refused(error) from error
    if not isinstance(values, Mapping):
        raise WeightsError(f"{path} holds no state dict, but a {type(values).__name__}.")
    return {str(name): value for name, value in values.items()}


def read_states(path: Path) -> States:
    """The tensors of a model; nothing in the file is executed.

    Args:
        path: as ``torch.save`` or safetensors write it, with the state dict of a Segment Anything
            model, with micro-SAM's ``{"model_state", "decoder_state"}``, or with tensors under
            ``sam.`` and ``decoder.``, as in a model of the microsam backend.

    Raises:
        WeightsError: it is missing or damaged, is none of these, or could run code.
    """
    values = read_tensors(path)
    decoder = values.get("decoder_state")
    if "model_state" in values:
        values = values["model_state"]
    elif any(name.startswith("decoder.") for name in values):
        decoder = {n[8:]: v for n, v in values.items() if n.startswith("decoder.")}
        values = {n: v for n, v in values.items() if not n.startswith("decoder.")}
    for state in (values, {} if decoder is None else decoder):
        if not isinstance(state, Mapping):
            raise WeightsError(f"{path} holds no state dict, but a {type(state).__name__}.")
    if any(str(name).startswith("encoder.") for name in values):
        raise WeightsError(
            f"{path} was trained for instance segmentation by micro-SAM, and is not exported.",
            hint=_EXPORT.format(path=str(path)),
        )
    sam = {str(n).removeprefix("sam."): v for n, v in values.items() if isinstance(v, Tensor)}
    return States(sam, decoder)


def fill(make: Callable[[Architecture], _Model], states: States, path: Path) -> _Model:
    """A model of the sizes that tensors have, with these tensors. LoRA in them is merged.

    Args:
        make: the class of the model.
        states: with a decoder only where the model has one under ``decoder.``.
        path: where the tensors are from, for messages.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: they are not those of such a model.
    """
    try:
        sam = _merged(states.sam)
        model = make(Architecture.of_state(sam, states.decoder))
        named = {f"sam.{name}": tensor for name, tensor in sam.items()}
        named |= {f"decoder.{name}": tensor for name, tensor in (states.decoder or {}).items()}
        model.load_state_dict(named)
    except (WeightsError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{path} holds no model of Segment Anything that can be used: {reason}",
            hint="Give the state dict of a Segment Anything model, or a model that micro-SAM or"
            " cellseg exported.",
        ) from error
    model.eval()
    return model


def _merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the updates of micro-SAM's LoRA (Hu et al., arXiv:2106.09685) as part of the
    weights of query, key and value that they belong to."""
    found = {name: match for name in state if (match := _LORA.fullmatch(name))}
    if not found:
        return dict(state)
    merged = {name.replace(".qkv_proj.", "."): tensor for name, tensor in state.items()}
    for name, match in found.items():
        layer, part = match[1], match[2]
        down, up = merged.pop(name), merged.pop(f"{layer}w_b_linear_{part}.weight", None)
        weight = merged.get(f"{layer}weight")
        if weight is None or up is None:
            raise WeightsError(f"the update {name} is not whole")
        update = torch.zeros_like(weight)
        update.chunk(3)["qkv".index(part)].copy_(up @ down)
        merged[f"{layer}weight"] = weight + update
    return merged


def _refused(error: UnsafeWeightsError) -> WeightsError:
    """Why a file is not read that holds more than tensors, and how micro-SAM makes one of them."""
    path = error.path
    if any(name.startswith(("torch_em.", "micro_sam.")) for name in error.held):
        listed = ", ".join(error.held[:3]) + (", ..." if len(error.held) > 3 else "")
        return WeightsError(
            f"{path} is a training checkpoint of micro-SAM, which is not read because that runs"
            f" code: it holds {listed}.",
            hint=_EXPORT.format(path=str(path)),
        )
    return WeightsError(str(error), hint=f"{error.hint} {_EXPORT.format(path=str(path))}")

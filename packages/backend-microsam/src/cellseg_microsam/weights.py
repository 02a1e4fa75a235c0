"""What a model starts from: published weights, a file, a model directory, or random numbers."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.bundle import Bundle
from cellseg.download import Fetched, Remote, Settings, fetch
from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.weights import FILE, seeded
from cellseg_microsam import description
from cellseg_microsam.architecture import Architecture
from cellseg_microsam.model import MicroSam
from cellseg_microsam.model_types import MODEL_TYPES, RANDOM
from cellseg_microsam.peft import apply_peft, merge_peft
from cellseg_microsam.published import PUBLISHED, models_folder
from cellseg_microsam.stored import load_model
from cellseg_microsam.unetr import UnetrDecoder

_DAMAGED = (OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError)
"""What torch raises when a file is damaged, beside its own error."""
_EXPORT = (
    "If it is from a training with micro-SAM, and you trust it, export it once, in Python: after"
    " train_sam by micro_sam.util.export_custom_sam_model(checkpoint_path={path!r},"
    " model_type='vit_b', save_path='exported.pt', with_segmentation_decoder=True); after"
    " train_instance_segmentation by micro_sam.training.export_instance_segmentation_model("
    "{path!r}, 'exported.pt', model_type='vit_b'). Then give --checkpoint exported.pt."
)
_LORA = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.qkv\.w_a_linear_q\.weight")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with weights, on the CPU, set to evaluation."""

    model: MicroSam
    model_type: str
    """The name of a published or random one; else what resembles it most: ``vit_b``."""
    base: BaseWeights | None = None
    """Where the weights are from; None for random ones."""
    decoder_base: BaseWeights | None = None
    """Where the decoder is from, if it came in a file of its own."""
    new_decoder: bool = False
    """Whether the decoder has random weights, while the rest has not."""
    answers: bool = True
    """Whether its answers to prompts mean something: they were trained, here or by others."""
    peft: dict[str, Any] | None = None
    """As in ``Description``."""

    @property
    def bases(self) -> tuple[BaseWeights, ...]:
        """For ``Trained.base_weights``."""
        return tuple(base for base in (self.base, self.decoder_base) if base is not None)


def start(
    *, model_type: str, checkpoint: Path | None, seed: int, with_decoder: bool, emit: Emit
) -> Loaded:
    """What training starts from.

    Args:
        model_type: one of ``MODEL_TYPES``; the checkpoint goes before it.
        checkpoint: as in ``load_checkpoint``, or None.
        seed: for what starts random.
        with_decoder: whether the model must have a decoder: one is added where there is none;
            without, one that is there is left out, as training would make it useless.
        emit: gets the progress of a download.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: they cannot be had or read.
    """
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
    elif model_type in RANDOM:
        loaded = Loaded(
            model=_random(Architecture.named(model_type), seed),
            model_type=model_type,
            answers=False,
        )
    else:
        loaded = load_published(model_type, emit)
    model = loaded.model
    if not with_decoder:
        model.decoder = None
        model.architecture = replace(model.architecture, unetr=None, transposed=False)
    elif model.decoder is None:
        widths = Architecture.named(loaded.model_type).unetr
        assert widths is not None
        with seeded(seed):
            model.decoder = UnetrDecoder(model.architecture.out_channels, widths).eval()
        model.architecture = replace(model.architecture, unetr=widths)
        loaded = replace(loaded, new_decoder=True)
    return loaded


def load_published(model_type: str, emit: Emit) -> Loaded:
    """A published model, downloaded if it is not there yet.

    Raises:
        ConfigError: there is no such model, or its encoder is MobileSAM's, which is not installed.
        WeightsError: a file cannot be downloaded, or is not as its checksum says.
    """
    if model_type not in PUBLISHED:
        raise ConfigError(
            f"There are no published weights of {model_type!r}.",
            hint=f"There are: {', '.join(PUBLISHED)}.",
        )
    published = PUBLISHED[model_type]
    if Architecture.named(model_type).tiny_vit:
        MicroSam(Architecture.named(model_type))  # before a download that would be of no use
    weights = _fetch(published.weights, emit)
    decoder = None if published.decoder is None else _fetch(published.decoder, emit)
    sam_state, _ = _states(read_tensors(weights.path), weights.path)
    decoder_state = None if decoder is None else read_tensors(decoder.path)

    def base(remote: Remote, fetched: Fetched) -> BaseWeights:
        return BaseWeights(
            name=remote.name, source=remote.url, licence=published.licence, sha256=fetched.sha256
        )

    return Loaded(
        model=_fill(weights.path, sam_state, decoder_state),
        model_type=model_type,
        base=base(published.weights, weights),
        decoder_base=None
        if decoder is None or published.decoder is None
        else base(published.decoder, decoder),
    )


def load_checkpoint(path: Path) -> Loaded:
    """A model from a file or a directory; nothing in it is executed.

    Args:
        path: a run of ``cellseg train``, or its model; or a file as ``torch.save`` or safetensors
            write it, with the state dict of a Segment Anything model, with micro-SAM's
            ``{"model_state", "decoder_state"}``, or with the tensors of a cellseg model. LoRA in
            it is merged.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: it is missing or damaged, is none of these, or could run code.
    """
    if path.is_dir():
        return _load_directory(path)
    sam_state, decoder_state = _states(read_tensors(path), path)
    model = _fill(path, sam_state, decoder_state)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    base = BaseWeights(
        name=path.name, source=str(path), licence="as its source says", sha256=digest
    )
    return Loaded(model=model, model_type=_resembles(model.architecture), base=base)


def read_tensors(path: Path) -> dict[str, Any]:
    """What a file holds, at the top; nothing in it is executed.

    Raises:
        WeightsError: it is missing or damaged, or holds more than tensors in dictionaries.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing.", hint="Give a file with weights.") from None
    except pickle.UnpicklingError as error:
        raise _refused(path) from error
    except (*_DAMAGED, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {_first_line(error)}") from error
    if not isinstance(values, Mapping):
        raise WeightsError(f"{path} holds no state dict, but a {type(values).__name__}.")
    return {str(name): value for name, value in values.items()}


def _refused(path: Path) -> WeightsError:
    """Why a file is not read that holds more than tensors."""
    from torch.serialization import get_unsafe_globals_in_checkpoint  # executes nothing

    try:
        held = sorted(get_unsafe_globals_in_checkpoint(path))
    except (*_DAMAGED, pickle.UnpicklingError):
        held = []
    if not held:
        return WeightsError(f"{path} is damaged, or was not written by torch.save.")
    listed = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
    if any(name.startswith(("torch_em.", "micro_sam.")) for name in held):
        return WeightsError(
            f"{path} is a training checkpoint of micro-SAM, which is not read because that runs"
            f" code: it holds {listed}.",
            hint=_EXPORT.format(path=str(path)),
        )
    return WeightsError(
        f"{path} holds more than tensors, which is not read because it could run code: {listed}.",
        hint="Save the state dict alone: torch.save(model.state_dict(), FILE). "
        + _EXPORT.format(path=str(path)),
    )


def _fetch(remote: Remote, emit: Emit) -> Fetched:
    folder = models_folder()
    try:
        return fetch(remote, folder, Settings(error=WeightsError), emit)
    except WeightsError as error:
        raise WeightsError(
            str(error),
            hint=f"Get {remote.url} by other means, and put it at {folder / remote.name}, in place"
            " of what may be there; or give a file with weights: --checkpoint FILE.",
        ) from error


def _load_directory(path: Path) -> Loaded:
    inside = path / "model"
    directory = inside if (inside / description.FILE).exists() else path
    if not (directory / description.FILE).exists():
        raise WeightsError(
            f"{path} holds no microsam model.",
            hint="Give a file with weights, a finished run of cellseg train, or its model.",
        )
    model, described = load_model(directory)
    sha256 = ""
    if (directory / "bundle.json").exists():
        sha256 = Bundle.load(directory).weights.get(FILE, "")
    base = BaseWeights(
        name=path.name, source=str(path), licence="as its source says", sha256=sha256
    )
    return Loaded(
        model=model,
        model_type=described.model_type,
        base=base,
        answers=described.prompts_trained or described.model_type not in RANDOM,
        peft=described.peft,
    )


def _states(values: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of Segment Anything and of the decoder, under their own names."""
    decoder = values.get("decoder_state")
    if "model_state" in values:
        values = values["model_state"]
    elif any(name.startswith("decoder.") for name in values):
        decoder = {n[8:]: v for n, v in values.items() if n.startswith("decoder.")}
        values = {n: v for n, v in values.items() if not n.startswith("decoder.")}
    if any(str(name).startswith("encoder.") for name in values):
        raise WeightsError(
            f"{path} was trained for instance segmentation by micro-SAM, and is not exported.",
            hint=_EXPORT.format(path=str(path)),
        )
    sam = {str(n).removeprefix("sam."): v for n, v in values.items() if isinstance(v, Tensor)}
    return sam, decoder


def _fill(
    path: Path, sam_state: dict[str, Tensor], decoder_state: Mapping[str, Tensor] | None
) -> MicroSam:
    """A model of the sizes that the tensors have."""
    blocks = {int(match[1]): name for name in sam_state if (match := _LORA.fullmatch(name))}
    plain = {name.replace(".qkv_proj.", "."): tensor for name, tensor in sam_state.items()}
    try:
        model = MicroSam(Architecture.of_state(plain, decoder_state))
        if blocks:
            rank = sam_state[next(iter(blocks.values()))].shape[0]
            apply_peft(model, method="lora", rank=rank, alpha=1.0, blocks=tuple(sorted(blocks)))
        model.sam.load_state_dict(sam_state)
        if model.decoder is not None and decoder_state is not None:
            model.decoder.load_state_dict(decoder_state)
    except (WeightsError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{path} is no model that can be started from: {reason}",
            hint="Give the state dict of a Segment Anything model, or a model that micro-SAM or"
            " cellseg exported.",
        ) from error
    if blocks:
        merge_peft(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def _random(architecture: Architecture, seed: int) -> MicroSam:
    with seeded(seed):
        return MicroSam(architecture).eval()


def _resembles(architecture: Architecture) -> str:
    """The name of the model with such an encoder; vit_b if there is none."""
    key = (architecture.tiny_vit, architecture.embed_dim, architecture.depth)
    for name in (*MODEL_TYPES[:4], *RANDOM):
        named = Architecture.named(name)
        if (named.tiny_vit, named.embed_dim, named.depth) == key:
            return name
    return "vit_b"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

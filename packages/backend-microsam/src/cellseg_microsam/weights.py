"""What a model starts from: published weights, a file, a model directory, or random numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.download.published import fetch_weights
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model_types import RANDOM
from cellseg.torch.sam.weights import (
    base_of,
    fill,
    find_published,
    read_states,
    read_tensors,
)
from cellseg.torch.weights import seeded
from cellseg_microsam.description import Description
from cellseg_microsam.model import MicroSam
from cellseg_microsam.stored import load_model
from cellseg_microsam.unetr import UnetrDecoder


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
    published = find_published(model_type)
    weights, *more = published.files
    path, base = fetch_weights(published, weights, emit)
    decoder = decoder_base = None
    for file in more:
        decoder_path, decoder_base = fetch_weights(published, file, emit)
        decoder = read_tensors(decoder_path)
    states = replace(read_states(path), decoder=decoder)
    return Loaded(
        model=fill(MicroSam, states, path),
        model_type=model_type,
        base=base,
        decoder_base=decoder_base,
    )


def load_checkpoint(path: Path) -> Loaded:
    """A model from a file or a directory; nothing in it is executed.

    Args:
        path: a run of ``cellseg train``, or its model; or a file as
            ``cellseg.torch.sam.weights.read_states`` reads it. LoRA in a file is merged.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: it is missing or damaged, is none of these, or could run code.
    """
    if path.is_dir():
        return _load_directory(path)
    model = fill(MicroSam, read_states(path), path)
    return Loaded(model=model, model_type=model.architecture.closest, base=base_of(path))


def _load_directory(path: Path) -> Loaded:
    directory, base = Description.find(path)
    model, described = load_model(directory)
    return Loaded(
        model=model,
        model_type=described.model_type,
        base=base,
        answers=described.prompts_trained or described.model_type not in RANDOM,
        peft=described.peft,
    )


def _random(architecture: Architecture, seed: int) -> MicroSam:
    with seeded(seed):
        return MicroSam(architecture).eval()

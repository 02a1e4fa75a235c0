"""What training starts from: published weights, a file, a model directory, or random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError, WeightsError
from cellseg.events import Emit, Note
from cellseg.specs import BaseWeights
from cellseg.torch.sam import weights as sam_weights
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg.torch.sam.model_types import RANDOM, backbone
from cellseg.torch.weights import seeded
from cellseg_cellsam.description import Description
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.sizes import DetectorSizes
from cellseg_cellsam.stored import load_model

LICENCE = (
    "CellSAM's weights: modified Apache licence, for non-commercial academic use only"
    " (https://github.com/vanvalenlab/cellSAM)"
)
"""Of the published CellSAM, which is never downloaded."""
_CELLSAM = "model.image_encoder."
_BESIDE = ("cellfinder.", "model_cp.")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model to train, on the CPU, set to evaluation."""

    model: CellSam
    model_type: str
    """The name of a published or random one; else of the one that it resembles most."""
    base: BaseWeights | None = None
    """Where the weights are from; None for random ones."""
    boxes_trained: bool = False
    """Whether its detector has learned; else it is random."""
    masks_trained: bool = False
    """Whether its encoder and its answers to boxes have learned; else they are random."""
    licence: str = ""
    """Of the weights, where it binds what is trained from them: CellSAM's own."""


def start(options: CellSamOptions, seed: int, emit: Emit) -> Start:
    """What a training starts from; see ``CellSamOptions.model_type`` and ``checkpoint``.

    Args:
        options: of the training.
        seed: for what starts random.
        emit: gets the progress of a download, and notes.

    Raises:
        ConfigError: the checkpoint holds another model than the options name, or the encoder is
            MobileSAM's, which is not installed.
        WeightsError: weights cannot be had or read.
    """
    path, licence = options.checkpoint, ""
    if path is None and options.model_type in RANDOM:
        architecture = replace(Architecture.named(options.model_type), unetr=None)
        sizes = _sizes(options.model_type, options.queries)
        with seeded(seed):
            model = CellSam(architecture, sizes, draws_boxes=True).eval()
        return Start(model=model, model_type=options.model_type)
    if path is None:
        loaded = sam_weights.load_published(options.model_type, emit)
    elif path.is_dir():
        return _named(_of_directory(path, options, emit), options)
    else:
        loaded, licence = _of_file(path, emit)
    model = _with_detector(loaded.model, _sizes(loaded.name, options.queries), seed)
    if options.stage != "2":
        emit(Note("The detector starts from random weights: this model has none."))
    started = Start(
        model=model,
        model_type=loaded.name,
        base=loaded.base,
        masks_trained=True,
        licence=licence,
    )
    return started if path is None else _named(started, options)


def _sizes(model_type: str, queries: int | None) -> DetectorSizes:
    sizes = DetectorSizes.named(model_type)
    return sizes if queries is None else replace(sizes, queries=queries)


def _with_detector(segmenting: SegmentAnything, sizes: DetectorSizes, seed: int) -> CellSam:
    """A model with the weights of Segment Anything, and a detector that is random."""
    with seeded(seed):
        model = CellSam(segmenting.architecture, sizes)
    model.sam = segmenting.sam
    model.eval()
    return model


def _of_file(path: Path, emit: Emit) -> tuple[sam_weights.Loaded, str]:
    """Segment Anything in a file, as all who publish it write it, and the licence that binds what
    is trained from it; CellSAM's detector is another."""
    values = sam_weights.read_tensors(path)
    if any(str(name).startswith("detector.") for name in values):
        raise WeightsError(
            f"{path} holds the weights of cellsam without what describes them.",
            hint=f"Give the folder that they were written to: --checkpoint {path.parent}",
        )
    if not any(str(name).startswith(_CELLSAM) for name in values):
        return sam_weights.load_checkpoint(path), ""
    states = sam_weights.States(_of_cellsam(values))
    model = sam_weights.fill(SegmentAnything, states, path)
    beside = any(str(name).startswith(_BESIDE) for name in values)
    base = replace(sam_weights.base_of(path), licence=LICENCE)
    emit(Note(f"{path.name}: {LICENCE}. What is trained from them is bound by it too."))
    if beside:
        emit(Note(f"{path.name}: only the parts of Segment Anything are taken, not the detector."))
    return sam_weights.Loaded(model=model, name=model.architecture.closest, base=base), LICENCE


def _of_cellsam(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {str(name): tensor for name, tensor in values.items()}
    return {n.removeprefix("model."): t for n, t in named.items() if n.startswith("model.")}


def _of_directory(path: Path, options: CellSamOptions, emit: Emit) -> Start:
    """The model in a run, in a model directory, or of a stage of a run; it starts as it ended."""
    directory, base = Description.find(path)
    model, described = load_model(directory)
    if options.queries not in (None, model.sizes.queries):
        raise ConfigError(
            f"--queries {options.queries}: the detector in {path} has {model.sizes.queries}.",
            hint="Leave --queries out, or start from a model without a detector.",
        )
    if licence := described.licence:
        base = replace(base, licence=licence)
        emit(Note(f"{path.name} was trained from {licence}. What is trained from it is bound too."))
    return Start(
        model=model,
        model_type=described.model_type,
        base=base,
        boxes_trained=described.boxes_trained,
        masks_trained=described.masks_trained,
        licence=described.licence,
    )


def _named(started: Start, options: CellSamOptions) -> Start:
    """What a checkpoint holds, if it is what the user says it is.

    Raises:
        ConfigError: it holds another architecture.
    """
    named = options.model_type
    default = CellSamOptions.model_fields["model_type"].default
    if named != default and backbone(started.model_type) != backbone(named):
        raise ConfigError(
            f"--checkpoint {options.checkpoint}: holds a {started.model_type}, not a {named}.",
            hint="Leave --model-type out: the checkpoint says itself how large the model is.",
        )
    return started

"""What a model starts from: published weights, a file, a model directory, or random numbers."""

from __future__ import annotations

from pathlib import Path

from cellseg.errors import WeightsError
from cellseg.events import Emit
from cellseg.specs import BaseWeights
from cellseg.torch.sam.weights import base_of, read_tensors
from cellseg.torch.sam2.model import build
from cellseg.torch.sam2.sizes import RANDOM
from cellseg.torch.sam2.weights import fill, holds_sam2, load_published, size_of, tensors_of
from cellseg.torch.weights import seeded
from cellseg_cellsam2.description import Description
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.stored import load


def make_model(
    model_type: str, resolution: int, seed: int, checkpoint: Path | None, emit: Emit
) -> tuple[CellSam2, tuple[BaseWeights, ...]]:
    """A model, on the CPU, set to training, and where its weights are from.

    Args:
        model_type: one of ``cellseg.torch.sam2.sizes.SIZES``; the checkpoint goes before it.
        resolution: pixels along a side of the square, a multiple of 32.
        seed: for what starts random: all of it, or what SAM 2 does not have.
        checkpoint: a run of ``cellseg train``, or its model; or a file with the weights of SAM 2.1,
            as Meta publishes them or ``cellseg export`` writes them; or None.
        emit: gets the progress of a download.

    Raises:
        ConfigError: there is no such model, the resolution does not suit, or the package sam2 is
            not installed.
        WeightsError: weights cannot be had or read.
    """
    if checkpoint is not None and checkpoint.is_dir():
        return _of_directory(checkpoint, resolution)
    bases: tuple[BaseWeights, ...] = ()
    if checkpoint is not None:
        values = read_tensors(checkpoint)
        if not holds_sam2(values):
            raise WeightsError(
                f"{checkpoint} holds no SAM 2.",
                hint="Give a file with the weights of SAM 2.1, such as sam2.1_hiera_tiny.pt, or a"
                " run of cellseg train.",
            )
        tensors = tensors_of(values)
        model_type = size_of(tensors, checkpoint)
        with seeded(seed):
            sam = build(model_type, resolution)
        fill(sam, tensors, str(checkpoint))
        bases = (base_of(checkpoint),)
    elif model_type in RANDOM:
        with seeded(seed):
            sam = build(model_type, resolution)
    else:
        sam, base = load_published(model_type, emit, resolution)
        bases = (base,)
    with seeded(seed + 1):
        return CellSam2(sam, model_type), bases


def _of_directory(path: Path, resolution: int) -> tuple[CellSam2, tuple[BaseWeights, ...]]:
    """The model in a run or a model directory; it starts as it ended there."""
    directory, base = Description.find(path)
    model, _ = load(directory, side=resolution)
    return model.train(), (base,)

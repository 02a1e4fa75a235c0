"""A model directory: the weights, and what they are.

model/
    weights.safetensors       tensors under sam. and detector.
    cellsam.json              see ``description``
"""

from __future__ import annotations

from pathlib import Path

from cellseg.torch.reading import built_for
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.weights import FILE, load_weights, save_weights
from cellseg_cellsam.description import Description
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.sizes import DetectorSizes


def save_model(model: CellSam, description: Description, directory: Path) -> None:
    """Write a model.

    Args:
        model: low-rank updates in it are merged.
        description: of it.
        directory: of the model.

    Raises:
        StorageError: the directory cannot be written.
    """
    description.save(directory)
    save_weights(model, directory / FILE)


def load_model(directory: Path) -> tuple[CellSam, Description]:
    """Read what ``save_model`` wrote; the model is on the CPU, and set to evaluation.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: a file is missing or damaged, or the two do not belong together.
    """
    description = Description.load(directory)
    with built_for(directory / FILE):
        model = CellSam(
            Architecture.of(description.architecture),
            DetectorSizes.of(description.detector),
            description.draws_boxes,
        )
    load_weights(model, directory / FILE)
    return model.eval(), description

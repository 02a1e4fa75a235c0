"""A model directory: the weights, and what they are.

model/
    weights.safetensors       tensors under sam., division_token., division_head. and heat.
    cellsam2.json             see ``description``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # noqa: TID253

from cellseg.torch.lora import merged_state
from cellseg.torch.reading import built_for
from cellseg.torch.sam2.model import build
from cellseg.torch.weights import FILE, load_weights, save_tensors
from cellseg_cellsam2.description import Description
from cellseg_cellsam2.model import CellSam2


def save(model: CellSam2, folder: Path, **description: Any) -> None:
    """Write a model. Low-rank updates become part of the weights that are written; the model keeps
    them.

    Args:
        model: with or without updates.
        folder: of the model.
        description: fields of ``Description`` but size and side, such as ``scale``.

    Raises:
        StorageError: the folder cannot be written.
    """
    Description(size=model.size, side=model.side, **description).save(folder)
    save_tensors(merged_state(model), folder / FILE)


def load(
    folder: Path, device: torch.device | str = "cpu", *, side: int | None = None
) -> tuple[CellSam2, Description]:
    """Read what ``save`` wrote; the model is set to evaluation.

    Args:
        folder: of the model.
        device: where it goes.
        side: pixels along a side of the square; None for that of the training.

    Raises:
        ConfigError: the package sam2 is not installed.
        WeightsError: a file is missing or damaged, or the two do not belong together.
    """
    description = Description.load(folder)
    with built_for(folder / FILE):
        model = CellSam2(build(description.size, side or description.side), description.size)
    load_weights(model, folder / FILE)
    return model.eval().to(device), description

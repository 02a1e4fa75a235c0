"""Options of predicting with cellsam; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cellseg.options import Options


class CellSamPredictOptions(Options):
    """What ``cellseg predict --backend cellsam`` takes."""

    panels: ClassVar = {
        "Computing": ("precision", "compile", "boxes_per_batch"),
        "Boxes": ("box_threshold", "box_nms"),
        "Masks": (
            "mask_threshold",
            "iou_threshold",
            "mask_nms",
            "max_covered",
            "min_size",
            "keep_holes",
        ),
    }

    precision: Literal["32-true", "bf16", "fp16"] = "32-true"
    """Arithmetic of the image encoder; fp16 needs a GPU."""
    compile: bool = False
    """Compile the image encoder with torch.compile; pays for many tiles of one size."""
    boxes_per_batch: int | None = Field(None, ge=1)
    """Boxes that are segmented at once, which bounds the memory; what is found does not depend on
    it. By default as many as pay on a CPU, and as many as fit on a GPU."""
    box_threshold: float = Field(0.4, ge=0, le=1)
    """Boxes whose score is below this are no cells. What suits a model changes with training:
    training finds it on the validation images and stores it with the model, and cellseg calibrate
    finds it on any labelled images."""
    box_nms: float = Field(0.7, ge=0, le=1)
    """Of two boxes that overlap by more than this IoU, the one with the better score stays."""
    mask_threshold: float = Field(0.5, gt=0, lt=1)
    """Pixels that are more probable than this belong to the cell of a box."""
    iou_threshold: float = Field(0.0, ge=0, le=1)
    """Masks whose IoU with the truth the model itself estimates below this are left out; with 0,
    none are."""
    mask_nms: float = Field(0.5, ge=0, le=1)
    """Of two masks that overlap by more than this IoU, the one with the better score stays."""
    max_covered: float = Field(0.5, ge=0, le=1)
    """Masks of which better ones cover more than this part are left out: what would remain of them
    is no cell, but the rim of one."""
    min_size: int = Field(25, ge=0)
    """Objects with fewer pixels are left out."""
    keep_holes: bool = False
    """Leave holes in objects; otherwise those that hold no other object are filled."""

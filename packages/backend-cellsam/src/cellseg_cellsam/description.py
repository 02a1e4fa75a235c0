"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cellseg.torch.description import ModelDescription
from cellseg.torch.sam.architecture import Architecture
from cellseg_cellsam.sizes import DetectorSizes


@dataclass(frozen=True, kw_only=True)
class Description(ModelDescription):
    """What loading a model needs to know, and the weights do not say."""

    BACKEND: ClassVar = "cellsam"

    model_type: str
    """What training started from, such as ``vit_b``."""
    architecture: dict[str, Any]
    """The sizes of Segment Anything, as ``Architecture.to_dict`` gives them."""
    detector: dict[str, Any]
    """Those of the detector, as ``DetectorSizes.to_dict`` gives them."""
    field: int = 0
    """Side of a training patch in pixels of the image; 0 where none is known."""
    draws_boxes: bool = False
    """Whether the mask decoder gets drawings of the boxes; see ``CellSam``."""
    boxes_trained: bool = False
    """Whether the detector has learned, here or before; else it is random."""
    masks_trained: bool = False
    """Whether masks of boxes mean something: the model has learned them, here, before or as a
    published one; else they are random."""
    licence: str = ""
    """Of the weights that training started from, where it binds what is trained from them."""

    def check(self, file: Path) -> None:
        """As of any description; the sizes must be those of an architecture and of a detector."""
        Architecture.of(self.architecture)
        DetectorSizes.of(self.detector)


FILE = Description.file()

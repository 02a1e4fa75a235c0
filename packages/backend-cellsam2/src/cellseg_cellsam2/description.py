"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cellseg.errors import WeightsError
from cellseg.torch.description import ModelDescription
from cellseg.torch.sam2.sizes import SIZES


@dataclass(frozen=True, kw_only=True)
class Description(ModelDescription):
    """What loading a model needs to know, and the weights do not say."""

    BACKEND: ClassVar = "cellsam2"

    size: str
    """One of ``cellseg.torch.sam2.sizes.SIZES``."""
    side: int
    """Pixels along a side of the square that it was trained with."""
    scale: float = 1.0
    """Pixels of the square for a pixel of the image, in training."""
    num_frames: int = 1
    """Frames of the clips that it was trained with; with 1, it has learned no tracking."""
    use_lora: bool = False
    """Whether low-rank updates learned, which are part of the weights now."""

    def check(self, file: Path) -> None:
        """As of any description; the size must be one of SAM 2, and the scale above 0.

        Raises:
            WeightsError: it is not.
        """
        if self.size not in SIZES or self.scale <= 0:
            raise WeightsError(f"{file} describes no model that this cellseg knows.")


FILE = Description.file()

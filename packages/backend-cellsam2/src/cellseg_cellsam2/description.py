"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.torch.sam2.sizes import SIZES

FILE = "cellsam2.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What loading a model needs to know, and the weights do not say."""

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

    def save(self, directory: Path) -> None:
        """Write ``cellsam2.json`` into the model's directory."""
        write_atomic(directory / FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Description:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        file = directory / FILE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            description = cls(**values)
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}",
                hint="Give the directory of a cellsam2 model of this version.",
            ) from error
        kinds = {"str": str, "int": int, "float": (int, float), "bool": bool}
        for each in fields(cls):
            if not isinstance(getattr(description, each.name), kinds[str(each.type)]):
                raise WeightsError(f"{file}: {each.name} is no {each.type}.")
        if description.size not in SIZES or description.scale <= 0:
            raise WeightsError(f"{file} describes no model that this cellseg knows.")
        return description

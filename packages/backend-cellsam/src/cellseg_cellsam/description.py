"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.torch.sam.architecture import Architecture
from cellseg_cellsam.sizes import DetectorSizes

FILE = "cellsam.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What loading a model needs to know, and the weights do not say."""

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

    def save(self, directory: Path) -> None:
        """Write ``cellsam.json`` into the model's directory."""
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
            Architecture.of(description.architecture)
            DetectorSizes.of(description.detector)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}",
                hint="Give the directory of a cellsam model of this version.",
            ) from error
        kinds = {"str": str, "int": int, "bool": bool}
        for each in fields(cls):
            kind = kinds.get(str(each.type))
            if kind is not None and not isinstance(getattr(description, each.name), kind):
                raise WeightsError(f"{file}: {each.name} is no {kind.__name__}.")
        return description

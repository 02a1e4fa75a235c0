"""What a model directory says beside the network: the classes, and the voxels.

Light: numpy and torch are not imported.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.limits import MOST_JSON, read_bytes

FILE = "vista.json"


@dataclass(frozen=True)
class Description:
    """What predicting needs to know, and the weights do not say."""

    classes: tuple[str, ...] = ("background", "cell")
    """By number, background first."""
    spacing: tuple[float, ...] = ()
    """Voxel size of the training images along each axis of the network: kernels, strides and
    thresholds were chosen for it. Empty where an earlier version wrote the file."""

    def save(self, directory: Path) -> None:
        """Write ``vista.json`` into the model's directory."""
        write_atomic(directory / FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Description:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        file = directory / FILE
        try:
            values = json.loads(read_bytes(file, MOST_JSON, WeightsError))
            classes, spacing = values["classes"], tuple(map(float, values.get("spacing", ())))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}", hint="Give the directory of a vista model."
            ) from error
        if (
            not isinstance(classes, list)
            or len(classes) < 2
            or not all(isinstance(name, str) for name in classes)
        ):
            raise WeightsError(f"{file} does not name the classes, background first: {classes!r}")
        return cls(tuple(classes), spacing)

"""What a trained model says about itself, so that predicting needs nothing but the model.

The file is ``bundle.json``, beside the weights that the trainer left. Reading it runs no code
that it names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellseg.data import Spacing, Tiling
from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.normalise import Normaliser
from cellseg.specs import BaseWeights

FILE = "bundle.json"
FORMAT = 1


class Bundle(BaseModel):
    """The description of a trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    """Version of this file's layout."""
    backend: str
    """Whose predictor loads it."""
    backend_version: str = ""
    cellseg_version: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    """The trainer's options."""
    predict: dict[str, Any] = Field(default_factory=dict)
    """Predictor options found on the validation data: the defaults of this model."""
    channels: int = 1
    """How many channels an image must have, after the selection."""
    channel_names: tuple[str, ...] = ()
    channel_selection: str | None = None
    """Which channels training read, in the form of ``--channels``; None means all."""
    volumetric: bool = False
    """Whether it was trained on volumes."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Voxel size of the training images in micrometres, ``(z, y, x)``."""
    normaliser: Normaliser = Field(default_factory=Normaliser)
    tiling: Tiling | None = None
    """How it likes its tiles; None means as the predictor's card says."""
    classes: tuple[str, ...] = ()
    base_weights: tuple[BaseWeights, ...] = ()
    """What training started from, with checksum and licence."""
    trained_on: tuple[str, ...] = ()
    """Names of the training images."""
    weights: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each other file of the model, by name."""

    def save(self, directory: Path) -> None:
        """Write ``bundle.json`` into the model's directory."""
        write_atomic(directory / FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Bundle:
        """Read the ``bundle.json`` of a model.

        Raises:
            DataError: there is none, it is damaged, or a newer cellseg wrote it.
        """
        file = directory / FILE
        try:
            bundle = cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{directory} is no trained model: it has no {FILE}.",
                hint="Give the run directory of cellseg train, or its model/ directory.",
            ) from None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{file} cannot be read: {reason}") from error
        if bundle.format > FORMAT:
            raise DataError(
                f"{file} was written by cellseg {bundle.cellseg_version}, which is newer.",
                hint="Update cellseg to use this model.",
            )
        return bundle

    @classmethod
    def find(cls, path: Path) -> tuple[Path, Bundle]:
        """The model directory and bundle at ``path``: a run directory, or a model itself."""
        inside = path / "model"
        directory = inside if (inside / FILE).exists() else path
        if not directory.exists():
            raise DataError(f"There is no model at {path}.")
        if not (directory / FILE).exists() and (path / "run.json").exists():
            raise DataError(
                f"The run {path} has not finished: it has no model yet.",
                hint=f"Finish it: cellseg resume {path}",
            )
        return directory, cls.load(directory)

"""What a trained model says about itself, so that predicting needs nothing but the model.

The file is ``bundle.json``, beside the weights that the trainer left. Reading it runs no code
that it names; links that lead out of the directory, and weights that are not those of the training,
are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cellseg.data import Spacing, Tiling
from cellseg.errors import CellsegError, DataError, WeightsError
from cellseg.files import sha256_of, write_atomic
from cellseg.limits import MOST_JSON, links_out, read_bytes
from cellseg.normalise import Normaliser
from cellseg.specs import BaseWeights

FILE = "bundle.json"
FORMAT = 1
_HINT = "Copy the whole model directory again, or train again."
_LARGEST_TILE = 1 << 20
_BACKEND = re.compile(r"\w[\w.-]{0,99}")


def _file_name(name: str) -> str:
    """A name of a file in the model's directory, not of one elsewhere."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    unsafe = path.is_absolute() or windows.drive or windows.root or {"\\", "\0"} & set(name)
    if unsafe or ".." in path.parts or not path.parts:
        raise ValueError(f"{name[:80]!r} is no file in the model's directory")
    return name


def _backend(name: str) -> str:
    if not _BACKEND.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a backend")
    return name


def _spacing(spacing: Spacing) -> Spacing:
    if min(spacing) <= 0:
        raise ValueError(f"a voxel of {spacing} has no size")
    return spacing


def _tiling(tiling: Tiling) -> Tiling:
    if max(*tiling.core, *tiling.halo) > _LARGEST_TILE:
        raise ValueError(f"tiles of {tiling.core} with a halo of {tiling.halo} are too large")
    return tiling


class Bundle(BaseModel):
    """The description of a trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = Field(FORMAT, ge=1)
    """Version of this file's layout."""
    backend: Annotated[str, AfterValidator(_backend)]
    """Whose predictor loads it."""
    backend_version: str = ""
    cellseg_version: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    """The trainer's options."""
    predict: dict[str, Any] = Field(default_factory=dict)
    """Predictor options found on the validation data: the defaults of this model."""
    channels: int = Field(1, ge=1)
    """How many channels an image must have, after the selection."""
    channel_names: tuple[str, ...] = ()
    channel_selection: str | None = None
    """Which channels training read, in the form of ``--channels``; None means all."""
    volumetric: bool = False
    """Whether it was trained on volumes."""
    spacing: Annotated[Spacing, AfterValidator(_spacing)] = (1.0, 1.0, 1.0)
    """Voxel size of the training images in micrometres, ``(z, y, x)``."""
    normaliser: Normaliser = Field(default_factory=Normaliser)
    tiling: Annotated[Tiling, AfterValidator(_tiling)] | None = None
    """How it likes its tiles; None means as the predictor's card says."""
    classes: tuple[str, ...] = ()
    base_weights: tuple[BaseWeights, ...] = ()
    """What training started from, with checksum and licence."""
    trained_on: tuple[str, ...] = ()
    """Names of the training images."""
    weights: dict[Annotated[str, AfterValidator(_file_name)], str] = Field(default_factory=dict)
    """SHA-256 of each other file of the model, by name."""

    def save(self, directory: Path) -> None:
        """Write ``bundle.json`` into the model's directory."""
        write_atomic(directory / FILE, self.model_dump_json(indent=2) + "\n", durable=True)

    @classmethod
    def load(cls, directory: Path) -> Bundle:
        """Read the ``bundle.json`` of a model.

        Raises:
            DataError: there is none, it is damaged, a newer cellseg wrote it, or a link in the
                directory leads out of it.
        """
        file = directory / FILE
        for link in links_out(directory):
            raise DataError(
                f"{link}: is a symbolic link that leads out of the model's directory.",
                hint="Copy what it leads to in its place, if you know what that is.",
            )
        try:
            bundle = cls.model_validate_json(read_bytes(file, MOST_JSON))
        except FileNotFoundError:
            raise DataError(
                f"{directory} is no trained model: it has no {FILE}.",
                hint="Give the run directory of cellseg train, or its model/ directory.",
            ) from None
        except CellsegError as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        except ValidationError as error:
            raise DataError(f"{file} cannot be read: {_reason(error)}") from error
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error
        if bundle.format > FORMAT:
            raise DataError(
                f"{file} was written by cellseg {bundle.cellseg_version}, which is newer.",
                hint="Update cellseg to use this model.",
            )
        return bundle

    def verify(self, directory: Path) -> None:
        """Compare the files of the model with their checksums; each file once in a process.

        Raises:
            WeightsError: one is missing, or has other content than after its training.
        """
        for name, expected in self.weights.items():
            file = directory / name
            try:
                status = file.stat()
                found = _digest(file, status.st_size, status.st_mtime_ns, status.st_ino)
            except FileNotFoundError:
                raise WeightsError(f"{file} is missing.", hint=_HINT) from None
            except OSError as error:
                raise WeightsError(f"{file} cannot be read: {error.strerror}.") from error
            if found != expected.lower():
                raise WeightsError(
                    f"{file} is not what the training wrote: its SHA-256 is {found[:12]}..., and "
                    f"{FILE} says {expected[:12]}...; it is damaged, or was changed.",
                    hint=_HINT,
                )

    @classmethod
    def load_verified(cls, directory: Path) -> Bundle:
        """The bundle of a model whose files are what their checksums say.

        Raises:
            DataError: as of ``load``.
            WeightsError: as of ``verify``.
        """
        bundle = cls.load(directory)
        bundle.verify(directory)
        return bundle

    @classmethod
    def find(cls, path: Path) -> tuple[Path, Bundle]:
        """The model directory and bundle at ``path``: a run directory, or a model itself.

        Raises:
            DataError: there is none, or as of ``load``.
            WeightsError: as of ``verify``.
        """
        inside = path / "model"
        directory = inside if (inside / FILE).exists() else path
        if not directory.exists():
            raise DataError(f"There is no model at {path}.")
        if not (directory / FILE).exists() and (path / "run.json").exists():
            raise DataError(
                f"The run {path} has not finished: it has no model yet.",
                hint=f"Finish it: cellseg resume {path}",
            )
        return directory, cls.load_verified(directory)


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, and where; nothing of what the file holds."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{place}: {message}." if place else f"{message}."


# The numbers make a file that was written anew a new one.
@lru_cache(maxsize=256)
def _digest(file: Path, size: int, modified: int, inode: int) -> str:
    return sha256_of(file)

"""What is done, image by image: one file each, until all of it becomes the tables."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from cellseg.embeddings.run import Embedded
from cellseg.errors import StorageError
from cellseg.files import replacing

_ARRAYS = tuple(field.name for field in fields(Embedded) if field.name != "found")


class Parts:
    """A folder of them, by the numbers of their units."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, number: int, found: Embedded) -> None:
        """Keep a unit; neither a kill nor a power cut can damage the file or cut it short.

        Raises:
            StorageError: the disk is full, or permission is missing.
        """
        with replacing(self._path(number)) as temporary, temporary.open("wb") as file:
            arrays = {name: getattr(found, name) for name in _ARRAYS}
            np.savez(file, found=found.found, **arrays)

    def load(self, number: int) -> Embedded:
        """The unit again.

        Raises:
            StorageError: the file is gone or damaged.
        """
        path = self._path(number)
        try:
            with np.load(path) as held:
                arrays = {name: held[name] for name in _ARRAYS}
                return Embedded(found=int(held["found"]), **arrays)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise StorageError(
                f"{path} cannot be read: {error}", hint="Start anew with --overwrite."
            ) from error

    def has(self, number: int) -> bool:
        """Whether the unit is done."""
        return self._path(number).is_file()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"

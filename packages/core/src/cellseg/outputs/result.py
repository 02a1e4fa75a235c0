"""What is written: the labels of one image or movie, with what is known about each object."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, LazyArray, Spacing
from cellseg.engine.plan import Box
from cellseg.engine.tile import Objects
from cellseg.errors import CellsegError
from cellseg.files import replacing
from cellseg.tracks import Lineage

Block: TypeAlias = NDArray[np.float32]


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Result:
    """The labels of one image, or of a movie frame by frame."""

    name: str
    frames: Sequence[LazyArray]
    """Each ``(z, y, x)`` uint32, of one shape; ids from 1 without gaps, unless they are those of
    tracks."""
    objects: Sequence[Objects]
    """Of each frame, in the order of their ids."""
    movie: bool = False
    planes: bool = False
    """Whether each plane was segmented by itself."""
    block: ZYX = (1, 1024, 1024)
    """Blocks that are quick to read, ``(z, y, x)``."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Micrometres, ``(z, y, x)``."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by index."""
    probabilities: Sequence[LazyArray] = ()
    """Of each frame, ``(k, z, y, x)``, 0 to 1: the probability of each class; empty where they are
    not asked for."""
    ids: Sequence[NDArray[np.uint32]] | None = None
    """Of each frame, the ids of its objects, ascending, where they are those of tracks; None where
    they run from 1 without gaps."""
    tracks: Lineage | None = None
    """Where ``ids`` are those of tracks: all tracks of the movie; frames count from 0, as in
    ``frames``."""
    pause: Callable[[], None] = field(default=_nothing)
    """Called between blocks; raises to stop the writing."""

    @property
    def shape(self) -> ZYX:
        """Of one frame."""
        z, y, x = self.frames[0].shape
        return (z, y, x)

    @property
    def axes(self) -> str:
        """The axes that files get, a subset of ``tzyx``; a single plane has no ``z``."""
        return ("t" if self.movie else "") + ("z" if self.shape[0] > 1 else "") + "yx"

    @property
    def count(self) -> int:
        """Number of objects in all frames."""
        return sum(len(objects) for objects in self.objects)

    def blocks(self, size: ZYX) -> Iterator[tuple[int, Box, NDArray[np.uint32]]]:
        """Every frame in blocks of ``size``, in C order: frame, where, and the ids there."""
        for frame, labels in enumerate(self.frames):
            for box in boxes(self.shape, size):
                self.pause()
                yield frame, box, np.asarray(labels[box.slices])

    def probability_blocks(self, size: ZYX) -> Iterator[tuple[int, int, Box, Block]]:
        """The probabilities in blocks of ``size``: frame, class, where, and float32 values there.

        They come in C order: frame by frame, and in a frame class by class.
        """
        for frame, array in enumerate(self.probabilities):
            for kind, box in product(range(array.shape[0]), boxes(self.shape, size)):
                self.pause()
                block = np.asarray(array[(slice(kind, kind + 1), *box.slices)])[0]
                yield frame, kind, box, block.astype(np.float32)


def boxes(shape: ZYX, size: ZYX) -> Iterator[Box]:
    """Boxes of ``size`` that cover ``shape``, in C order; clipped at its end."""
    starts = (range(0, n, s) for n, s in zip(shape, size, strict=True))
    for z, y, x in product(*starts):
        stop = (min(z + size[0], shape[0]), min(y + size[1], shape[1]), min(x + size[2], shape[2]))
        yield Box((z, y, x), stop)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """``files.replacing``, for libraries that hide the number of an operating system's error.

    Raises:
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    with replacing(path) as temporary:
        try:
            yield temporary
        except CellsegError:
            raise
        except (OSError, RuntimeError) as error:
            number = getattr(error, "errno", None) or _hidden_number(error)
            if number is None:
                raise
            raise OSError(number, str(error)) from error


def _hidden_number(error: BaseException) -> int | None:
    """HDF5 puts the number into its text, and may raise a second error while closing."""
    seen: BaseException | None = error
    while seen is not None:
        found = re.search(r"(?i)errno = (\d+)", str(seen))
        if found:
            return int(found.group(1))
        if "No space left on device" in str(seen):
            return errno.ENOSPC
        seen = seen.__context__
    return None

"""The stitched frames of a movie on disk, so that a long movie takes no more memory than a short
one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from cellseg.engine.stitch import Stitched
from cellseg.engine.tile import Objects
from cellseg.files import storage_errors

T = TypeVar("T")
_COLUMNS = ("area", "centroid", "low", "high", "score", "kind")
_HELD = 2
"""Frames in memory: the one that is written, and one that is still needed."""


class Lazily(Sequence[T], Generic[T]):
    """A sequence whose items are made when they are asked for, and forgotten soon after.

    Args:
        length: number of items.
        make: gives an item by its index, from 0.
    """

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._length = length
        self._make = make
        self._held: OrderedDict[int, T] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            chosen = range(self._length)[index]
            return Lazily(len(chosen), lambda i: self[chosen[i]])
        place = range(self._length)[index]
        if place not in self._held:
            self._held[place] = self._make(place)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(place)
        return self._held[place]


class StitchedFrames:
    """What was stitched of each frame: written once, and read back as often as it is needed.

    Args:
        folder: of the movie in progress; a file for each frame is put there. None keeps them in
            memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[int, tuple[Stitched, NDArray[np.uint32] | None]] = {}

    def put(self, frame: int, found: Stitched, tracks: NDArray[np.uint32] | None = None) -> None:
        """Keep a frame.

        Args:
            frame: its number.
            found: its objects.
            tracks: ``(n,)``: the track of each object, which becomes its id; None leaves them.

        Raises:
            StorageError: the disk is full, or permission is missing.
        """
        objects, ids = found.objects, found.ids
        if tracks is not None:
            order = np.argsort(tracks)
            objects = objects.chosen(order)
            ids = np.concatenate([np.zeros(1, np.uint32), tracks])[ids]
            tracks = tracks[order]
        if self._folder is None:
            self._held[frame] = replace(found, ids=ids, objects=objects), tracks
            return
        arrays = {name: getattr(objects, name) for name in _COLUMNS}
        arrays |= {"ids": ids, "offset": found.offset}
        if tracks is not None:
            arrays["tracks"] = tracks
        path = _path(self._folder, frame)
        with storage_errors(path):
            np.savez(path, **arrays)

    def stitched(self, frame: int) -> Stitched:
        """A frame that was kept; its ids are those of tracks where these were given."""
        if self._folder is None:
            return self._held[frame][0]
        with np.load(_path(self._folder, frame)) as file:
            objects = Objects(*(file[name] for name in _COLUMNS))
            return Stitched(file["ids"], file["offset"], objects)

    def objects(self, frame: int) -> Objects:
        """Its objects, in the order of their ids."""
        if self._folder is None:
            return self._held[frame][0].objects
        with np.load(_path(self._folder, frame)) as file:
            return Objects(*(file[name] for name in _COLUMNS))

    def tracks(self, frame: int) -> NDArray[np.uint32]:
        """The ids of its objects, ascending, where tracks were given."""
        if self._folder is None:
            held = self._held[frame][1]
            assert held is not None
            return held
        with np.load(_path(self._folder, frame)) as file:
            return np.asarray(file["tracks"])


def _path(folder: Path, frame: int) -> Path:
    return folder / f"frame{frame:06d}.npz"

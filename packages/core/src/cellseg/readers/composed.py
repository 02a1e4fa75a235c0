"""Label images put together from stored ones: class-coded ids, layers over layers, crops.

Nothing is read before it is sliced, but for one case: an id that does not fit below the bits of the
class (see ``cellseg.classes``) needs a number that no other id has. The first slice with such an id
reads the whole array once, block by block, and keeps a table of these numbers for this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import SHIFT, UNKNOWN
from cellseg.data import LazyArray
from cellseg.errors import DataError
from cellseg.intensity import block_slices

_LIMIT = (1 << SHIFT) - 1
"""Ids of a class lie below this."""


class Coded:
    """What all arrays of class-coded ids tell of themselves; that of the stored ones below."""

    __slots__ = ()
    labels: LazyArray

    @property
    def where(self) -> str:
        """The file, and the array in it."""
        return str(getattr(self.labels, "where", "labels"))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(z, y, x)``."""
        return tuple(self.labels.shape)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """What is decoded at once."""
        return getattr(self.labels, "chunks", None)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint32."""
        return np.dtype(np.uint32)


@dataclass(frozen=True, slots=True)
class Layer:
    """The objects of one class, with ids of any size.

    Ids that fit stay what they are. The others get the highest numbers that are free, in the order
    of the ids, so that the result depends neither on what is read first nor on the process.
    """

    labels: LazyArray
    """``(z, y, x)`` integers, 0 is background."""
    kind: int
    """The number of the class, from 1."""
    background: tuple[int, ...] = ()
    """Ids beside 0 that mean background."""
    unknown: tuple[int, ...] = (UNKNOWN,)
    """Ids that mean that nobody knows."""
    modified: int = 0
    """When the file was written; a table of ids holds for this state of it."""

    @property
    def where(self) -> str:
        """The file, and the array in it."""
        return str(getattr(self.labels, "where", "labels"))

    def read(self, key: tuple[slice, ...]) -> NDArray[np.uint32]:
        """The class-coded ids of one block.

        Raises:
            DataError: ids below 0, or more objects than fit.
        """
        stored = self.labels[key]
        if stored.dtype.kind == "i" and stored.size and stored.min() < 0:
            raise DataError(f"{self.where}: has ids below 0.")
        ids = stored.astype(np.uint64)
        missing = _among(ids, self.unknown, stored.dtype)
        present = ~(missing | _among(ids, (0, *self.background), stored.dtype))
        coded = np.zeros(ids.shape, np.uint32)
        known = ids[present]
        large = known >= _LIMIT
        if large.any():
            table, numbers = _table(self)
            ranks = np.searchsorted(table, known[large])
            if ranks.max() == len(table) or (table[ranks] != known[large]).any():
                raise DataError(f"{self.where}: was changed while it was read.")
            known[large] = numbers[ranks]
        coded[present] = known.astype(np.uint32) | np.uint32(self.kind << SHIFT)
        coded[missing] = UNKNOWN
        return coded


def _among(
    ids: NDArray[np.uint64], values: tuple[int, ...], stored: np.dtype[Any]
) -> NDArray[np.bool_]:
    """Where ``ids`` is one of ``values``; those that its stored type cannot hold cost nothing."""
    found = np.zeros(ids.shape, np.bool_)
    for value in values:
        if value <= np.iinfo(stored).max:
            found |= ids == value
    return found


@lru_cache(maxsize=256)
def _table(layer: Layer) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The ids of a layer that do not fit, in ascending order, and the numbers that they get."""
    import fastremap

    labels = layer.labels
    special = np.array((0, *layer.background, *layer.unknown), np.uint64)
    found = np.empty(0, np.uint64)
    for block in block_slices(labels):
        found = np.union1d(found, fastremap.unique(labels[block]).astype(np.uint64))
    found = np.setdiff1d(found, special)
    if len(found) >= _LIMIT:
        raise DataError(f"{layer.where}: has {len(found)} objects; {_LIMIT - 1} fit.")
    small, large = found[found < _LIMIT], found[found >= _LIMIT]
    highest = np.arange(max(_LIMIT - len(found), 1), _LIMIT, dtype=np.uint64)
    return large, np.setdiff1d(highest, small)[-len(large) :]


@dataclass(frozen=True, slots=True)
class ClassLabels:
    """Class-coded ids from one or more layers; a later one lies over the earlier."""

    layers: tuple[Layer, ...]

    @property
    def where(self) -> str:
        """The file, and the arrays in it."""
        return self.layers[0].where

    @property
    def shape(self) -> tuple[int, ...]:
        """``(z, y, x)``."""
        return tuple(self.layers[0].labels.shape)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """What is decoded at once."""
        return getattr(self.layers[0].labels, "chunks", None)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint32."""
        return np.dtype(np.uint32)

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        """The class-coded ids of one block."""
        first, *others = self.layers
        coded = first.read(key)
        for layer in others:
            over = layer.read(key)
            np.copyto(coded, over, where=over > 0)
        return coded


@dataclass(frozen=True, slots=True)
class Recoded(Coded):
    """Class-coded ids whose classes get other numbers."""

    labels: LazyArray
    """``(z, y, x)`` class-coded ids."""
    kinds: tuple[int, ...]
    """The new number of each class; the first, of the background, is 0."""

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        """The ids of one block, in the new classes.

        Raises:
            DataError: an id is of a class that has no name.
        """
        ids = np.array(self.labels[key]).astype(np.uint32)
        old = np.maximum(ids >> SHIFT, 1)  # plain ids are those of the first class
        known = (ids > 0) & (ids != UNKNOWN)
        if known.any() and int(old[known].max()) >= len(self.kinds):
            raise DataError(
                f"{self.where}: has objects of class {int(old[known].max())}; there are "
                f"{len(self.kinds) - 1} classes."
            )
        new = np.zeros(16, np.uint32)
        new[: len(self.kinds)] = np.array(self.kinds, np.uint32) << SHIFT
        low = np.uint32((1 << SHIFT) - 1)
        return np.where(known, (ids & low) | new[old], ids)


@dataclass(frozen=True, slots=True)
class Classified(Coded):
    """Ids of objects, and beside them the class of each voxel."""

    labels: LazyArray
    """``(z, y, x)`` ids, 0 is background."""
    kinds: LazyArray
    """``(z, y, x)``: the class of each voxel, from 1."""
    count: int
    """How many classes there are beside the background."""
    modified: int = 0
    """When the file was written."""

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        """The class-coded ids of one block.

        Raises:
            DataError: an object without a class, or of one that has no name.
        """
        ids = Layer(self.labels, 1, modified=self.modified).read(key)
        kinds = self.kinds[key]
        present = (ids > 0) & (ids != UNKNOWN)
        found = kinds[present]
        if found.size and not 1 <= int(found.min()) <= int(found.max()) <= self.count:
            bad = int(found.min()) if int(found.min()) < 1 else int(found.max())
            raise DataError(
                f"{self.where}: has objects of class {bad} in {getattr(self.kinds, 'where', '')}; "
                f"there are the classes 1 to {self.count}."
            )
        low = np.uint32((1 << SHIFT) - 1)
        ids[present] = (ids[present] & low) | (found.astype(np.uint32) << SHIFT)
        return ids


def _ranges(key: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A slice for each axis, with both ends; axes that ``key`` lacks are whole."""
    key = key if isinstance(key, tuple) else (key,)
    full = (*key, *[slice(None)] * (len(shape) - len(key)))
    ends = (part.indices(length) for part, length in zip(full, shape, strict=True))
    return tuple(slice(start, max(start, stop)) for start, stop, _ in ends)

"""Where the objects of a label image are: found once, so that no patch has to be searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
from numpy.typing import NDArray

from cellseg.classes import UNKNOWN
from cellseg.data import ZYX, LazyArray
from cellseg.errors import DataError
from cellseg.intensity import block_slices

_LARGEST = int(np.iinfo(np.uint32).max)


@dataclass(frozen=True, slots=True)
class ObjectIndex:
    """Ids, sizes and bounding boxes of the objects of one label image, from top to bottom."""

    ids: NDArray[np.uint32]
    """``(n,)``."""
    sizes: NDArray[np.int64]
    """``(n,)`` in voxels."""
    low: NDArray[np.int64]
    """``(n, 3)``: the first voxel of the bounding box, ``(z, y, x)``."""
    high: NDArray[np.int64]
    """``(n, 3)``: one past its last voxel."""
    tallest: int
    """Largest extent along y."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, labels: LazyArray, name: str = "") -> ObjectIndex:
        """Read a label image once, in blocks of at most 2^22 voxels.

        Args:
            labels: ``(z, y, x)``, any integers from 0 to 2^32 - 1; 0 is background, and
                ``classes.UNKNOWN`` no object. The pieces of an object in several pieces count as
                one.
            name: what errors call the image.

        Raises:
            DataError: ids are negative or do not fit in 32 bits.
        """
        found = [_in_block(labels[where], where, name) for where in block_slices(labels)]
        ids, sizes, low, high = (np.concatenate(parts) for parts in zip(*found, strict=True))
        unique, inverse = np.unique(ids, return_inverse=True)
        if len(unique) == len(ids):
            return cls._sorted(ids, sizes, low, high)
        total = np.zeros(len(unique), np.int64)
        first = np.full((len(unique), 3), np.iinfo(np.int64).max)
        last = np.zeros((len(unique), 3), np.int64)
        np.add.at(total, inverse, sizes)
        np.minimum.at(first, inverse, low)
        np.maximum.at(last, inverse, high)
        return cls._sorted(unique, total, first, last)

    @classmethod
    def _sorted(
        cls,
        ids: NDArray[np.uint32],
        sizes: NDArray[np.int64],
        low: NDArray[np.int64],
        high: NDArray[np.int64],
    ) -> ObjectIndex:
        order = np.lexsort((ids, low[:, 1]))
        low, high = np.asfortranarray(low[order]), np.asfortranarray(high[order])
        tallest = int((high - low)[:, 1].max(initial=0))
        return cls(ids[order], sizes[order], low, high, tallest)

    def chosen(self, which: NDArray[np.bool_]) -> ObjectIndex:
        """Some of the objects."""
        return ObjectIndex._sorted(
            self.ids[which], self.sizes[which], self.low[which], self.high[which]
        )

    def seen(self, corner: ZYX, shape: ZYX) -> tuple[int, NDArray[np.intp]]:
        """How many objects lie in a window as a whole, and which others may reach into it."""
        top, bottom = int(corner[1]), int(corner[1]) + shape[1]
        first, last = self.low[:, 1].searchsorted((top - self.tallest, bottom))
        reach = whole = np.ones(last - first, bool)
        for axis in range(3):
            low, high = self.low[first:last, axis], self.high[first:last, axis]
            start, stop = int(corner[axis]), int(corner[axis]) + shape[axis]
            reach = reach & (low < stop) & (high > start)
            whole = whole & (low >= start) & (high <= stop)
        return int(np.count_nonzero(whole)), np.flatnonzero(reach & ~whole) + first

    def visible(self, number: int, block: NDArray[Any], corner: Sequence[int]) -> int:
        """Voxels of one object in a block of the labels that begins at ``corner``."""
        low = np.maximum(self.low[number] - corner, 0)
        high = np.minimum(self.high[number] - corner, block.shape)
        part = block[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        return int(np.count_nonzero(part == self.ids[number]))


def as_ids(block: NDArray[Any], name: str = "") -> NDArray[np.uint32]:
    """A block of labels, any integers, as ids; the block itself where it has that type.

    Args:
        block: any shape.
        name: what errors call the image.

    Raises:
        DataError: ids are negative or do not fit in 32 bits.
    """
    if block.size and (block.dtype.kind == "i" or block.dtype.itemsize > 4):
        lowest, highest = (int(value) for value in fastremap.minmax(block))
        if lowest < 0 or highest > _LARGEST:
            raise DataError(
                f"{name or 'The label image'}: has the label {lowest if lowest < 0 else highest}; "
                f"labels go from 0 to {_LARGEST}.",
                hint="Renumber the objects: 0 for background, 1, 2, 3, ... for objects.",
            )
    return block.astype(np.uint32, copy=False)


def _in_block(
    block: NDArray[Any], where: tuple[slice, ...], name: str
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    block = as_ids(block, name)
    highest = int(fastremap.minmax(block)[1])
    names: NDArray[np.uint32] | None = None
    # cc3d counts no ids beyond the number of voxels, and wastes memory on large ones below it.
    if highest > min(block.size, max(block.size // 8, 1 << 16)):
        block, mapping = fastremap.renumber(block, in_place=False)
        names = np.zeros(len(mapping) + 1, np.uint32)
        names[list(mapping.values())] = list(mapping.keys())
    measured = cc3d.statistics(np.ascontiguousarray(block), no_slice_conversion=True)
    numbers = np.flatnonzero(measured["voxel_counts"])
    numbers = numbers[numbers > 0]
    boxes = measured["bounding_boxes"][numbers].astype(np.int64)
    offset = np.array([part.start for part in where], np.int64)
    ids = numbers.astype(np.uint32) if names is None else names[numbers]
    sizes = measured["voxel_counts"][numbers].astype(np.int64)
    own = ids != UNKNOWN
    return ids[own], sizes[own], boxes[own, 0::2] + offset, boxes[own, 1::2] + 1 + offset

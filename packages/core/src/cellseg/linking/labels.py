"""A frame's labels with the ids of tracks, made as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, LazyArray

_LARGEST_TABLE = 1 << 22
"""Larger ids than this are searched for instead of looked up."""


class LinkedLabels:
    """A ``LazyArray`` of the ids of tracks, uint32, ``(z, y, x)``; holds no voxels.

    Args:
        labels: as they come, ``(z, y, x)``.
        ids: ``(n,)``, all that are in them but 0, ascending.
        tracks: ``(n,)``, what each becomes.
    """

    def __init__(
        self, labels: LazyArray, ids: NDArray[np.uint32], tracks: NDArray[np.uint32]
    ) -> None:
        self._labels = labels
        self._ids = ids
        self._tracks = tracks

    @property
    def shape(self) -> ZYX:
        """``(z, y, x)``."""
        z, y, x = self._labels.shape
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint32."""
        return np.dtype(np.uint32)

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        """The ids in a block, given as one slice of step 1 for each axis."""
        block = np.asarray(self._labels[key])
        if not len(self._ids):
            return np.zeros(block.shape, np.uint32)
        if self._ids[-1] <= _LARGEST_TABLE:
            table = np.zeros(int(self._ids[-1]) + 1, np.uint32)
            table[self._ids] = self._tracks
            return np.take(table, block)
        near = np.searchsorted(self._ids, block)
        return np.where(block > 0, np.take(self._tracks, near, mode="clip"), np.uint32(0))

"""The finished label image, assembled from the tiles on disk as it is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX
from cellseg.engine.plan import Box, Plan
from cellseg.engine.records import Record
from cellseg.engine.stitch import Stitched

CACHE_BYTES = 16 << 20
"""Tiles kept decompressed, for readers whose blocks are not the tiles."""


class StitchedLabels:
    """A ``LazyArray`` of final ids, uint32, ``(z, y, x)``; holds a few tiles at a time."""

    def __init__(self, plan: Plan, records: Sequence[Record], stitched: Stitched) -> None:
        self._plan = plan
        self._records = records
        self._stitched = stitched
        self._cache: OrderedDict[int, NDArray[np.uint32]] = OrderedDict()
        self._cached = 0

    @property
    def shape(self) -> ZYX:
        """``(z, y, x)``."""
        return self._plan.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint32."""
        return np.dtype(np.uint32)

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        """The final ids in a block, given as one slice of step 1 for each axis."""
        (z0, z1, _), (y0, y1, _), (x0, x1, _) = (
            k.indices(n) for k, n in zip(key, self.shape, strict=True)
        )
        wanted = Box((z0, y0, x0), (z1, y1, x1))
        parts = list(self._plan.under(wanted))
        if len(parts) == 1 and self._plan.core_box(parts[0][0]) == wanted:
            return self._read(parts[0][0])
        block = np.zeros(wanted.shape, np.uint32)
        for tile, part in parts:
            inner = part.within(self._plan.core_box(tile))
            block[part.within(wanted)] = self._tile(tile)[inner]
        return block

    def _tile(self, tile: int) -> NDArray[np.uint32]:
        if tile in self._cache:
            self._cache.move_to_end(tile)
            return self._cache[tile]
        ids = self._read(tile)
        ids.flags.writeable = False
        self._cache[tile] = ids
        self._cached += ids.nbytes
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return ids

    def _read(self, tile: int) -> NDArray[np.uint32]:
        return np.take(self._stitched.table(tile), self._records[tile].core)

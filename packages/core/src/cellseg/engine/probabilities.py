"""The probabilities of the classes in an image, assembled from the tiles as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.engine.plan import Box, Plan
from cellseg.engine.records import Record
from cellseg.errors import PluginError


class StitchedProbabilities:
    """A ``LazyArray`` of probabilities, float16, ``(k, z, y, x)``; holds a block at a time.

    Every voxel has what the tile said in whose core it lies.

    Raises:
        PluginError: the tiles have other numbers of classes.
    """

    def __init__(self, plan: Plan, records: Sequence[Record]) -> None:
        self._plan = plan
        self._records = records
        counts = {record.classes for record in records}
        if len(counts) > 1:
            raise PluginError(
                "The predictor returned probabilities of "
                f"{' and '.join(str(n) for n in sorted(counts))} classes for tiles of one image."
            )
        self._classes = counts.pop()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(k, z, y, x)``."""
        return (self._classes, *self._plan.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16."""
        return np.dtype(np.float16)

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.float16]:
        """The probabilities in a block, given as one slice of step 1 for each axis."""
        (k0, k1, _), (z0, z1, _), (y0, y1, _), (x0, x1, _) = (
            k.indices(n) for k, n in zip(key, self.shape, strict=True)
        )
        wanted = Box((z0, y0, x0), (z1, y1, x1))
        block = np.zeros((k1 - k0, *wanted.shape), np.float16)
        for tile, part in self._plan.under(wanted):
            inner = part.within(self._plan.core_box(tile))
            for kind in range(k0, k1):
                planes = self._records[tile].probabilities(kind, inner[0].start, inner[0].stop)
                block[(kind - k0, *part.within(wanted))] = planes[:, inner[1], inner[2]]
        return block

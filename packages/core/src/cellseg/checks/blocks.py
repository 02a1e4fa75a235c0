"""Cutting an image into blocks that fit in memory, so that no file is too large to check."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import isqrt
from typing import TypeAlias

from cellseg.data import ZYX

BUDGET = 2**22
"""Voxels in a block. Every step on a block needs a few times this in bytes."""
SLICES = 16
"""Depth of a block: that of usual chunks, so that few are read again and again."""

Block: TypeAlias = tuple[slice, slice, slice]
"""Along z, y and x."""


def blocks(shape: ZYX, budget: int = BUDGET) -> Iterator[Block]:
    """Blocks of at most about ``budget`` voxels that cover ``shape`` in order."""
    depth = max(1, min(shape[0], SLICES))
    side = max(1, isqrt(max(1, budget // depth)))
    # A narrow image is cut along its length only.
    width = min(shape[2], max(side, budget // (depth * max(1, shape[1]))))
    rows = min(shape[1], max(side, budget // (depth * max(1, width))))
    steps = (depth, max(1, rows), max(1, width))
    starts = (range(0, n, step) for n, step in zip(shape, steps, strict=True))
    for z, y, x in product(*starts):
        yield (
            slice(z, min(z + steps[0], shape[0])),
            slice(y, min(y + steps[1], shape[1])),
            slice(x, min(x + steps[2], shape[2])),
        )

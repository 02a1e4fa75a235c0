"""Pooling: from the vectors of the cells of a grid to a vector of each object.

Each voxel of an object counts once, with the vector of the cell that its centre lies in. So what
comes out does not depend on how an image is cut into tiles, only on what the model sees in them.
Means and variances of parts are merged as in Chan, Golub & LeVeque
(doi:10.1080/00031305.1983.10483115), which does not lose digits where values are far from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cellseg.data import ZYX

_NUMBERS = 1 << 22
"""Numbers that are worked on at once: 32 MiB of them."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which voxels of which objects lie in which cells of a grid."""

    objects: NDArray[np.intp]
    """``(k,)``, rising: the objects that have voxels here, by their place in the list of ids."""
    cells: NDArray[np.int64]
    """``(m,)``, rising: the cells that they lie in, numbered in C order."""
    counts: csr_array
    """``(k, m)`` float64: the voxels of each object in each cell; no row is empty."""
    places: NDArray[np.float64]
    """``(k, 3)``: sum of the coordinates of each object's voxels in the block, ``(z, y, x)``."""


def overlap(
    rows: NDArray[np.int32],
    cells: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    grid: ZYX,
) -> Overlap:
    """Count the voxels of each object in each cell.

    Args:
        rows: ``(z, y, x)``: the object that each voxel belongs to, as ``rows_of`` gives it; at
            least one is not -1.
        cells: for each axis of ``rows``, the index of the cell that each of its voxels lies in.
        grid: number of cells along each axis.
    """
    z, y, x = cells
    cell = (z[:, None, None] * grid[1] + y[:, None]) * grid[2] + x
    size = grid[0] * grid[1] * grid[2]
    # Runs of voxels along x with one object and one cell: a tenth of the numbers.
    key = np.where(rows >= 0, rows * np.int64(size) + cell, -1).reshape(-1)
    _, height, width = rows.shape
    first = np.empty(key.size, bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    first[::width] = True
    start = np.flatnonzero(first)
    length = np.diff(start, append=key.size)
    inside = key[start] >= 0
    start, length = start[inside], length[inside]
    row, column = np.divmod(key[start], size)
    objects, row = np.unique(row, return_inverse=True)
    used, column = np.unique(column, return_inverse=True)
    counts = csr_array((length.astype(np.float64), (row, column)), shape=(len(objects), len(used)))
    plane, at = np.divmod(start, height * width)
    line, at = np.divmod(at, width)
    middles = (plane, line, at + (length - 1) / 2)
    places = [np.bincount(row, middle * length, len(objects)) for middle in middles]
    return Overlap(objects.astype(np.intp), used, counts, np.stack(places, axis=1))


def rows_of(labels: NDArray[np.uint32], ids: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The place of each voxel's label in ``ids``, and -1 where it is not among them.

    Args:
        labels: any shape.
        ids: ``(n,)``, rising, at least one.
    """
    local, mapping = fastremap.renumber(labels, in_place=False)
    names = np.fromiter(mapping.keys(), np.uint32, len(mapping))
    near = np.minimum(np.searchsorted(ids, names), len(ids) - 1)
    table = np.full(len(mapping) + 1, -1, np.int32)
    numbers = np.fromiter(mapping.values(), np.int64, len(mapping))
    table[numbers] = np.where(ids[near] == names, near, -1)
    rows: NDArray[np.int32] = table[local]
    return rows


@dataclass(slots=True)
class Moments:
    """Mean, spread and maximum of the vectors of ``n`` objects, as their voxels come in."""

    n: int
    dimension: int
    spread: bool
    """Whether the standard deviation and the maximum are wanted too."""
    count: NDArray[np.float64] = field(init=False)
    """``(n,)``: voxels so far."""
    mean: NDArray[np.float64] = field(init=False)
    """``(n, dimension)``."""
    squares: NDArray[np.float64] = field(init=False)
    """``(n, dimension)``: sums of squared distances from the mean; no rows without ``spread``."""
    highest: NDArray[np.float32] = field(init=False)
    """``(n, dimension)``, from minus infinity; no rows without ``spread``."""

    def __post_init__(self) -> None:
        shape = (self.n, self.dimension)
        wide = shape if self.spread else (0, self.dimension)
        self.count, self.mean = np.zeros(self.n), np.zeros(shape)
        self.squares, self.highest = np.zeros(wide), np.full(wide, -np.inf, np.float32)

    def deviation(self) -> NDArray[np.float64]:
        """``(n, dimension)``: the population standard deviation over the voxels.

        It takes the place of ``squares``, which are large; nothing can be added any more.
        """
        self.squares /= self.count[:, None]
        return np.sqrt(self.squares, out=self.squares)

    def add(self, found: Overlap, vectors: NDArray[np.float32]) -> None:
        """Add the voxels of one block.

        Args:
            found: which objects have voxels in which cells.
            vectors: ``(dimension, m)``: of the cells in ``found.cells``, finite.
        """
        here, counts = found.objects, found.counts
        weight = counts.sum(axis=1)
        before = self.count[here]
        share = weight / (before + weight)
        self.count[here] += weight
        step = max(1, _NUMBERS // max(counts.nnz if self.spread else 0, counts.shape[1]))
        for start in range(0, self.dimension, step):
            part = slice(start, start + step)
            values = vectors[part].T.astype(np.float64)
            mean = (counts @ values) / weight[:, None]
            apart = mean - self.mean[here, part]
            self.mean[here, part] += apart * share[:, None]
            if self.spread:
                self._add_spread(found, part, values, mean, apart**2 * (before * share)[:, None])

    def _add_spread(
        self,
        found: Overlap,
        part: slice,
        values: NDArray[np.float64],
        mean: NDArray[np.float64],
        between: NDArray[np.float64],
    ) -> None:
        here, counts = found.objects, found.counts
        near = values[counts.indices]  # of each pair of an object and a cell
        highest = np.maximum.reduceat(near, counts.indptr[:-1])
        self.highest[here, part] = np.maximum(self.highest[here, part], highest)
        near -= np.repeat(mean, np.diff(counts.indptr), axis=0)
        near *= near
        pairs = csr_array(
            (counts.data, np.arange(counts.nnz), counts.indptr), shape=(len(here), counts.nnz)
        )
        self.squares[here, part] += pairs @ near + between

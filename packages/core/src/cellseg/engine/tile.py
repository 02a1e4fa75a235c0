"""What one tile contributes: its labels, the strips its neighbours see too, and its objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from cellseg.data import Segmentation
from cellseg.engine.plan import Direction, Plan

Ids = NDArray[np.uint16] | NDArray[np.uint32]
NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class Objects:
    """Measurements of ``n`` objects, or of those parts of them that lie in one tile."""

    area: NDArray[np.int64]
    """``(n,)``, voxels."""
    centroid: NDArray[np.float64]
    """``(n, 3)``, voxels from the start of the image, ``(z, y, x)``."""
    low: NDArray[np.int64]
    """``(n, 3)``, first voxel of the bounding box."""
    high: NDArray[np.int64]
    """``(n, 3)``, voxel after the last."""
    score: NDArray[np.float64]
    """``(n,)``, NaN where the model gives none."""
    kind: NDArray[np.int64]
    """``(n,)``, index of the class, ``NO_CLASS`` where the model gives none."""

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.area)


@dataclass(frozen=True, slots=True)
class TileLabels:
    """The result of one tile; its ids are 1 to n and count only what reaches into its core."""

    core: Ids
    """``(z, y, x)`` of the core."""
    strips: Mapping[Direction, Ids]
    """The labels in the window shared with the neighbour in each direction."""
    objects: Objects


def tile_labels(found: Segmentation, plan: Plan, tile: int) -> TileLabels:
    """Keep of a segmentation what stitching and writing need.

    Args:
        found: labels of all that the tile reads, non-negative.
        plan: the tiles of the image.
        tile: number of the tile.
    """
    box, outer = plan.core_box(tile), plan.read_box(tile)
    ids, renumber = _owned(found.labels, found.labels[box.within(outer)])
    core = renumber(found.labels[box.within(outer)])
    strips = {
        direction: renumber(found.labels[plan.window(tile, direction).within(outer)])
        for direction, _ in plan.neighbours(tile)
    }
    return TileLabels(core, strips, _measure(core, ids, found, np.array(box.start)))


def _owned(labels: NDArray[Any], core: NDArray[Any]) -> tuple[NDArray[np.int64], Any]:
    """The ids in the core, sorted, and a function that renumbers them 1..n and drops the rest."""
    top = int(labels.max(initial=0))
    if top <= max(1 << 20, labels.size):
        present = np.zeros(top + 1, bool)
        if core.dtype.itemsize <= 2:
            present[: int(core.max(initial=0)) + 1] = np.bincount(core.ravel()) > 0
        else:
            present[core.ravel()] = True
        present[0] = False
        ids = np.flatnonzero(present)
        dtype = np.uint16 if len(ids) < 1 << 16 else np.uint32
        table = np.cumsum(present, dtype=dtype)
        table[~present] = 0
        return ids, lambda block: np.take(table, block)
    sparse = np.unique(core)
    sparse = sparse[sparse > 0]
    dtype = np.uint16 if len(sparse) < 1 << 16 else np.uint32

    def renumber(block: NDArray[Any]) -> NDArray[Any]:
        if not len(sparse):
            return np.zeros(block.shape, dtype)
        place = np.searchsorted(sparse, block)
        known = np.take(sparse, place, mode="clip") == block
        return np.where(known, place + 1, 0).astype(dtype)

    return sparse.astype(np.int64), renumber


def _measure(
    core: NDArray[Any], ids: NDArray[np.int64], found: Segmentation, start: NDArray[np.int64]
) -> Objects:
    n = len(ids)
    if not n:
        nothing = np.zeros((0, 3), np.int64)
        none = np.zeros(0, np.int64)
        return Objects(none, nothing.astype(float), nothing, nothing, none.astype(float), none)
    measured = cc3d.statistics(core, no_slice_conversion=True)
    boxes = np.asarray(measured["bounding_boxes"], np.int64)[1 : n + 1]
    names = ids.tolist() if found.scores or found.classes else []
    score, kind = np.full(n, np.nan), np.full(n, NO_CLASS, np.int64)
    if found.scores:
        score[:] = [found.scores.get(name, np.nan) for name in names]
    if found.classes:
        kind[:] = [found.classes.get(name, NO_CLASS) for name in names]
    return Objects(
        np.asarray(measured["voxel_counts"], np.int64)[1 : n + 1],
        np.asarray(measured["centroids"], np.float64)[1 : n + 1] + start,
        boxes[:, 0::2] + start,
        boxes[:, 1::2] + 1 + start,
        score,
        kind,
    )

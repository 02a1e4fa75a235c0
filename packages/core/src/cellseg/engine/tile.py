"""What one tile contributes: its labels, the strips its neighbours see too, and its objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Segmentation, Tracked
from cellseg.engine.plan import Direction, Plan

Ids = NDArray[np.uint16] | NDArray[np.uint32]
NO_CLASS = -1
_LARGEST_TABLE = 1 << 22
"""Larger ids than this are searched for instead of looked up."""


@dataclass(frozen=True, slots=True)
class Objects:
    """Measurements of ``n`` objects, or of those parts of them that lie in one tile."""

    area: NDArray[np.int64]
    """``(n,)``, voxels."""
    centroid: NDArray[np.float64]
    """``(n, 3)``, voxels from the start of the image, ``(z, y, x)``."""
    low: NDArray[np.int32]
    """``(n, 3)``, first voxel of the bounding box."""
    high: NDArray[np.int32]
    """``(n, 3)``, voxel after the last."""
    score: NDArray[np.float32]
    """``(n,)``, NaN where the model gives none."""
    kind: NDArray[np.int32]
    """``(n,)``, index of the class, ``NO_CLASS`` where the model gives none."""

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.area)

    def chosen(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Objects:
        """Some of the objects, or all in another order."""
        return Objects(
            self.area[which],
            self.centroid[which],
            self.low[which],
            self.high[which],
            self.score[which],
            self.kind[which],
        )


def no_objects() -> Objects:
    """Of a tile without any."""
    box = np.zeros((0, 3), np.int32)
    return Objects(
        np.zeros(0, np.int64),
        np.zeros((0, 3)),
        box,
        box,
        np.zeros(0, np.float32),
        np.zeros(0, np.int32),
    )


@dataclass(frozen=True, slots=True)
class Sightings:
    """What the tracker of a tile says of the ``n`` objects that it sees, halo included."""

    ids: NDArray[np.int64]
    """``(n,)``, ascending: its own ids, which an object keeps over all frames."""
    parents: NDArray[np.int64]
    """``(n,)``: its id of the mother, where an object comes from a division now; else 0."""
    own: NDArray[np.int64]
    """Which of them reach into the core, as places in ``ids``, in the order of the tile's ids."""
    labels: Ids | None
    """``(z, y, x)`` of all that the tile reads: places in ``ids``, counted from 1; None where that
    is no more than its core."""


def no_sightings() -> Sightings:
    """Of a tile without objects."""
    none = np.zeros(0, np.int64)
    return Sightings(none, none, none, None)


@dataclass(frozen=True, slots=True)
class TileLabels:
    """The result of one tile; its ids are 1 to n and count only what reaches into its core."""

    core: Ids
    """``(z, y, x)`` of the core."""
    strips: Mapping[Direction, Ids]
    """The labels in the window shared with the neighbour in each direction."""
    objects: Objects
    probabilities: NDArray[np.float16] | None = None
    """``(k, z, y, x)`` of the core, to 11 bits, where they are asked for."""
    sightings: Sightings | None = None
    """Where the tile was tracked."""


def tile_labels(found: Segmentation, plan: Plan, tile: int) -> TileLabels:
    """Keep of a segmentation what stitching and writing need.

    Args:
        found: labels of all that the tile reads, non-negative.
        plan: the tiles of the image.
        tile: number of the tile.
    """
    box, outer = plan.core_box(tile), plan.read_box(tile)
    inner = found.labels[box.within(outer)]
    runs = _runs(inner)
    ids, local, renumber = _numbering(runs.value, int(found.labels.max(initial=0)))
    strips = {
        direction: renumber(found.labels[plan.window(tile, direction).within(outer)])
        for direction, _ in plan.neighbours(tile)
    }
    objects = _measure(runs, local, ids, found, np.array(box.start, np.int32))
    likely = found.probabilities
    if likely is None:
        return TileLabels(renumber(inner), strips, objects)
    core = likely[(slice(None), *box.within(outer))].astype(np.float16)
    return TileLabels(renumber(inner), strips, objects, core)


def tracked_labels(found: Tracked, plan: Plan, tile: int) -> TileLabels:
    """The same of what a tracker found, with what it says of identities.

    Args:
        found: labels of all that the tile reads, non-negative, at most those of int64.
        plan: the tiles of a frame.
        tile: number of the tile.
    """
    kept = tile_labels(Segmentation(found.labels, found.scores, found.classes), plan, tile)
    box, outer = plan.core_box(tile), plan.read_box(tile)
    runs = _runs(found.labels)
    ids, _, renumber = _numbering(runs.value, int(found.labels.max(initial=0)))
    of_core = np.zeros(len(kept.objects) + 1, np.int64)
    of_core[kept.core.reshape(-1)] = found.labels[box.within(outer)].reshape(-1)
    parents = np.array([found.parents.get(name, 0) for name in ids.tolist()], np.int64)
    seen = Sightings(
        ids=ids,
        parents=parents,
        own=np.searchsorted(ids, of_core[1:]),
        labels=None if box == outer else renumber(found.labels),
    )
    return replace(kept, sightings=seen)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Rows of equal labels: what there is to know about objects, in a tenth of the numbers."""

    value: NDArray[Any]
    length: NDArray[np.int64]
    place: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """``(z, y, x)`` of the first voxel."""


def _runs(labels: NDArray[Any]) -> _Runs:
    """The runs along x that are not background, in C order."""
    _, height, width = labels.shape
    flat = labels.reshape(-1)
    first = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=first[1:])
    first[::width] = True
    start = np.flatnonzero(first)
    value = flat[start]
    found = np.flatnonzero(value)
    end = np.append(start, flat.size)[found + 1]
    start, value = start[found], value[found]
    row = start // width
    z = row // height
    return _Runs(value, end - start, (z, row - z * height, start - row * width))


def _numbering(
    value: NDArray[Any], top: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Callable[[NDArray[Any]], Ids]]:
    """The ids in ``value``, sorted; their numbers 1..n; and what renumbers a block so.

    Ids that are not in ``value`` become background. ``top`` is the largest id of any block.
    """
    if top <= _LARGEST_TABLE:
        present = np.bincount(value.astype(np.int64), minlength=top + 1) > 0
        ids = np.flatnonzero(present)
        table = np.cumsum(present, dtype=_smallest(len(ids)))
        table[~present] = 0
        return ids, table[value].astype(np.int64), lambda block: np.take(table, block)
    sparse, place = np.unique(value, return_inverse=True)

    def renumber(block: NDArray[Any]) -> Ids:
        number: NDArray[Any] = np.zeros(block.shape, _smallest(len(sparse)))
        if len(sparse):
            near = np.searchsorted(sparse, block)
            known = np.take(sparse, near, mode="clip") == block
            number[known] = near[known] + 1
        return number

    # Ids beyond int64 cannot be looked up in the scores; they are only numbered.
    return sparse.astype(np.int64), place + 1, renumber


def _smallest(count: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if count < 1 << 16 else np.uint32


def _measure(
    runs: _Runs,
    local: NDArray[np.int64],
    ids: NDArray[np.int64],
    found: Segmentation,
    start: NDArray[np.int32],
) -> Objects:
    n = len(ids)
    if not n:
        return no_objects()
    area = np.bincount(local, runs.length)[1:]
    # The runs of each object, one object after the other.
    order = np.argsort(local.astype(_smallest(n)), kind="stable")
    begin = np.concatenate([[0], np.cumsum(np.bincount(local)[1:-1])])
    length = runs.length[order]
    centroid, low, high = np.empty((n, 3)), np.empty((n, 3), np.int32), np.empty((n, 3), np.int32)
    for axis, place in enumerate(runs.place):
        here = place[order]
        extent = length if axis == 2 else 1
        low[:, axis] = np.minimum.reduceat(here, begin)
        high[:, axis] = np.maximum.reduceat(here + extent, begin)
        middle = here + (length - 1) / 2 if axis == 2 else here
        centroid[:, axis] = np.add.reduceat(middle * length, begin) / area
    names = ids.tolist() if found.scores or found.classes else []
    score, kind = np.full(n, np.nan, np.float32), np.full(n, NO_CLASS, np.int32)
    if found.scores:
        score[:] = [found.scores.get(name, np.nan) for name in names]
    if found.classes:
        kind[:] = [found.classes.get(name, NO_CLASS) for name in names]
    low += start
    high += start
    return Objects(area.astype(np.int64), centroid + start, low, high, score, kind)

"""Joining what neighbouring tiles say about the objects that both of them see.

Two neighbours are compared where both have read the image: a window on either side of the face
(edge, corner) between their cores. Their objects are the same when they share at least
``least`` of the smaller one's voxels there. Objects are then the connected components of all
such pairs, so that a cell across several tiles gets one id, and so that the pieces into which
one tile cut a cell join what the other tile saw whole. Nothing depends on the order in which
tiles were segmented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cellseg.engine.plan import Direction, Plan
from cellseg.engine.tile import NO_CLASS, Objects
from cellseg.errors import DataError

MOST_IDS = 2**32 - 1
"""What uint32 can number."""

Strip = Callable[[int, Direction], NDArray[Any]]
"""The labels of a tile in the window it shares with its neighbour in a direction."""


class Parts(Protocol):
    """What the tiles of an image found, in the order of tiles."""

    def counts(self) -> list[int]:
        """Number of objects in each tile."""

    def column(self, name: str) -> NDArray[Any]:
        """A field of ``Objects``, of all tiles one after the other."""


class PartsInMemory:
    """``Parts`` of tiles that are all there."""

    def __init__(self, objects: Sequence[Objects]) -> None:
        self._objects = objects

    def counts(self) -> list[int]:
        """Number of objects in each tile."""
        return [len(objects) for objects in self._objects]

    def column(self, name: str) -> NDArray[Any]:
        """A field of ``Objects``, of all tiles one after the other."""
        return np.concatenate([getattr(objects, name) for objects in self._objects])


@dataclass(frozen=True, slots=True)
class Stitched:
    """Final ids: ``ids[offset[tile] + local - 1]``; they run from 1 to ``len(objects)``, and are 0
    for what is left out."""

    ids: NDArray[np.uint32]
    offset: NDArray[np.int64]
    objects: Objects
    """In the order of their ids."""

    def table(self, tile: int) -> NDArray[np.uint32]:
        """Final id of each local id of a tile, with 0 for background."""
        ids = self.ids[self.offset[tile] : self.offset[tile + 1]]
        return np.concatenate([np.zeros(1, np.uint32), ids])


def pair_runs(
    left: NDArray[Any], right: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Runs of equal pairs of ids, in C order: ten times fewer to sort than voxels.

    Args:
        left: ids, 0 is background.
        right: ids of the same shape.

    Returns:
        The ids of the left, those of the right, and the lengths in voxels, ``(n,)`` each.
    """
    a, b = left.ravel(), right.ravel()
    if not a.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    start = np.flatnonzero((a[1:] != a[:-1]) | (b[1:] != b[:-1])) + 1
    start = np.concatenate([np.zeros(1, start.dtype), start])
    return a[start].astype(np.int64), b[start].astype(np.int64), np.diff(start, append=a.size)


def matches(
    left: NDArray[Any], right: NDArray[Any], least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of ids, one from each of two label images of one shape, that are the same object.

    Args:
        left: ids, 0 is background.
        right: ids, 0 is background.
        least: the share of the smaller object, above 0 and at most 1, that must lie in both.
    """
    run_a, run_b, length = pair_runs(left, right)
    if not length.size:
        return run_a, run_b
    size_a, size_b = np.bincount(run_a, length), np.bincount(run_b, length)
    both = (run_a > 0) & (run_b > 0)
    width = len(size_b)
    keys, place = np.unique(run_a[both] * width + run_b[both], return_inverse=True)
    shared = np.bincount(place, length[both], minlength=len(keys))
    of_a, of_b = np.divmod(keys, width)
    same = shared >= least * np.minimum(size_a[of_a], size_b[of_b])
    return of_a[same], of_b[same]


def stitch(plan: Plan, parts: Parts, strip: Strip, least: float) -> Stitched:
    """Number the objects of all tiles, in the order of tiles and of ids within a tile.

    Args:
        plan: the tiles of the image.
        parts: what each tile found.
        strip: reads the labels in a window between two tiles.
        least: the share of the smaller object that makes two objects one.

    Raises:
        DataError: there are more objects than uint32 can number.
    """
    counts = parts.counts()
    offset = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    total = int(offset[-1])
    first, second = [], []
    for tile in range(len(plan)):
        for direction, other in plan.neighbours(tile):
            if other < tile or not counts[tile] or not counts[other]:
                continue
            back = (-direction[0], -direction[1], -direction[2])
            a, b = matches(strip(tile, direction), strip(other, back), least)
            first.append(a - 1 + offset[tile])
            second.append(b - 1 + offset[other])
    if first and total:
        count, group = connected(total, np.concatenate(first), np.concatenate(second))
    else:
        count, group = total, np.arange(total)
    if count > MOST_IDS:
        raise DataError(f"{count} objects are more than a uint32 label image can number.")
    return Stitched((group + 1).astype(np.uint32), offset, merge(parts, group, count))


def connected(
    total: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64]]:
    """Groups of parts that hang together, numbered in the order of their earliest parts.

    Args:
        total: number of parts.
        first: the one part of each pair that belongs together.
        second: the other one.

    Returns:
        The number of groups, and ``(total,)`` the group of each part.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), bool), (first, second)), (total, total))
    count, group = connected_components(links, directed=False)
    earliest = np.full(count, total)
    np.minimum.at(earliest, group, np.arange(total))
    rank = np.empty(count, np.int64)
    rank[np.argsort(earliest)] = np.arange(count)
    return int(count), rank[group]


def merge(parts: Parts, group: NDArray[np.int64], count: int) -> Objects:
    """Objects from their parts: boxes united, scores weighted by area, class of the largest.

    One column after the other, so that not all of them are in memory twice.
    """
    area = parts.column("area")
    total = np.bincount(group, area, count)
    parted = parts.column("centroid")
    centroid = np.empty((count, 3))
    for axis in range(3):
        centroid[:, axis] = np.bincount(group, area * parted[:, axis], count) / total
    del parted
    low = np.full((count, 3), np.iinfo(np.int32).max, np.int32)
    np.minimum.at(low, group, parts.column("low"))
    high = np.zeros((count, 3), np.int32)
    np.maximum.at(high, group, parts.column("high"))
    score = parts.column("score")
    scored = ~np.isnan(score)
    weight = np.bincount(group[scored], area[scored], count)
    points = np.bincount(group[scored], (area * score)[scored], count)
    mean = np.divide(points, weight, out=np.full(count, np.nan), where=weight > 0)
    kind = np.full(count, NO_CLASS, np.int32)
    order = np.argsort(area, kind="stable")
    kind[group[order]] = parts.column("kind")[order]
    return Objects(total.astype(np.int64), centroid, low, high, mean.astype(np.float32), kind)

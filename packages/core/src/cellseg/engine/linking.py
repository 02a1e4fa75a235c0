"""Objects of neighbouring planes that are one object: a volume out of planes.

Two objects of two planes are the same when they overlap by an intersection over union (IoU) of at
least ``overlap``, and when neither overlaps another object of the other's plane by more. So an
object continues into at most one object of the next plane, and two objects of a plane never
become one: where an object branches, one branch goes on, and the others begin there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import LazyArray
from cellseg.engine.plan import Plan
from cellseg.engine.stitch import connected, pair_runs
from cellseg.engine.tile import Objects

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Ids of an object and of one some planes further, and the pixels that they share."""


@dataclass(frozen=True, slots=True)
class Linking:
    """How objects of neighbouring planes are linked."""

    overlap: float
    """IoU that two objects must reach, above 0 and at most 1."""
    gap: int = 0
    """Planes that an object may be missing in."""


def link_planes(
    labels: LazyArray, plan: Plan, objects: Objects, how: Linking, pause: Callable[[], None]
) -> tuple[int, NDArray[np.int64]]:
    """Which objects of a volume, segmented plane by plane, are one.

    A tile is read once; beside the overlaps, one tile of each of ``2 + gap`` planes is in memory.
    An object that ends goes on across a gap where none of its plane's neighbours was linked to it;
    the nearest plane goes first.

    Args:
        labels: ids from 1 without gaps, ``(z, y, x)``.
        plan: the tiles of the image; each lies in one plane.
        objects: each in one plane, in the order of their ids.
        how: what it takes to be one.
        pause: called between tiles; raises to stop.

    Returns:
        The number of linked objects, and ``(n,)`` which of them each object is part of, numbered
        in the order of their earliest parts.
    """
    total = len(objects)
    ended, begun = np.ones(total, bool), np.ones(total, bool)
    order = _order(objects)
    first: list[NDArray[np.int64]] = []
    second: list[NDArray[np.int64]] = []
    for a, b, shared in _overlaps(labels, plan, how.gap, pause):
        iou = shared / (objects.area[a] + objects.area[b] - shared)
        may = ended[a] & begun[b] & (iou >= how.overlap)
        a, b, iou = a[may], b[may], iou[may]
        best = _is_best(a, b, iou, order) & _is_best(b, a, iou, order)
        a, b = a[best], b[best]
        ended[a], begun[b] = False, False
        first.append(a)
        second.append(b)
    return connected(total, np.concatenate(first), np.concatenate(second))


def _overlaps(labels: LazyArray, plan: Plan, gap: int, pause: Callable[[], None]) -> list[Pairs]:
    """Pairs of objects, numbered from 0, that lie over each other: in neighbouring planes, then in
    those with one plane in between, and so on."""
    depth, height, width = plan.grid
    reach = min(1 + gap, depth)
    found: list[list[tuple[NDArray[np.uint64], NDArray[np.int64]]]] = [[] for _ in range(reach)]
    for column in range(height * width):
        above: deque[NDArray[Any]] = deque(maxlen=reach)
        for z in range(depth):
            pause()
            box = plan.core_box(z * height * width + column)
            block = np.asarray(labels[box.slices])
            for distance, other in enumerate(above):
                found[distance].append(_shared(other, block))
            above.appendleft(block)
    return [_summed(parts) for parts in found]


def _shared(
    left: NDArray[Any], right: NDArray[Any]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys of the pairs of objects that share pixels, and how many."""
    a, b, length = pair_runs(left, right)
    both = (a > 0) & (b > 0)
    keys = a[both].astype(np.uint64) << np.uint64(32) | b[both].astype(np.uint64)
    return _total(keys, length[both])


def _summed(parts: list[tuple[NDArray[np.uint64], NDArray[np.int64]]]) -> Pairs:
    """Over all tiles."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys, shared = _total(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    low = np.uint64(0xFFFFFFFF)
    return (keys >> np.uint64(32)).astype(np.int64) - 1, (keys & low).astype(np.int64) - 1, shared


def _total(
    keys: NDArray[np.uint64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    unique, place = np.unique(keys, return_inverse=True)
    return unique, np.bincount(place, counts, len(unique)).astype(np.int64)


def _order(objects: Objects) -> NDArray[np.int64]:
    """A rank of each object that does not depend on how the image was tiled; breaks ties."""
    low, high = objects.low, objects.high
    order = np.lexsort((objects.area, high[:, 2], high[:, 1], low[:, 2], low[:, 1], low[:, 0]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _is_best(
    of: NDArray[np.int64],
    other: NDArray[np.int64],
    iou: NDArray[np.float64],
    order: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether no pair of the same object in ``of`` has a better IoU."""
    sequence = np.lexsort((order[other], -iou, of))
    best = np.zeros(len(of), bool)
    _, first = np.unique(of[sequence], return_index=True)
    best[sequence[first]] = True
    return best

"""Holes in objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Labels


def fill_holes(labels: Labels, most: int, longest: tuple[int, int] | None = None) -> Labels:
    """Give small holes to the objects around them, plane by plane.

    A hole is background that hangs together by edges of pixels, reaches no border of the plane,
    and has one object on all sides. What two objects enclose, or what holds another object, stays.

    Args:
        labels: ``(z, y, x)``, any integers, 0 is background; not changed.
        most: pixels of the largest hole to fill.
        longest: height and width that a hole to fill has at most, or None for any.

    Returns:
        ``labels`` itself where there is nothing to fill, else a copy of the same type.
    """
    filled = labels
    longest = longest or (labels.shape[1], labels.shape[2])
    for z, plane in enumerate(labels):
        place, value = _holes(np.ascontiguousarray(plane), most, longest)
        if len(place):
            if filled is labels:
                filled = labels.copy()
            filled[z].reshape(-1)[place] = value
    return filled


def _holes(
    plane: NDArray[Any], most: int, longest: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """The pixels of the holes of a plane, as flat indices, and the ids around them."""
    import cv2

    height, width = plane.shape
    background = (plane == 0).view(np.uint8)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    x, y, w, h, area = stats.T
    small = (x > 0) & (y > 0) & (x + w < width) & (y + h < height) & (area <= most)
    small &= (h <= longest[0]) & (w <= longest[1])
    small[0] = False  # that is where there are objects
    place = np.flatnonzero(small[pieces])
    if not len(place):
        return place, plane[:0, 0]
    piece, flat = pieces.reshape(-1)[place], plane.reshape(-1)
    lowest = np.full(count, np.iinfo(plane.dtype).max, plane.dtype)
    highest = np.zeros(count, plane.dtype)
    for step in (-1, 1, -width, width):
        beside = flat[place + step]
        object_ = beside > 0
        np.minimum.at(lowest, piece[object_], beside[object_])
        np.maximum.at(highest, piece[object_], beside[object_])
    alone = (lowest == highest)[piece]
    return place[alone], lowest[piece[alone]]

"""Which masks to look at in a plane: answers to points of a grid, of peaks and of blobs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from cellseg.torch.masks import FoundMask
from cellseg_fewshot.proposals import blob_points, grid_points, merge_points, peak_points
from cellseg_fewshot.views import View

_FEWEST, _MOST = 16, 256
_SAME_POINT = 1 / 8
"""Points nearer than this part of the smallest diameter ask for the same object."""
_PEAK = 0.25
"""Peaks of the map of similarity must be higher; it is near 1 in the examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Where to ask for candidates, and which of the answers to look at."""

    points_per_side: int | None
    """Of a grid; 0 for none, None for half the smallest diameter between two points."""
    peaks: bool
    blobs: bool
    areas: tuple[int, int]
    """The smallest and the largest to look at, in pixels; a largest of 0 is no limit."""
    diameters: tuple[float, float, float]
    """The smallest, the median and the largest of the examples, in pixels."""


def find_candidates(
    view: View,
    plane: NDArray[np.float32],
    asking: Asking,
    peaks: NDArray[np.float64] | None = None,
    also: NDArray[np.float32] | None = None,
) -> list[FoundMask]:
    """Masks that may be objects.

    Args:
        view: of the plane.
        plane: ``(c, y, x)``.
        asking: where to ask.
        peaks: what makes maps of similarity: ``Memory.peaks``. Needed for ``asking.peaks``.
        also: more points to ask at, ``(n, 2)``.
    """
    points = [] if also is None else [also]
    spacing = asking.diameters[0] / 2
    per_side = asking.points_per_side
    if per_side is None:
        per_side = min(max(ceil(max(view.size) / spacing), _FEWEST), _MOST)
    points.append(grid_points(view.size, per_side))
    if asking.peaks and peaks is not None:
        grid = view.features
        for similarity in similarity_maps(grid.values.detach().float().cpu().numpy(), peaks):
            points.append(peak_points(similarity, grid.step, spacing, view.size, _PEAK))
    if asking.blobs:
        points.append(blob_points(plane, asking.diameters))
    apart = asking.diameters[0] * _SAME_POINT
    if asking.points_per_side:  # a grid that was asked for is not thinned out
        apart = min(apart, min(view.size) / per_side / 2)
    every = merge_points(np.concatenate(points), apart)
    least, most = max(asking.areas[0], 1), asking.areas[1]
    found = view.answer(every) if len(every) else []
    return [
        one
        for one in found
        if (area := np.count_nonzero(one.mask)) >= least and (not most or area <= most)
    ]


def similarity_maps(
    features: NDArray[np.float32], peaks: NDArray[np.float64]
) -> NDArray[np.float32]:
    """How similar each cell is to each class, ``(classes, gy, gx)``: near 1 in examples, near 0
    around them.

    Args:
        features: ``(d, gy, gx)``.
        peaks: ``(classes, d + 1)``.
    """
    maps = np.tensordot(peaks[:, :-1].astype(np.float32), features, 1)
    found: NDArray[np.float32] = maps + peaks[:, -1].astype(np.float32)[:, None, None]
    return found

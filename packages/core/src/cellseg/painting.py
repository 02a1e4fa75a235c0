"""Turning overlapping masks into one label image: the better score wins, always.

Backends that propose masks one by one (from prompts or boxes) share this, so that an overlap
never depends on the order in which a model happened to find things.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, Segmentation


def paint(
    masks: Sequence[NDArray[np.bool_]],
    corners: Sequence[ZYX],
    scores: Sequence[float],
    shape: ZYX,
) -> Segmentation:
    """Paint masks into a tile, each voxel for the mask with the highest score that covers it.

    Args:
        masks: each ``(z, y, x)`` bool, cut to its bounding box; parts beyond the tile are cut off.
        corners: for each mask where its first voxel lies in the tile, ``(z, y, x)``.
        scores: confidence of each mask, 0 to 1. Of equal ones the larger mask wins, then the one
            whose corner comes first, then the one given first.
        shape: ``(z, y, x)`` of the tile.

    Returns:
        Labels uint32, 1 to n by falling score, without gaps: a mask that others cover completely
        gets none; and the score of each.

    Raises:
        ValueError: the three lists differ in length, or a score is not between 0 and 1.
    """
    if not len(masks) == len(corners) == len(scores):
        raise ValueError(f"{len(masks)} masks, {len(corners)} corners and {len(scores)} scores.")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("Scores lie between 0 and 1.")
    order = sorted(
        range(len(masks)), key=lambda i: (-scores[i], -int(masks[i].sum()), tuple(corners[i]), i)
    )
    labels = np.zeros(shape, np.uint32)
    kept: dict[int, float] = {}
    for index in order:
        inside = tuple(
            slice(max(start, 0), min(start + length, size))
            for start, length, size in zip(corners[index], masks[index].shape, shape, strict=True)
        )
        if any(part.start >= part.stop for part in inside):
            continue
        cut = tuple(
            slice(part.start - start, part.stop - start)
            for part, start in zip(inside, corners[index], strict=True)
        )
        free = masks[index][cut] & (labels[inside] == 0)
        if free.any():
            kept[len(kept) + 1] = float(scores[index])
            labels[inside][free] = len(kept)
    return Segmentation(labels, kept)


def largest_pieces(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Labels with only the largest piece of each, of equal ones the first; the rest is background.

    Args:
        labels: ``(y, x)``. Pixels that share a corner are connected.
    """
    import cc3d

    pieces, count = cc3d.connected_components(labels, connectivity=8, return_N=True)
    of = np.zeros(count + 1, np.uint32)
    of[pieces.ravel()] = labels.ravel()
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    order = np.lexsort((np.arange(count + 1), -sizes, of))
    later = np.ones(count + 1, bool)
    later[order[np.unique(of[order], return_index=True)[1]]] = False
    of[later] = 0
    left: NDArray[np.uint32] = of[pieces]
    return left

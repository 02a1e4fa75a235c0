"""From proposed masks, which may overlap, to the objects of a tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellseg.data import Segmentation
from cellseg.engine.holes import fill_holes
from cellseg.painting import largest_pieces, paint
from cellseg.torch.masks import FoundMask


def painted(
    found: Sequence[FoundMask],
    size: tuple[int, int],
    *,
    min_size: int = 0,
    in_one_piece: bool = False,
    without_holes: bool = False,
) -> Segmentation:
    """Paint masks into a tile: each pixel goes to the mask with the best score that covers it.

    Args:
        found: masks; scores beyond 0 to 1 are cut off.
        size: of the tile, ``(y, x)``.
        min_size: objects with fewer pixels, in their masks or of what stays of them, are left out.
        in_one_piece: of an object in several pieces, keep the largest.
        without_holes: fill holes that hold no other object, of any size.

    Returns:
        Labels ``(1, y, x)`` uint32, 1 to n by falling score, and the score of each.
    """
    found = [one for one in found if np.count_nonzero(one.mask) >= max(min_size, 1)]
    drawn = paint(
        [one.mask[None] for one in found],
        [(0, *one.corner) for one in found],
        [min(max(one.score, 0.0), 1.0) for one in found],
        (1, *size),
    )
    labels = np.asarray(drawn.labels[0], np.uint32)
    if in_one_piece:
        labels = largest_pieces(labels)
    if without_holes:
        labels = np.asarray(fill_holes(labels[None], labels.size)[0], np.uint32)
    sizes = np.bincount(labels.ravel(), minlength=1)
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    scores = {int(table[i]): drawn.scores[int(i)] for i in np.flatnonzero(kept)}
    return Segmentation(table[labels][None], scores)


def uncovered(found: Sequence[FoundMask], size: tuple[int, int], most: float) -> list[int]:
    """Masks that better ones do not cover; an object that is left out covers nothing.

    Args:
        found: masks, the best first.
        size: of the tile, ``(y, x)``.
        most: the part of a mask that those before it may cover, 0 to 1.

    Returns:
        Indices of those kept, rising.
    """
    taken, kept = np.zeros(size, bool), []
    for index, one in enumerate(found):
        (y, x), (height, width) = one.corner, one.mask.shape
        below = taken[y : y + height, x : x + width]
        if np.count_nonzero(one.mask & below) <= most * np.count_nonzero(one.mask):
            below |= one.mask
            kept.append(index)
    return kept

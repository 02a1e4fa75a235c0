"""From proposed masks, which may overlap, to the objects of a tile."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from cellseg import Segmentation
from cellseg.painting import paint
from cellseg.torch.masks import FoundMask


def painted(
    found: Sequence[FoundMask],
    size: tuple[int, int],
    *,
    min_size: int = 0,
    in_one_piece: bool = False,
) -> Segmentation:
    """Paint masks into a tile: each pixel goes to the mask with the best score that covers it.

    Args:
        found: masks; scores beyond 0 to 1 are cut off.
        size: of the tile, ``(y, x)``.
        min_size: objects with fewer pixels, in their masks or of what stays of them, are left out.
        in_one_piece: of an object in several pieces, keep the largest.

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
        labels = _largest_pieces(labels)
    sizes = np.bincount(labels.ravel(), minlength=1)
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    scores = {int(table[i]): drawn.scores[int(i)] for i in np.flatnonzero(kept)}
    return Segmentation(table[labels][None], scores)


def _largest_pieces(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Labels ``(y, x)`` with only the largest piece of each, the first one of equals; pixels that
    share a corner are connected."""
    pieces, count = cc3d.connected_components(labels, connectivity=8, return_N=True)
    of = np.zeros(count + 1, np.uint32)
    of[pieces.ravel()] = labels.ravel()
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    order = np.lexsort((np.arange(count + 1), -sizes, of))
    first = np.ones(count + 1, bool)
    first[1:] = of[order][1:] != of[order][:-1]
    kept = np.zeros(count + 1, bool)
    kept[order[first]] = True
    result: NDArray[np.uint32] = np.where(kept[pieces], labels, np.uint32(0))
    return result

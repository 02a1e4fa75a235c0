"""Automatic prompt generation: what the decoder says becomes points, which Segment Anything answers
(arXiv:2603.17845)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg import Segmentation
from cellseg.torch.mask_painting import painted
from cellseg.torch.masks import FoundMask, suppress_masks
from cellseg_microsam.ais import Smoothed
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved

_MARGIN = 0.01
"""How much larger than an answer the box around it is, on each side, in parts of its length."""


def find_points(maps: NDArray[np.float32], options: Resolved) -> NDArray[np.int64]:
    """A point in each seed: the pixel that is farthest from where the seed ends.

    The border of the image counts as such an end. Of pixels equally far, the first one.

    Args:
        maps: of one image, ``(3, y, x)``: foreground, distance from the centre, from the boundary.
        options: thresholds.

    Returns:
        ``(n, 2)``, y and x.
    """
    import edt

    seeds = Smoothed.of(maps, options).seeds(options, 4)
    inner = np.zeros(seeds.shape, np.uint8)
    inner[1:-1, 1:-1] = seeds[1:-1, 1:-1] > 0
    depth = edt.edt(inner).ravel()
    pixels = np.flatnonzero(seeds)
    ids = seeds.ravel()[pixels]
    order = np.lexsort((pixels, -depth[pixels], ids))
    first = np.unique(ids[order], return_index=True)[1]
    return np.stack(np.unravel_index(pixels[order][first], seeds.shape), 1)


def find_instances(prompted: Prompted, maps: NDArray[np.float32]) -> Segmentation:
    """Objects that answer points in the seeds.

    Each seed is prompted by a point. With ``refine_with_boxes`` each answer is prompted once more,
    with the box around it. Of answers that overlap by more than ``nms_threshold`` (IoU of their
    masks) the best one stays; those below ``min_size`` pixels are left out. Pixels of several
    objects go to the best one; what this cuts off from the rest of an object is background.

    Args:
        prompted: the image.
        maps: of the decoder, ``(3, y, x)``.

    Returns:
        Labels ``(1, y, x)`` uint32, by falling score, and the score of each, 0 to 1: the estimated
        IoU, times the stability of the mask.
    """
    points = find_points(maps, prompted.options)
    return chosen(answered(prompted, points), prompted.frame.size, prompted.options)


def answered(prompted: Prompted, points: NDArray[np.int64]) -> list[FoundMask | None]:
    """The answer to each point ``(n, 2)``, y and x of a pixel; None where the mask is empty."""
    if not len(points):
        return []
    places = torch.from_numpy(points[:, None, ::-1] + 0.5).float()
    options = prompted.options
    found = prompted.answers(
        places, torch.ones(len(points), 1), multimask=options.multimask, stable=True
    )
    if options.refine_with_boxes and any(found):
        boxes = [_box(one, prompted.frame.size) for one in found if one is not None]
        again = iter(prompted.answers(boxes=torch.tensor(boxes), stable=True))
        found = [None if one is None else next(again) for one in found]
    return found


def chosen(
    found: Sequence[FoundMask | None], size: tuple[int, int], options: Resolved
) -> Segmentation:
    """The objects among the answers for an image of ``size``."""
    least = max(options.min_size, 1)
    large = [one for one in found if one is not None and np.count_nonzero(one.mask) >= least]
    kept = suppress_masks(large, options.nms_threshold)
    return painted([large[i] for i in kept], size, min_size=least, in_one_piece=True)


def _box(found: FoundMask, size: tuple[int, int]) -> list[float]:
    """Around an answer, a little larger, within an image of ``size``: x y x y."""
    low, high = [], []
    for corner, extent, length in zip(found.corner, found.mask.shape, size, strict=True):
        low.append(max(corner - _MARGIN * extent, 0.0))
        high.append(min(corner + (1 + _MARGIN) * extent, float(length)))
    return [*low[::-1], *high[::-1]]

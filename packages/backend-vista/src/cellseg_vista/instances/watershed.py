"""Seeded watershed: flood from the deep places, then join pieces by their embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg_vista.instances.graph import Labels, components, joined, smoothed
from cellseg_vista.predict_options import VistaPredictOptions

_STEEP = 0.5
"""Distance in the embedding, from one voxel to the next, that lets little of the depth stand."""
_LEVELS = np.float32(1 << 14)
"""Steps of the depth that the flood tells apart."""


def watershed(
    mask: NDArray[np.bool_],
    distance: NDArray[np.float32],
    embedding: NDArray[np.float32],
    options: VistaPredictOptions,
) -> Labels:
    """Cut one class's foreground into objects.

    Each connected area that is deeper than ``seed_threshold`` floods the foreground around it; a
    part of the foreground without such an area is a piece of its own. Neighbouring pieces whose
    mean embeddings are nearer than ``bandwidth`` are joined. With the ``flood`` of embeddings,
    depths first shrink where the (slightly smoothed) embedding changes from voxel to voxel: seeds
    do not cross such borders, and the flood meets there.

    Args:
        mask: ``(*s)`` the foreground.
        distance: ``(*s)``.
        embedding: ``(e, *s)``.
        options: thresholds.
    """
    if options.flood == "embedding":
        steep = _steepness(smoothed(embedding, mask), mask)
        distance = distance * np.exp(-((steep / _STEEP) ** 2))
    seeds = seeded(mask & (distance > options.seed_threshold), mask)
    pieces = flooded(distance, seeds, mask)
    return joined(pieces, embedding, options.bandwidth) if options.bandwidth > 0 else pieces


def flooded(distance: NDArray[np.float32], seeds: Labels, mask: NDArray[np.bool_]) -> Labels:
    """Give the voxels of ``mask`` to the seeds, the deep ones first."""
    from bioimage_cpp.segmentation import watershed

    # It sorts heights into 2^16 steps between the least and the greatest of the image. Coarser
    # steps of our own stay apart in them, so that a tile is flooded as the whole image is.
    height = np.round(distance * -_LEVELS) / _LEVELS
    pieces: Labels = watershed(height.astype(np.float32, copy=False), seeds, mask=mask)
    return pieces


def seeded(starts: NDArray[np.bool_], mask: NDArray[np.bool_]) -> Labels:
    """Connected areas of ``starts`` as seeds, and all of each part of ``mask`` that has none."""
    seeds, count = components(starts)
    areas, number = components(mask)
    met = np.zeros(number + 1, bool)
    met[areas[seeds > 0]] = True
    return np.where(mask & ~met[areas], areas + np.int32(count), seeds)


def _steepness(embedding: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean distance ``(*s)`` of embeddings to those of the neighbours within ``mask``."""
    total = np.zeros(mask.shape, np.float32)
    count = np.zeros(mask.shape, np.uint8)
    for axis in range(mask.ndim):
        rest = (slice(None),) * axis
        after, before = (*rest, slice(1, None)), (*rest, slice(None, -1))
        both = mask[after] & mask[before]
        step = np.zeros(both.shape, np.float32)
        for plane in embedding:
            step += (plane[after] - plane[before]) ** 2
        step = np.where(both, np.sqrt(step), 0)
        for side in (after, before):
            total[side] += step
            count[side] += both
    return total / np.maximum(count, 1)

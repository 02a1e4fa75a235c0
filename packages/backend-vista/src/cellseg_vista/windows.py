"""A tile seen through overlapping windows of one size: ``--patch-size``.

Classes and depths of the windows become one map. Embeddings do not: those of two windows have no
common frame. So each window finds its own objects, and what overlaps is joined as tiles are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, Image, Segmentation
from cellseg.engine.plan import Box, Plan
from cellseg.engine.stitch import PartsInMemory, stitch
from cellseg.engine.tile import NO_CLASS, TileLabels, tile_labels
from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.predict_options import VistaPredictOptions

Look = Callable[[Image], PixelMaps]
"""The network's maps of an image ``(c, z, y, x)``; without z for networks of planes."""
_SIGMA = 0.125
"""Of the gaussian, as a part of the window."""
_LEAST = 0.5
"""Objects of two windows are one when they share this part of the smaller one, as for tiles."""


def window_plan(shape: ZYX, size: ZYX) -> Plan:
    """Cores of half a window, so that windows overlap by half; every voxel is in one core.

    Args:
        shape: of the tile.
        size: of the windows; along an axis that is no longer there is one.
    """
    core, halo = [], []
    for length, extent in zip(shape, size, strict=True):
        half = -(-extent // 2)
        core.append(length if length <= extent else half)
        halo.append(0 if length <= extent else (extent - half) // 2)
    return Plan(shape, (core[0], core[1], core[2]), (halo[0], halo[1], halo[2]))


def window(plan: Plan, size: ZYX, number: int) -> Box:
    """The window about a core: moved inwards at the border of the tile, never cut by it."""
    start, stop = [], []
    for low, length, extent in zip(plan.read_box(number).start, plan.shape, size, strict=True):
        first = max(min(low, length - extent), 0)
        start.append(first)
        stop.append(min(first + extent, length))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def segment_windows(
    image: Image, look: Look, options: VistaPredictOptions, spacing: tuple[float, ...]
) -> Segmentation:
    """Objects of one tile, with its probabilities.

    Args:
        image: ``(c, z, y, x)``.
        look: runs the network; called twice for each window.
        options: with a ``patch_size``.
        spacing: voxel size, one number for each axis that the network has.
    """
    assert options.patch_size is not None
    shape: ZYX = (image.shape[1], image.shape[2], image.shape[3])
    size = options.patch_size
    plan = window_plan(shape, size)
    semantic = _aggregated(image, look, plan, options)
    parts: list[TileLabels] = []
    for number in range(len(plan)):
        box, read = window(plan, size, number), plan.read_box(number)
        maps = look(_cut(image, box))
        embedding = maps.embedding.reshape(-1, *box.shape)[(slice(None), *read.within(box))]
        seen = semantic[(slice(None), *read.slices)]
        if len(spacing) == 2:
            seen, embedding = seen[:, 0], embedding[:, 0]
        found = find_instances(PixelMaps(seen[:-1], seen[-1], embedding), options, spacing)
        labels = found.labels.reshape(read.shape)
        parts.append(tile_labels(Segmentation(labels, found.scores, found.classes), plan, number))
    objects = PartsInMemory([part.objects for part in parts])
    whole = stitch(plan, objects, lambda i, d: parts[i].strips[d], _LEAST)
    joined = np.zeros(shape, np.uint32)
    for number, part in enumerate(parts):
        joined[plan.core_box(number).slices] = np.take(whole.table(number), part.core)
    score, kind = whole.objects.score, whole.objects.kind
    return Segmentation(
        joined,
        {i + 1: float(s) for i, s in enumerate(score) if not np.isnan(s)},
        {i + 1: int(k) for i, k in enumerate(kind) if k != NO_CLASS},
        semantic[:-1],
    )


def _aggregated(
    image: Image, look: Look, plan: Plan, options: VistaPredictOptions
) -> NDArray[np.float32]:
    """Probabilities of all classes, and the depth as the last, ``(k + 1, z, y, x)``."""
    assert options.patch_size is not None
    total: NDArray[np.float32] | None = None
    weights = np.zeros(plan.shape, np.float32)
    for box in _windows(plan, options.patch_size):
        maps = look(_cut(image, box))
        seen = np.concatenate([maps.probabilities, maps.distance[None]])
        seen = seen.reshape(-1, *box.shape)
        if total is None:
            total = np.zeros((len(seen), *plan.shape), np.float32)
        here = (slice(None), *box.slices)
        if options.aggregation == "max":
            np.maximum(total[here], seen, out=total[here])
        else:
            weight = _weight(box.shape, options.aggregation)
            total[here] += weight * seen
            weights[box.slices] += weight
    assert total is not None
    if options.aggregation == "max":
        total[:-1] /= total[:-1].sum(0)
    else:
        total /= weights
    return total


def _windows(plan: Plan, size: ZYX) -> Iterator[Box]:
    """Each window once: at the border two cores may share one."""
    yield from dict.fromkeys(window(plan, size, number) for number in range(len(plan)))


def _weight(shape: ZYX, aggregation: str) -> NDArray[np.float32]:
    """How much each voxel of a window counts."""
    if aggregation == "average":
        return np.ones(shape, np.float32)
    weight = np.ones(shape, np.float32)
    for axis, length in enumerate(shape):
        away = (np.arange(length) - (length - 1) / 2) / (_SIGMA * length)
        line = np.exp(-0.5 * away**2).astype(np.float32)
        weight *= line.reshape([-1 if i == axis else 1 for i in range(3)])
    return weight


def _cut(image: Image, box: Box) -> Image:
    return np.ascontiguousarray(image[(slice(None), *box.slices)])

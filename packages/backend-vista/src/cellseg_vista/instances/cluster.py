"""Clustering of embeddings, block by block: mean shift from dense, deep seeds.

Mean shift: Comaniciu & Meer, doi:10.1109/34.1000236. Networks that look at surroundings give
distant objects the same embedding, so what is alike is one object only where it is connected.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg_vista.instances.graph import Labels, blocks, completed, components, joined
from cellseg_vista.predict_options import VistaPredictOptions

_BLOCK = {2: 128, 3: 32}
"""Edge of a block in voxels of the finest axis."""
_CELL = {2: 8, 3: 6}
"""Edge of the cells with one seed each."""
_SHIFTS = 4
_SUPPORT = 8
"""Voxels that a seed must have around it in the embedding."""


def cluster(
    mask: NDArray[np.bool_],
    distance: NDArray[np.float32],
    embedding: NDArray[np.float32],
    options: VistaPredictOptions,
    spacing: tuple[float, ...],
) -> Labels:
    """Cut one class's foreground into objects.

    In each block of the image, the deepest voxel of each small cell is a seed, if it is deeper
    than ``seed_threshold``. The seeds move to the mean of the voxels within ``bandwidth`` in the
    embedding, at first of those in their cell, then of those in the block; the densest go first
    and later ones that come near are dropped. Each voxel goes to the nearest seed within
    ``bandwidth``. Connected parts, also those of neighbouring blocks, are one object if their
    means are within ``bandwidth``. Voxels far from all seeds, and parts below ``min_size``, go to
    the touching object that is nearest in the embedding.

    Args:
        mask: ``(*s)`` the foreground.
        distance: ``(*s)``.
        embedding: ``(e, *s)``.
        options: thresholds.
        spacing: voxel size along ``*s``.
    """
    near: Labels = np.zeros(mask.shape, np.int32)
    count = 0
    finest = min(spacing)
    cell = tuple(max(round(_CELL[mask.ndim] * finest / size), 1) for size in spacing)
    edge = tuple(
        max(round(_BLOCK[mask.ndim] * finest / size / c), 1) * c
        for size, c in zip(spacing, cell, strict=True)
    )
    for box in blocks(mask.shape, edge):
        where = mask[box]
        if not where.any():
            continue
        points = np.ascontiguousarray(embedding[(slice(None), *box)][:, where].T)
        place = np.nonzero(where)
        cells = np.ravel_multi_index(
            tuple(p // c for p, c in zip(place, cell, strict=True)),
            tuple(-(-n // c) for n, c in zip(where.shape, cell, strict=True)),
        )
        centres = _centres(points, distance[box][where], cells, options)
        if len(centres):
            near[box][where] = _nearest(points, centres, options.bandwidth, count)
            count += len(centres)
    parts, _ = components(near)
    parts = completed(parts, np.zeros_like(mask), embedding, _SUPPORT)
    parts = joined(parts, embedding, options.bandwidth)
    return completed(parts, mask, embedding, max(options.min_size, 1))


def _centres(
    points: NDArray[np.float32],
    depth: NDArray[np.float32],
    cells: NDArray[np.intp],
    options: VistaPredictOptions,
) -> NDArray[np.float32]:
    """Modes ``(k, e)`` of a block's embeddings ``(n, e)``, further apart than the bandwidth."""
    limit = options.bandwidth**2
    order = np.lexsort((np.arange(len(cells)), -depth, cells))
    first = np.flatnonzero(np.diff(cells[order], prepend=-1))
    ends = np.append(first[1:], len(order))
    seeds = []
    for start, stop in zip(first, ends, strict=True):
        if depth[order[start]] <= options.seed_threshold:
            continue
        around = points[order[start:stop]]
        centre = around[0]
        for _ in range(2):
            inside = _away(around, centre) < limit
            if not inside.any():
                break
            centre = around[inside].mean(0)
        seeds.append((int(inside.sum()), len(seeds), centre))
    seeds.sort(key=lambda seed: (-seed[0], seed[1]))
    found = np.zeros((0, points.shape[1]), np.float32)
    for _, _, centre in seeds:
        if len(found) and _away(found, centre).min() < limit:
            continue
        supported = False
        for _ in range(_SHIFTS):
            inside = _away(points, centre) < limit
            supported = np.count_nonzero(inside) >= _SUPPORT
            if not supported:
                break
            before, centre = centre, points[inside].mean(0)
            if float(((centre - before) ** 2).sum()) < 1e-4 * limit:
                break
        if supported and (not len(found) or _away(found, centre).min() >= limit):
            found = np.concatenate([found, centre[None]])
    return found


def _nearest(
    points: NDArray[np.float32], centres: NDArray[np.float32], bandwidth: float, count: int
) -> NDArray[np.int32]:
    """``count`` + 1, 2, … by the nearest centre, 0 beyond the bandwidth."""
    best = np.full(len(points), bandwidth**2, np.float32)
    choice = np.zeros(len(points), np.int32)
    for number, centre in enumerate(centres, count + 1):
        away = _away(points, centre)
        closer = away < best
        best[closer], choice[closer] = away[closer], number
    return choice


def _away(points: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    difference = points - centre
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", difference, difference)
    return squares

"""Mutex watershed of affinities that are made from embeddings and depths.

Wolf et al., The Mutex Watershed and its Objective, doi:10.1109/TPAMI.2020.2980827; affinities of
embeddings as in Lee et al., arXiv:1909.09872.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from cellseg_vista.instances.graph import Labels, completed
from cellseg_vista.predict_options import VistaPredictOptions

_REACHES = (3, 9)
"""How far the long edges go, in voxels of the finest axis."""
_SHALLOW = 0.5
"""What is left of the attraction between voxels at the edge of an object."""
_STEEPNESS = 3.0
"""How quickly attraction fades about twice the bandwidth."""
_STRIDE = 2
"""Only every so many voxels along each axis have long edges."""


def mutex(
    mask: NDArray[np.bool_],
    distance: NDArray[np.float32],
    embedding: NDArray[np.float32],
    options: VistaPredictOptions,
    spacing: tuple[float, ...],
) -> Labels:
    """Cut one class's foreground into objects.

    Neighbouring voxels attract each other the more, the nearer their embeddings are and the
    deeper both lie in their objects. Voxels further apart in the image repel each other the more,
    the further apart their embeddings are and the deeper the dip of the distance map between
    them. Two voxels twice the ``bandwidth`` apart in the embedding attract and repel each other
    alike. The strongest edges come first. Objects below ``min_size`` voxels go to the touching one
    that is nearest in the embedding.

    Args:
        mask: ``(*s)`` the foreground.
        distance: ``(*s)``.
        embedding: ``(e, *s)``.
        options: thresholds.
        spacing: voxel size along ``*s``.
    """
    from bioimage_cpp.affinities import compute_embedding_distances
    from bioimage_cpp.segmentation import mutex_watershed

    short, long = (
        [o for o in some if all(abs(step) < n for step, n in zip(o, mask.shape, strict=True))]
        for some in offsets(spacing)
    )
    if not short:  # a single voxel
        return mask.astype(np.int32)
    weights = compute_embedding_distances(embedding, short + long, norm="l2")
    for weight, offset in zip(weights, short, strict=False):
        wide = tuple(_REACHES[0] * o for o in offset)
        if wide in long:  # a border is some voxels wide, so look beyond both voxels as well
            there = weights[len(short) + long.index(wide)]
            rest = (slice(None),) * offset.index(-1)
            inner, beyond = (*rest, slice(2, -1)), (*rest, slice(3, None))
            np.maximum(weight[inner], there[beyond], out=weight[inner])
    for weight, offset in zip(weights[: len(short)], short, strict=True):
        np.reciprocal(1 + (weight / (2 * options.bandwidth)) ** 2, out=weight)
        here, there = _ends(mask.shape, offset)
        weight[here] *= _SHALLOW + (1 - _SHALLOW) * np.minimum(distance[here], distance[there])
    for weight, offset in zip(weights[len(short) :], long, strict=True):
        _alike(weight, options.bandwidth)
        here, _ = _ends(mask.shape, offset)
        weight[here] *= 1 - _dip(distance, offset)
        np.subtract(1, weight, out=weight)
    found = mutex_watershed(
        weights,
        short + long,
        len(short),
        strides=[_STRIDE if size < 2 * min(spacing) else 1 for size in spacing],
        mask=mask,
    )
    return completed(found.astype(np.int32), mask, embedding, max(options.min_size, 1))


def _alike(apart: NDArray[np.float32], bandwidth: float) -> None:
    """Distances in the embedding to affinities from 0 to 1, in place; 1/2 at two bandwidths."""
    apart -= 2 * bandwidth
    apart *= _STEEPNESS / bandwidth
    np.exp(np.minimum(apart, 30, out=apart), out=apart)
    apart += 1
    np.reciprocal(apart, out=apart)


Offset = tuple[int, ...]


def offsets(spacing: tuple[float, ...]) -> tuple[list[Offset], list[Offset]]:
    """The short and the long edges, in voxels; the long ones reach as far along each axis.

    Args:
        spacing: voxel size, one number for each axis.
    """
    dims, finest = len(spacing), min(spacing)
    short = [tuple(-int(i == axis) for i in range(dims)) for axis in range(dims)]
    long: list[Offset] = []
    for reach in _REACHES:
        steps = [max(round(reach * finest / size), 1) for size in spacing]
        for axis in range(dims):
            long.append(tuple(-steps[i] * int(i == axis) for i in range(dims)))
        for one, other in itertools.combinations(range(dims), 2):
            for sign in (-1, 1):
                step = [0] * dims
                step[one] = -round(steps[one] * 0.7) or -1
                step[other] = sign * (round(steps[other] * 0.7) or 1)
                long.append(tuple(step))
    return short, [o for o in dict.fromkeys(long) if o not in short]


def _ends(shape: Offset, offset: Offset) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where edges start, and where they end."""
    here = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, shape, strict=True))
    return here, there


def _dip(distance: NDArray[np.float32], offset: Offset) -> NDArray[np.float32]:
    """How much lower the depth gets between the ends of each edge than at both ends."""
    here, there = _ends(distance.shape, offset)
    lowest = np.minimum(distance[here], distance[there])
    ends = lowest.copy()
    steps = max(abs(o) for o in offset)
    for step in range(1, steps):
        between = tuple(round(o * step / steps) for o in offset)
        inner = tuple(slice(s.start + b, s.stop + b) for s, b in zip(here, between, strict=True))
        np.minimum(lowest, distance[inner], out=lowest)
    result: NDArray[np.float32] = ends - lowest
    return result

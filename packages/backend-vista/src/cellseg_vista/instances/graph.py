"""Pieces of a label image: which touch, their mean embeddings, and giving away what is left.

Everything is linear in the voxels; label images are int32 of any number of axes, 0 is no piece.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]


def components(image: NDArray[np.integer] | NDArray[np.bool_]) -> tuple[Labels, int]:
    """Connected areas of equal values, over the faces of voxels: numbered, and how many."""
    import cc3d

    if image.dtype == np.bool_:
        image = image.view(np.uint8)
    found, count = cc3d.connected_components(
        np.ascontiguousarray(image),
        connectivity=4 if image.ndim == 2 else 6,
        return_N=True,
        out_dtype=np.uint32,
    )
    return found.view(np.int32), int(count)


def neighbours(pieces: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of pieces that share a face of a voxel, each once, the lower first."""
    step = int(pieces.max(initial=0)) + 1
    codes = []
    for axis in range(pieces.ndim):
        rest = (slice(None),) * axis
        a, b = pieces[(*rest, slice(1, None))], pieces[(*rest, slice(None, -1))]
        touch = np.flatnonzero((a != b) & (a > 0) & (b > 0))
        a, b = a.reshape(-1)[touch], b.reshape(-1)[touch]
        codes.append(np.minimum(a, b).astype(np.int64) * step + np.maximum(a, b))
    pairs = np.unique(np.concatenate(codes))
    return pairs // step, pairs % step


def means(
    pieces: Labels, embedding: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean embedding ``(n + 1, e)`` and size ``(n + 1,)`` of each piece.

    Row 0 stands for what is no piece; its mean is 0.
    """
    flat = np.ascontiguousarray(pieces).reshape(-1)
    if not flat.size:
        return np.zeros((1, len(embedding))), np.zeros(1, np.int64)
    # Runs of equal pieces first: a tenth of the numbers, and no gathering.
    change = flat[1:] != flat[:-1]
    change[pieces.shape[-1] - 1 :: pieces.shape[-1]] = True  # short, so that float32 will do
    start = np.append(0, np.flatnonzero(change) + 1)
    of = flat[start]
    count = int(of.max()) + 1
    sizes = np.bincount(of, np.diff(start, append=flat.size), count).astype(np.int64)
    sums = [
        np.bincount(of, np.add.reduceat(plane.reshape(-1), start), count) for plane in embedding
    ]
    mean = np.stack(sums, 1) / np.maximum(sizes, 1)[:, None]
    mean[0] = 0
    return mean, sizes


def joined(pieces: Labels, embedding: NDArray[np.float32], bandwidth: float) -> Labels:
    """Join touching pieces whose mean embeddings are nearer than ``bandwidth``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = neighbours(pieces)
    mean, sizes = means(pieces, embedding)
    near = np.linalg.norm(mean[one] - mean[other], axis=1) < bandwidth
    one, other = one[near], other[near]
    if not len(one):
        return pieces
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(sizes), len(sizes)))
    _, group = connected_components(graph, directed=False)
    # Row 0, the background, is a group of its own, and as the first it has the number 0.
    found: Labels = group.astype(np.int32)[pieces]
    return found


def completed(
    pieces: Labels, mask: NDArray[np.bool_], embedding: NDArray[np.float32], least: int
) -> Labels:
    """Every voxel of ``mask`` to a piece; those below ``least`` voxels to what they touch.

    The voxels to give away go, layer by layer, to the touching piece whose mean embedding is
    nearest. Connected areas that touch none become pieces of their own.
    """
    mean, sizes = means(pieces, embedding)
    kept = sizes >= least
    kept[0] = False
    pieces = np.where(kept[pieces], pieces, 0)
    pieces = _grown(pieces, mask, embedding, mean.astype(np.float32))
    left = mask & (pieces == 0)
    if left.any():
        extra, _ = components(left)
        pieces = np.where(left, extra + np.int32(len(sizes)), pieces)
    return pieces


def _grown(
    pieces: Labels,
    mask: NDArray[np.bool_],
    embedding: NDArray[np.float32],
    mean: NDArray[np.float32],
) -> Labels:
    framed = np.pad(pieces, 1)
    flat, open_ = framed.reshape(-1), np.pad(mask & (pieces == 0), 1).reshape(-1)
    shape = framed.shape
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    steps = np.array([sign * stride for stride in strides for sign in (-1, 1)])
    missing = np.flatnonzero(open_)
    if not len(missing):
        return pieces
    layer = missing[(flat[missing[:, None] + steps] > 0).any(1)]
    values = embedding.reshape(len(embedding), -1)
    inner = np.array(pieces.shape)
    while len(layer):
        place = np.stack(np.unravel_index(layer, shape)) - 1
        own = values[:, np.ravel_multi_index(tuple(place), tuple(inner))].T
        best = np.full(len(layer), np.inf, np.float32)
        choice = np.zeros(len(layer), np.int32)
        for step in steps:
            beside = flat[layer + step]
            away = ((own - mean[beside]) ** 2).sum(1)
            better = (beside > 0) & ((away < best) | ((away == best) & (beside < choice)))
            best[better], choice[better] = away[better], beside[better]
        flat[layer], open_[layer] = choice, False
        around = (layer[:, None] + steps).reshape(-1)
        layer = np.unique(around[open_[around]])
    found: Labels = framed[(slice(1, -1),) * framed.ndim]
    return found


def blocks(shape: tuple[int, ...], edge: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Boxes of at most ``edge`` that cover an array, in C order."""
    cuts = [
        [slice(a, b) for a, b in itertools.pairwise([*range(0, n, e), n])]
        for n, e in zip(shape, edge, strict=True)
    ]
    return list(itertools.product(*cuts))


def smoothed(embedding: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Means ``(e, *s)`` over the voxels of ``mask`` in a cube of 3 around each."""
    from scipy.ndimage import uniform_filter

    weight = np.maximum(uniform_filter(mask.astype(np.float32), 3), 1e-6)
    result = np.empty_like(embedding)
    for plane, smooth in zip(embedding, result, strict=True):
        uniform_filter(np.where(mask, plane, 0), 3, output=smooth)
        smooth /= weight
    return result

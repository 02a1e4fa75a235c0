"""From the network's maps to cells: seeds, a watershed, and joining pieces by their embeddings.

All of it is local, so a cell comes out the same in a tile as in the whole image; and each pixel
of the foreground belongs to some piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg_vista.predict_options import Vista2dPredictOptions


@dataclass(frozen=True)
class PixelMaps:
    """The network's maps of one plane, as numpy arrays."""

    foreground: NDArray[np.float32]
    """``(y, x)`` probability of being a cell."""
    distance: NDArray[np.float32]
    """``(y, x)`` how deep in its cell a pixel lies: 0 at the edge, 1 from halfway in."""
    embedding: NDArray[np.float32]
    """``(e, y, x)``."""


def find_instances(
    maps: PixelMaps, options: Vista2dPredictOptions
) -> tuple[NDArray[np.int32], dict[int, float]]:
    """Cut the foreground into cells.

    Each connected area that is deeper than ``seed_threshold`` floods the foreground around it
    (watershed of the distance map); a part of the foreground without such an area is a piece of
    its own. Neighbouring pieces whose mean embeddings are nearer than ``bandwidth`` are joined;
    cells below ``min_size`` pixels are dropped.

    Returns:
        Labels ``(y, x)``, 1, 2, … and 0 for background; and each cell's mean probability.
    """
    from skimage.segmentation import watershed

    mask = maps.foreground > options.foreground_threshold
    if not mask.any():
        return np.zeros(mask.shape, np.int32), {}
    seeds = _seeds(maps.distance, mask, options.seed_threshold)
    pieces = watershed(-maps.distance, seeds, mask=mask)
    if options.bandwidth > 0:
        pieces = _joined(pieces, maps.embedding, options.bandwidth)
    sizes = np.bincount(pieces.ravel())
    kept = sizes >= max(options.min_size, 1)
    kept[0] = False
    labels = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[pieces]
    total = np.bincount(labels.ravel(), weights=maps.foreground.ravel())
    scores = total[1:] / np.bincount(labels.ravel())[1:]
    return labels, {i + 1: float(min(score, 1.0)) for i, score in enumerate(scores)}


def _seeds(
    distance: NDArray[np.float32], mask: NDArray[np.bool_], threshold: float
) -> NDArray[np.int32]:
    import cv2

    count, seeds = cv2.connectedComponents(
        (mask & (distance > threshold)).astype(np.uint8), connectivity=4, ltype=cv2.CV_32S
    )
    _, areas = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    seeded = np.zeros(int(areas.max()) + 1, bool)
    seeded[areas[seeds > 0]] = True
    alone = mask & ~seeded[areas]
    return np.where(alone, areas + count, seeds)


def _joined(
    pieces: NDArray[np.int32], embedding: NDArray[np.float32], bandwidth: float
) -> NDArray[np.int32]:
    """Join neighbouring pieces whose mean embeddings are near."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = _neighbours(pieces)
    if len(one) == 0:
        return pieces
    where = pieces.ravel() > 0
    of = pieces.ravel()[where]
    ids, dense = np.unique(of, return_inverse=True)
    sizes = np.bincount(dense)
    mean = np.stack([np.bincount(dense, weights=plane.ravel()[where]) for plane in embedding], 1)
    mean /= sizes[:, None]
    one, other = np.searchsorted(ids, one), np.searchsorted(ids, other)
    near = np.linalg.norm(mean[one] - mean[other], axis=1) < bandwidth
    graph = coo_array(
        (np.ones(int(near.sum()), bool), (one[near], other[near])), shape=(len(ids), len(ids))
    )
    _, group = connected_components(graph, directed=False)
    new = np.zeros(int(ids[-1]) + 1, np.int32)
    new[ids] = group + 1
    return new[pieces]


def _neighbours(pieces: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of pieces that share an edge of a pixel, each once, the lower first."""
    step = int(pieces.max()) + 1
    codes = []
    for a, b in ((pieces[1:], pieces[:-1]), (pieces[:, 1:], pieces[:, :-1])):
        touch = (a != b) & (a > 0) & (b > 0)
        low, high = np.minimum(a[touch], b[touch]), np.maximum(a[touch], b[touch])
        codes.append(low.astype(np.int64) * step + high)
    pairs = np.unique(np.concatenate(codes))
    return pairs // step, pairs % step

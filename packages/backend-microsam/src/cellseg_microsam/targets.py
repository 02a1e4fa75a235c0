"""What the decoder should say about a patch, from its labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import UNKNOWN

_EPS = 1e-7


@dataclass(frozen=True, slots=True)
class Truth:
    """The labels of a patch as training takes them."""

    labels: NDArray[np.int32]
    """``(y, x)``: connected pieces of objects, 1 to n; 0 where there is none or it is not known."""
    known: NDArray[np.bool_]
    """``(y, x)``: where something is learned."""

    @classmethod
    def of(cls, labels: NDArray[np.uint32], smallest: int) -> Truth:
        """Take the labels of a patch apart.

        Args:
            labels: ``(y, x)`` ids, with or without classes, and ``UNKNOWN``.
            smallest: pieces with fewer pixels, as the edge of the patch cuts them off, count as
                not known.
        """
        import cc3d

        unknown = labels == UNKNOWN
        ids = np.where(unknown, np.uint32(0), labels)
        pieces = cc3d.connected_components(ids, connectivity=8, out_dtype=np.uint32)
        kept = np.bincount(pieces.ravel()) >= smallest
        kept[0] = True
        table = np.where(kept, np.cumsum(kept) - 1, 0).astype(np.int32)
        return cls(table[pieces], ~unknown & kept[pieces])


def distance_maps(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Foreground, distance to the centre, and nearness to the boundary.

    Those of micro-SAM (Archit et al. 2025, doi:10.1038/s41592-024-02580-4): the results are those
    of ``torch_em.transform.label.PerObjectDistanceTransform``, which takes three times as long, and
    many seconds to import in each loader process. The centre of an object is its centroid, or its
    deepest pixel where the centroid lies outside.

    Args:
        labels: ``(y, x)`` integers, connected objects 1 to n without gaps, 0 for background.

    Returns:
        ``(3, y, x)`` float32, 0 to 1: 1 in objects; the distance to the centre over the greatest
        one of the object; and 1 minus the distance to the object's rim over the greatest one. Both
        distances are 1 in the background.
    """
    import cv2

    maps = np.ones((3, *labels.shape), np.float32)
    inside = labels > 0
    maps[0] = inside
    y, x = np.nonzero(inside)
    if not len(y):
        return maps
    owner = labels[y, x]
    count = int(owner.max()) + 1
    rim = _rim(labels)
    depth = np.zeros(len(y), np.float64)
    if rim.any():
        whole = cv2.distanceTransform((~rim).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        depth = whole[y, x].astype(np.float64)
    deepest = _greatest(depth, owner, count)
    middle_y, middle_x = _centres(labels, y, x, owner, depth, deepest)
    away = np.hypot(y - middle_y[owner], x - middle_x[owner])
    maps[1, y, x] = away / (_greatest(away, owner, count)[owner] + _EPS)
    raised = deepest[owner] - depth
    maps[2, y, x] = raised / (_greatest(raised, owner, count)[owner] + _EPS)
    return maps


def _centres(
    labels: NDArray[np.integer],
    y: NDArray[np.intp],
    x: NDArray[np.intp],
    owner: NDArray[np.integer],
    depth: NDArray[np.float64],
    deepest: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pixel in the middle of each object, by its number."""
    sizes = np.maximum(np.bincount(owner), 1)
    middle_y = np.round(np.bincount(owner, y) / sizes).astype(np.intp)
    middle_x = np.round(np.bincount(owner, x) / sizes).astype(np.intp)
    outside = labels[middle_y, middle_x] != np.arange(len(sizes))
    at = np.flatnonzero(depth == deepest[owner])
    number, first = np.unique(owner[at], return_index=True)
    deep_y, deep_x = np.zeros_like(middle_y), np.zeros_like(middle_x)
    deep_y[number], deep_x[number] = y[at[first]], x[at[first]]
    return np.where(outside, deep_y, middle_y), np.where(outside, deep_x, middle_x)


def _greatest(
    values: NDArray[np.float64], owner: NDArray[np.integer], count: int
) -> NDArray[np.float64]:
    result = np.zeros(count)
    np.maximum.at(result, owner, values)
    return result


def _rim(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of objects with a neighbour, above, below, left or right, that is something else."""
    differs = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    differs[1:] |= down
    differs[:-1] |= down
    differs[:, 1:] |= across
    differs[:, :-1] |= across
    rim: NDArray[np.bool_] = differs & (labels > 0)
    return rim

"""What the network should say about a patch, from its labels; in two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def edges(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Voxels of objects that touch, also at a corner, a voxel of something else.

    Outside the patch there is no edge: what lies there is not known.

    Args:
        labels: ``(y, x)`` or ``(z, y, x)`` integers, 0 for background.
    """
    differs: NDArray[np.bool_] = _spread(labels, np.maximum, 1) != _spread(labels, np.minimum, 1)
    return differs & (labels > 0)


def depth(labels: NDArray[np.integer], spacing: Sequence[float] = ()) -> NDArray[np.float32]:
    """How deep in its object a voxel lies.

    Args:
        labels: ``(y, x)`` or ``(z, y, x)`` integers, 0 for background.
        spacing: of the voxels along each axis; by default 1.

    Returns:
        Float32 of the same shape: the Euclidean distance to the nearest voxel of something else,
        in voxels of the finest axis; 0 in the background. An object that fills the patch is
        infinitely deep.
    """
    import edt

    sides = np.asarray(spacing or (1.0,) * labels.ndim, np.float64)
    distance: NDArray[np.float32] = edt.edt(
        np.ascontiguousarray(labels.astype(np.uint32, copy=False)),
        anisotropy=tuple((sides / sides.min()).tolist()),
        black_border=False,
        parallel=1,
    )
    return distance


def relative(labels: NDArray[np.integer], depths: NDArray[np.float32]) -> NDArray[np.float32]:
    """The depths over the greatest one of each object: 1 where it is deepest.

    Args:
        labels: as ``depth`` takes them.
        depths: from ``depth``.
    """
    import fastremap

    dense, _ = fastremap.renumber(np.ascontiguousarray(labels), in_place=False)
    finite = np.where(np.isfinite(depths), depths, np.float32(1))
    deepest = np.ones(int(dense.max(initial=0)) + 1, np.float32)
    np.maximum.at(deepest, dense.ravel(), finite.ravel())
    result: NDArray[np.float32] = np.minimum(finite / deepest[dense], 1)
    return result


def core(
    depths: NDArray[np.float32], relatives: NDArray[np.float32], reach: float
) -> NDArray[np.float32]:
    """What the network learns of the depth: it rises from the edge to 1, and is flat in the middle.

    How deep a voxel of the middle lies is hard to say, and not needed to tell objects apart.

    Args:
        depths: from ``depth``.
        relatives: from ``relative``.
        reach: the depth that becomes 1; 0 for half the greatest depth of each object.
    """
    risen = depths / np.float32(reach) if reach else 2 * relatives
    return np.minimum(risen, 1).astype(np.float32)


def contacts(labels: NDArray[np.integer], reach: int = 2) -> NDArray[np.bool_]:
    """Voxels with two different objects within ``reach`` voxels: where objects run together.

    Args:
        labels: ``(y, x)`` or ``(z, y, x)`` integers, 0 for background.
        reach: half the width of the square, or cube, that is looked at.
    """
    highest = _spread(labels, np.maximum, reach)
    solid = np.where(labels > 0, labels, np.iinfo(labels.dtype).max)
    lowest = _spread(solid, np.minimum, reach)
    different: NDArray[np.bool_] = highest > lowest
    return different


def voxel_weights(
    labels: NDArray[np.integer], relatives: NDArray[np.float32], edge: float, bone: float
) -> NDArray[np.float32]:
    """How much each voxel counts in the embedding's loss.

    Args:
        labels: as ``depth`` takes them.
        relatives: from ``relative``.
        edge: factor at the edge of an object.
        bone: factor in the middle of it.
    """
    weights = 1 + np.float32(bone - 1) * relatives
    weights[edges(labels)] *= edge
    return weights.astype(np.float32)


def _spread(values: NDArray[np.integer], combine: np.ufunc, reach: int) -> NDArray[np.integer]:
    """The maximum or minimum within ``reach`` voxels along every axis."""
    result = values.copy()
    for axis in range(values.ndim):
        for _ in range(reach):
            before = np.moveaxis(result.copy(), axis, 0)
            after = np.moveaxis(result, axis, 0)
            combine(after[1:], before[:-1], out=after[1:])
            combine(after[:-1], before[1:], out=after[:-1])
    return result

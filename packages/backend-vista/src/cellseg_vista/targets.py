"""What the network should say about a patch, from its labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def edges(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of objects that touch, also at a corner, a pixel of something else.

    Args:
        labels: ``(y, x)`` integers, 0 for background.
    """
    import cv2

    numbers = labels.astype(np.float32)
    if labels.max(initial=0) >= 1 << 24:  # beyond, float32 would merge neighbours
        numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
        numbers = numbers.astype(np.float32)
    # Outside the patch there is no edge: what lies there is not known.
    around = cv2.copyMakeBorder(numbers, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    square = np.ones((3, 3), np.uint8)
    differs = cv2.dilate(around, square) != cv2.erode(around, square)
    return differs[1:-1, 1:-1] & (labels > 0)


def depth(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """How deep in its object a pixel lies: 1 where it is deepest, 0 in the background.

    Args:
        labels: ``(y, x)`` integers, 0 for background.

    Returns:
        ``(y, x)`` float32, the Euclidean distance to the object's edge over its maximum.
    """
    import cv2
    import fastremap

    inside = labels > 0
    if not inside.any():
        return np.zeros(labels.shape, np.float32)
    inner = (inside & ~edges(labels)).astype(np.uint8)
    distance = np.zeros(labels.shape, np.float32)
    if inner.all():  # one object fills the patch
        distance[:] = 1
    else:
        distance[inside] = cv2.distanceTransform(inner, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[inside]
        distance[inside] += 1
    dense, _ = fastremap.renumber(labels, in_place=False)
    deepest = np.ones(int(dense.max()) + 1, np.float32)
    np.maximum.at(deepest, dense.ravel(), distance.ravel())
    result: NDArray[np.float32] = distance / deepest[dense]
    return result


def core(depths: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network learns of ``depth``: it rises to 1 halfway in, and is flat in the middle.

    How deep a pixel of the middle lies is hard to say, and not needed to tell cells apart.
    """
    return np.minimum(2 * depths, 1)


def contacts(labels: NDArray[np.integer], reach: int = 2) -> NDArray[np.bool_]:
    """Pixels with two different objects within ``reach`` pixels: where cells run together.

    Args:
        labels: ``(y, x)`` integers, 0 for background.
        reach: half the width of the square that is looked at.
    """
    import cv2
    import fastremap

    dense = fastremap.renumber(labels, in_place=False)[0].astype(np.float32)
    window = np.ones((2 * reach + 1,) * 2, np.uint8)
    highest = cv2.dilate(dense, window)
    lowest = cv2.erode(np.where(dense > 0, dense, np.float32(np.inf)), window)
    different: NDArray[np.bool_] = highest > lowest
    return different


def pixel_weights(
    labels: NDArray[np.integer], depths: NDArray[np.float32], edge: float, bone: float
) -> NDArray[np.float32]:
    """How much each pixel counts in the embedding's loss.

    Args:
        labels: ``(y, x)``.
        depths: ``(y, x)``, from ``depth``.
        edge: factor at the edge of an object.
        bone: factor in the middle of it.
    """
    weights = 1 + (bone - 1) * depths
    weights[edges(labels)] *= edge
    return weights.astype(np.float32)

"""A fixed filter bank: what a pixel and its surroundings look like at several scales."""

from __future__ import annotations

import cv2  # noqa: TID253
import numpy as np
from numpy.typing import NDArray

_SCALES = (1 / 24, 1 / 12, 1 / 6, 1 / 3)
_EPSILON = 0.02


def blurred(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian smoothing of ``(y, x)`` float32; the edge is repeated beyond the image."""
    if sigma <= 0:
        return image
    size = 2 * round(3 * sigma) + 1
    return np.asarray(
        cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REPLICATE), np.float32
    )


def responses(plane: NDArray[np.float32], diameter: float) -> NDArray[np.float32]:
    """Filter responses of each channel.

    At four scales between 1/24 and 1/3 of the diameter: the Gaussian, its Laplacian, gradient
    magnitude, the eigenvalues of the Hessian and of the structure tensor, the standard deviation,
    all normalised by scale; and the Gaussian, the Laplacian and the gradient once more relative to
    the mean and the standard deviation of the surroundings, as wide as an object.

    Args:
        plane: ``(c, y, x)`` float32, about 0 to 1.
        diameter: of the objects, in pixels.

    Returns:
        ``(c * 44, y, x)`` float32.
    """
    return np.stack([one for channel in plane for one in _channel(channel, diameter)])


def _channel(image: NDArray[np.float32], diameter: float) -> list[NDArray[np.float32]]:
    wide = blurred(image, diameter)
    spread = np.sqrt(np.maximum(blurred((image - wide) ** 2, diameter), 0)) + _EPSILON
    found: list[NDArray[np.float32]] = []
    for scale in _SCALES:
        sigma = max(0.6, diameter * scale)
        smooth = blurred(image, sigma)
        dy, dx = (_slope(smooth, axis) * sigma for axis in (0, 1))
        magnitude = np.hypot(dy, dx)
        yy, xx = _slope(dy, 0) * sigma, _slope(dx, 1) * sigma
        around = (blurred(x, 2 * sigma) for x in (dy * dy, dx * dx, dy * dx))
        deviation = np.sqrt(np.maximum(blurred((image - smooth) ** 2, sigma), 0))
        found += [smooth, yy + xx, magnitude, *_eigenvalues(yy, xx, _slope(dy, 1) * sigma)]
        found += [np.sqrt(np.maximum(x, 0)) for x in _eigenvalues(*around)]
        found += [deviation, (smooth - wide) / spread, (yy + xx) / spread, magnitude / spread]
    return found


def _slope(image: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    kernel, one = np.array([-0.5, 0, 0.5], np.float32), np.ones(1, np.float32)
    across, down = (one, kernel) if axis == 0 else (kernel, one)
    return np.asarray(
        cv2.sepFilter2D(image, cv2.CV_32F, across, down, borderType=cv2.BORDER_REPLICATE),
        np.float32,
    )


def _eigenvalues(
    yy: NDArray[np.float32], xx: NDArray[np.float32], xy: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of symmetric 2 by 2 matrices, the larger first."""
    middle, apart = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    return middle + apart, middle - apart

"""Size and shape of masks, and how unlike those of the examples they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg.torch.masks import FoundMask

FEATURES = ("log_area", "solidity", "eccentricity")
SIZE, SHAPE = slice(0, 1), slice(1, 3)
_SPREAD = np.array([0.6, 0.08, 0.2])
"""Standard deviations to expect where a few examples say little: an area of 1.8 times, as with
another magnification or other cells."""
_WORTH = 10.0
"""Examples that this expectation weighs as much as."""
_MAD = 1.4826
"""Standard deviation of a normal distribution, in units of its median absolute deviation."""
_FREEDOM = 4.0
"""Degrees of freedom of Student's distribution: few examples say little of what is rare."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Student's distribution of each of ``FEATURES``."""

    centre: NDArray[np.float64]
    """``(3,)``."""
    spread: NDArray[np.float64]
    """``(3,)``, above 0."""

    @classmethod
    def of(cls, measured: NDArray[np.float64]) -> Prior:
        """Estimated robustly, by medians, and drawn towards a generous spread.

        Args:
            measured: ``(n, 3)`` of the examples of a class, at least one.
        """
        centre = np.median(measured, axis=0)
        own = _MAD * np.median(np.abs(measured - centre), axis=0)
        count = len(measured)
        spread = np.sqrt((count * own**2 + _WORTH * _SPREAD**2) / (count + _WORTH))
        return cls(centre, spread)

    def at(self, magnification: float) -> Prior:
        """The same of objects that are so many times larger."""
        return replace(self, centre=self.centre + np.array([2 * np.log(magnification), 0.0, 0.0]))

    def penalty(
        self, measured: NDArray[np.float64], features: slice, cut: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """How much less probable masks are than typical ones: the negative logarithm of the ratio
        of the densities, ``(n,)``, from 0.

        Args:
            measured: ``(n, 3)``.
            features: which ones count, ``SIZE`` or ``SHAPE``.
            cut: ``(n,)``: which masks end where the image does. These are allowed to be smaller,
                and of any shape.
        """
        if cut is not None:
            small = np.maximum(measured, self.centre)[:, SIZE]
            as_if = np.concatenate([small, np.tile(self.centre[SHAPE], (len(measured), 1))], 1)
            measured = np.where(cut[:, None], as_if, measured)
        unlike = ((measured - self.centre) / self.spread)[:, features]
        found: NDArray[np.float64] = np.log1p(unlike**2 / _FREEDOM).sum(1)
        return (_FREEDOM + 1) / 2 * found


def measure(masks: Sequence[FoundMask]) -> NDArray[np.float64]:
    """``FEATURES`` of masks ``(n, 3)``.

    The area is in pixels; the solidity is the area over that of the convex hull of the pixels, 0 to
    1; the eccentricity is that of the ellipse of the same second moments, 0 for a disc, below 1.
    Of a mask in several pieces it is all of them that count.

    Args:
        masks: none of them empty.
    """
    return np.array([_measured(one.mask) for one in masks], np.float64).reshape(-1, 3)


def cut_off(masks: Sequence[FoundMask], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which masks touch the border of their plane, ``(n,)``."""
    ends = [(one.corner, np.add(one.corner, one.mask.shape)) for one in masks]
    return np.array([min(low) <= 0 or bool((high >= size).any()) for low, high in ends], bool)


def _measured(mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    import cv2

    area = int(np.count_nonzero(mask))
    rows = np.flatnonzero(mask.any(1))
    first = mask[rows].argmax(1)
    last = mask.shape[1] - mask[rows, ::-1].argmax(1)
    corners = np.concatenate(
        [np.stack([x, rows + below], 1) for x in (first, last) for below in (0, 1)]
    )
    hull = cv2.contourArea(cv2.convexHull(corners.astype(np.float32)))
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    # of pixels that are squares, not points
    xx, yy, xy = (moments[name] / area for name in ("mu20", "mu02", "mu11"))
    xx, yy = xx + 1 / 12, yy + 1 / 12
    apart = float(np.hypot((xx - yy) / 2, xy))
    long, short = (xx + yy) / 2 + apart, (xx + yy) / 2 - apart
    return float(np.log(area)), area / hull, float(np.sqrt(max(0.0, 1 - short / long)))

"""Measuring an image block by block: range, contrast with its objects, and a fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellseg.checks.blocks import BUDGET, blocks
from cellseg.classes import UNKNOWN
from cellseg.data import Labels, LazyArray

CLEAR = 0.25
"""Standard deviations between objects and their surroundings for a polarity to be clear."""
RIM = 7
"""Pixels around the objects that count as surroundings, as for ``--polarity measure``."""


@dataclass(frozen=True, slots=True)
class Channel:
    """The pixels of one channel; NaN and infinity are counted and left out of the rest."""

    low: float
    high: float
    at_high: float
    """Share of the pixels, 0 to 1, that have the value ``high``."""
    not_finite: int
    contrast: float
    """Mean inside the objects minus mean of a rim of 7 pixels around them, in standard deviations
    of both together; 0 where there are no objects, or nothing around them."""

    @property
    def constant(self) -> bool:
        """Whether all (finite) pixels are equal."""
        return not self.low < self.high

    @property
    def polarity(self) -> Literal["bright", "dark", "unclear"]:
        """How the objects look against the rest."""
        if abs(self.contrast) < CLEAR:
            return "unclear"
        return "bright" if self.contrast > 0 else "dark"


@dataclass(frozen=True, slots=True)
class ImageFigures:
    """What one pass over an image says."""

    channels: tuple[Channel, ...]
    fingerprint: str
    """Equal for two images exactly when type, shape and all pixels are (to 2^-128)."""


def measure_image(
    image: LazyArray, labels: LazyArray | None = None, budget: int = BUDGET
) -> ImageFigures:
    """Read ``image`` ``(c, z, y, x)`` once, in blocks of ``budget`` voxels for each channel.

    Args:
        image: any type; booleans count as 0 and 1.
        labels: ``(z, y, x)`` of the same size; what is not 0 is inside an object, but for
            ``classes.UNKNOWN``, which is neither inside nor around one.
        budget: voxels in a block.

    Raises:
        DataError: a part cannot be read.
    """
    count, *shape = image.shape
    digest = blake2b(f"{image.dtype} {image.shape}".encode(), digest_size=16)
    tallies = [_Tally() for _ in range(count)]
    for z, y, x in blocks((shape[0], shape[1], shape[2]), budget):
        objects = near = None
        if labels is not None:
            truth = labels[z, y, x]
            objects = (truth != 0) & (truth != UNKNOWN)
            near = _surroundings(objects, truth)
        for c, tally in enumerate(tallies):
            block = image[slice(c, c + 1), z, y, x]
            digest.update(np.ascontiguousarray(block).data)
            tally.add(block[0], objects, near)
    return ImageFigures(tuple(tally.channel() for tally in tallies), digest.hexdigest())


def _surroundings(objects: NDArray[np.bool_], labels: Labels) -> NDArray[np.bool_]:
    """The rim of background around the objects of a block ``(z, y, x)``, slice by slice."""
    import cv2

    kernel = np.ones((2 * RIM + 1,) * 2, np.uint8)
    grown = [cv2.dilate(plane.view(np.uint8), kernel) for plane in objects]
    near: NDArray[np.bool_] = (np.stack(grown) > 0) & (labels == 0)
    return near


class _Tally:
    """Running sums over the blocks of one channel."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.count = self.at_high = self.not_finite = 0
        # Count, sum, sum of squares: around the objects (0) and inside them (1).
        self.sums = np.zeros((2, 3))
        self.origin = np.nan

    def add(
        self,
        block: NDArray[Any],
        objects: NDArray[np.bool_] | None,
        near: NDArray[np.bool_] | None,
    ) -> None:
        usable = np.isfinite(block) if block.dtype.kind == "f" else None
        values = block if usable is None or usable.all() else block[usable]
        self.not_finite += block.size - values.size
        if not values.size:
            return
        self.count += values.size
        low, high = float(values.min()), float(values.max())
        if high > self.high:
            self.high, self.at_high = high, 0
        if high == self.high:
            self.at_high += int(np.count_nonzero(values == values.max()))
        self.low = min(self.low, low)
        if np.isnan(self.origin):
            self.origin = low  # keeps the squares small, and the variance exact
        for where, mask in enumerate((near, objects)):
            if mask is not None:
                self._sum(where, block[mask if usable is None else mask & usable])

    def _sum(self, where: int, values: NDArray[Any]) -> None:
        flat = values.astype(np.float64) - self.origin
        self.sums[where] += flat.size, flat.sum(), float(np.dot(flat, flat))

    def channel(self) -> Channel:
        contrast = 0.0
        if self.sums[0, 0] and self.sums[1, 0]:
            count, total, squares = self.sums.sum(axis=0)
            spread = np.sqrt(max(squares / count - (total / count) ** 2, 0.0))
            around, within = self.sums[:, 1] / self.sums[:, 0]
            contrast = float((within - around) / spread) if spread > 0 else 0.0
        if not self.count:
            return Channel(0.0, 0.0, 0.0, self.not_finite, 0.0)
        share = self.at_high / self.count
        return Channel(float(self.low), float(self.high), share, self.not_finite, contrast)

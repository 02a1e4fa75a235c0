"""A vector of each object from a crop around it: what the mode crop compares.

Each object is cut out so that it fills about the same part of a square, the square is encoded, and
its features are averaged, weighted with the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.mask_pooling import pool_masks
from cellseg.torch.masks import FoundMask
from cellseg_fewshot.views import Encoder, FeatureMap


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of a plane that a crop shows."""

    begin: tuple[int, int]
    shown: tuple[int, int]
    """Pixels of the plane along y and x, from the first pixel of the crop on; the rest of it is
    padding."""
    side: int
    """Of the crop."""

    @classmethod
    def around(cls, mask: FoundMask, size: tuple[int, int], occupancy: float) -> _Window:
        """In a plane of ``size``."""
        if not mask.mask.any():
            raise ValueError("a mask without pixels has no place")
        begin, lengths = [], []
        for axis in (0, 1):
            lines = np.flatnonzero(mask.mask.any(1 - axis)) + mask.corner[axis]
            begin.append(int(lines[0]))
            lengths.append(int(lines[-1] - lines[0]) + 1)
        side = max(int(sqrt(np.count_nonzero(mask.mask) / occupancy)), *lengths)
        middle = [
            start - (side - length) // 2 for start, length in zip(begin, lengths, strict=True)
        ]
        y, x = (max(0, min(start, full - side)) for start, full in zip(middle, size, strict=True))
        return cls((y, x), (min(side, size[0]), min(side, size[1])), side)

    def crop(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(c, side, side)``."""
        (y, x), (height, width) = self.begin, self.shown
        shown = plane[:, y : y + height, x : x + width]
        margin = ((0, 0), (0, self.side - height), (0, self.side - width))
        return np.pad(shown, margin, mode="edge")

    def within(self, mask: FoundMask) -> NDArray[np.bool_]:
        """The mask in the crop, ``(side, side)``."""
        inside = np.zeros((self.side, self.side), bool)
        pixels = np.argwhere(mask.mask) + np.subtract(mask.corner, self.begin)
        inside[tuple(pixels.T)] = True
        return inside


def crop_around(
    plane: NDArray[np.float32], mask: FoundMask, occupancy: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A square around an object.

    It is as large as makes the mask fill ``occupancy`` of it, rounded down, and at least as large
    as the box of the mask. It has the middle of this box in its own, unless that would exceed the
    plane: then it lies at the border. Where it is larger than the plane, it is padded at the bottom
    and at the right with the pixels at the border.

    Args:
        plane: ``(c, y, x)``.
        mask: in this plane, with at least one pixel.
        occupancy: above 0, to 1.

    Returns:
        The crop ``(c, s, s)``, and the mask in it ``(s, s)`` bool.

    Raises:
        ValueError: the mask has no pixel.
    """
    window = _Window.around(mask, (plane.shape[1], plane.shape[2]), occupancy)
    return window.crop(plane), window.within(mask)


def describe_crops(
    encoder: Encoder,
    plane: NDArray[np.float32],
    masks: Sequence[FoundMask],
    occupancy: float,
    batch: int,
) -> Tensor:
    """The mean features of each object in a crop of its own, weighted with its mask.

    The mask is interpolated bilinearly where the middles of the cells lie; those in the padding do
    not count. A mask so thin that it is 0 at all of them is pooled by the cells that its pixels lie
    in.

    Args:
        encoder: sees the crops.
        plane: ``(c, y, x)``.
        masks: in this plane, each with at least one pixel.
        occupancy: part of a crop that the object fills, as in ``crop_around``.
        batch: crops that are encoded together, at least 1; the result does not depend on it.

    Returns:
        ``(n, d)`` float32 on the CPU, not normalised; ``(0, 0)`` where there are no masks.

    Raises:
        ValueError: a mask has no pixel.
    """
    size = plane.shape[1], plane.shape[2]
    windows = [_Window.around(mask, size, occupancy) for mask in masks]
    pooled = []
    for start in range(0, len(masks), batch):
        part = slice(start, start + batch)
        found = encoder.encode_crops([window.crop(plane) for window in windows[part]])
        pooled += [
            _pooled(features, window.within(mask), window.shown)
            for features, window, mask in zip(found, windows[part], masks[part], strict=True)
        ]
    return torch.stack(pooled).cpu() if pooled else torch.zeros(0, 0)


def _pooled(features: FeatureMap, mask: NDArray[np.bool_], shown: tuple[int, int]) -> Tensor:
    """``(d,)``: the mean of the cells, weighted with the mask."""
    from scipy.ndimage import map_coordinates

    values = features.values.float()
    places = [
        (np.arange(cells) + 0.5) * step - 0.5
        for cells, step in zip(values.shape[1:], features.step, strict=True)
    ]
    places = [x[x < length - 0.5] for x, length in zip(places, shown, strict=True)]
    weights = map_coordinates(
        mask.astype(np.float32), np.meshgrid(*places, indexing="ij"), order=1, mode="nearest"
    )
    if not weights.any():
        return pool_masks([FoundMask(mask, (0, 0), 0.0)], values, features.step)[0]
    share = torch.from_numpy(weights / weights.sum(dtype=np.float64)).to(values)
    y, x = share.shape
    return values[:, :y, :x].flatten(1) @ share.flatten()

"""What is learned from a patch: its objects, and the boxes around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.classes import UNKNOWN
from cellseg.torch.frames import Frame
from cellseg.torch.patches import Item


class Targets:
    """Makes an item of a patch.

    Args:
        least: pixels that an object must have inside the patch; smaller pieces are taken for
            neither objects nor background.
    """

    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(
        self, image: NDArray[np.float32], labels: NDArray[np.uint32], name: str, index: int
    ) -> Item:
        """``image (c, y, x)`` float32; ``labels (y, x)`` int64, objects counted from 1; ``known
        (y, x)`` bool, False where nothing is learned; and ``index``, the number of the patch."""
        ids, inverse, counts = np.unique(labels[0], return_inverse=True, return_counts=True)
        known = (ids == 0) | ((counts >= self._least) & (ids != UNKNOWN))
        real = known & (ids != 0)
        numbers = np.where(real, real.cumsum(), 0)
        inverse = inverse.reshape(labels.shape[1:])
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image[:, 0])),
            "labels": torch.from_numpy(numbers[inverse]),
            "known": torch.from_numpy(known[inverse]),
            "index": torch.tensor(index),
        }


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one patch."""

    ids: Tensor
    """``(k,)`` int64, their labels, rising."""
    boxes: Tensor
    """``(k, 4)`` float32, ``x0 y0 x1 y1`` in pixels of the square: from the edge of the first pixel
    to the far edge of the last one."""


def objects_of(labels: Tensor, frame: Frame) -> Objects:
    """The objects of a patch, and their boxes in the square.

    Args:
        labels: ``(y, x)`` int64, objects counted from 1 without gaps, 0 is background.
        frame: of the patch.
    """
    count = int(labels.max()) if labels.numel() else 0
    pixels = labels.nonzero()
    of = labels[pixels[:, 0], pixels[:, 1]] - 1
    spread = of[:, None].expand(-1, 2)
    low = pixels.new_full((count, 2), max(labels.shape)).scatter_reduce(0, spread, pixels, "amin")
    high = pixels.new_zeros((count, 2)).scatter_reduce(0, spread, pixels, "amax") + 1
    factor = torch.tensor(frame.factor, device=labels.device)
    corners = torch.cat([(low * factor).flip(1), (high * factor).flip(1)], dim=1)
    return Objects(torch.arange(1, count + 1, device=labels.device), corners.float())

"""Patches with what there is to learn of them, as tensors."""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.torch.patches import Item
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.targets import Truth, distance_maps


class Targets:
    """Makes the tensors of a patch.

    Args:
        options: say what is learned, and how small an object may be.
    """

    def __init__(self, options: MicrosamOptions) -> None:
        self._smallest = options.min_instance_size
        self._with_maps = options.mode != "interactive"

    def __call__(
        self, image: NDArray[np.float32], labels: NDArray[np.uint32], name: str, index: int
    ) -> Item:
        """A patch ``(c, 1, y, x)`` with labels ``(1, y, x)``: ``image (c, y, x)`` float32, and what
        ``of`` gives; the name makes no difference."""
        return {"image": as_tensor(image), **self.of(labels[0], index)}

    def of(self, labels: NDArray[np.uint32], index: int) -> Item:
        """What there is to learn of a patch.

        Args:
            labels: ``(y, x)`` ids, with or without classes, and ``UNKNOWN``.
            index: its number in the training, or the validation.

        Returns:
            ``labels (y, x)`` int32, connected objects 1 to n; ``known (y, x)`` bool; ``index ()``
            int64; and, where a decoder learns, ``maps (3, y, x)`` float32 as
            ``targets.distance_maps`` gives them.
        """
        truth = Truth.of(labels, self._smallest)
        item = {
            "labels": torch.from_numpy(truth.labels),
            "known": torch.from_numpy(truth.known),
            "index": torch.tensor(index),
        }
        if self._with_maps:
            item["maps"] = torch.from_numpy(distance_maps(truth.labels))
        return item


def as_tensor(image: NDArray[np.float32]) -> torch.Tensor:
    """The image of a patch ``(c, 1, y, x)`` as a tensor ``(c, y, x)``."""
    return torch.from_numpy(np.ascontiguousarray(image[:, 0], np.float32))

"""Patches with what there is to learn of them, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.augment import Augmentation
from cellseg.patches import Patch, PatchSampler
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.targets import Truth, distance_maps

Item = dict[str, torch.Tensor]


class Targets:
    """Makes the tensors of a patch.

    Args:
        options: say what is learned, and how small an object may be.
    """

    def __init__(self, options: MicrosamOptions) -> None:
        self._smallest = options.min_instance_size
        self._with_maps = options.mode != "interactive"

    def __call__(self, labels: NDArray[np.uint32], index: int) -> Item:
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


class TrainingPatches:
    """Augmented patch ``i``, with its ``image``: a function of the seed and ``i``."""

    def __init__(
        self, sampler: PatchSampler, make: Targets, options: MicrosamOptions, seed: int
    ) -> None:
        self._sampler, self._make, self._seed = sampler, make, seed
        self._augment = Augmentation(options)

    def __getitem__(self, index: int) -> Item:
        patch = self._sampler.patch(index)
        rng = np.random.default_rng((self._seed, index, 1))
        image, labels = self._augment(patch.image, patch.labels, rng)
        return {"image": as_tensor(image), **self._make(labels[0], index)}


class ValidationPatches:
    """Batches of one patch each, as they are, evenly spread over the images."""

    def __init__(self, grid: Sequence[Patch], make: Targets, most: int) -> None:
        count = min(len(grid), most)
        self._grid, self._make = grid, make
        self._chosen = [i * len(grid) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self._chosen)

    def patch(self, index: int) -> Patch:
        """The patch that a batch is made of."""
        patch: Patch = self._grid[self._chosen[index]]
        return patch

    def __getitem__(self, index: int) -> Item:
        patch = self.patch(index)
        item = {"image": as_tensor(patch.image), **self._make(patch.labels[0], index)}
        return {name: tensor[None] for name, tensor in item.items()}

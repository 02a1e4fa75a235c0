"""Patches as numbered training and validation samples (see ``cellseg.torch.loaders``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.augment import Augmentation
from cellseg.patches import Patch, PatchSampler
from cellseg.sampling_options import AugmentOptions

Item: TypeAlias = dict[str, torch.Tensor]
Make: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.uint32], str, int], Item]
"""What a network learns from a patch: ``make(image, labels, name, index)``, with the image
``(c, z, y, x)`` and the labels ``(z, y, x)``, augmented, the name of the sample, and the number of
the patch."""


class Grid(Protocol):
    """Patches by number, each read when asked for."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int, /) -> Patch:
        """One of them."""


class TrainingPatches:
    """Augmented patch ``i``: a function of the seed and ``i`` alone."""

    def __init__(
        self, sampler: PatchSampler, make: Make, options: AugmentOptions, seed: int
    ) -> None:
        self._sampler, self._make, self._seed = sampler, make, seed
        self._augment = Augmentation(options)

    def __getitem__(self, index: int) -> Item:
        patch = self._sampler.patch(index)
        rng = np.random.default_rng((self._seed, index, 1))
        image, labels = self._augment(patch.image, patch.labels, rng)
        return self._make(image, labels, patch.name, index)


class ValidationPatches:
    """Batches of one patch each, as they are, evenly spread over the images.

    Args:
        grid: patches that cover the images.
        make: as for training.
        most: how many batches there are at most.
    """

    def __init__(self, grid: Grid, make: Make, most: int) -> None:
        count = min(len(grid), most)
        self._grid, self._make = grid, make
        self._chosen = [i * len(grid) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self._chosen)

    def patch(self, index: int) -> Patch:
        """The patch that a batch is made of."""
        return self._grid[self._chosen[index]]

    def __getitem__(self, index: int) -> Item:
        patch = self.patch(index)
        item = self._make(patch.image, patch.labels, patch.name, index)
        return {name: tensor[None] for name, tensor in item.items()}

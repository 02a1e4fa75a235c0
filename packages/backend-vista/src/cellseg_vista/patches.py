"""Patches with their targets, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.augment import Augmentation
from cellseg.patches import Patch, PatchSampler
from cellseg_vista.options import Vista2dOptions
from cellseg_vista.targets import contacts, core, depth, pixel_weights

Item = dict[str, torch.Tensor]


class TrainingPatches:
    """Augmented patch ``i``: a function of the seed and ``i``."""

    def __init__(self, sampler: PatchSampler, options: Vista2dOptions, seed: int) -> None:
        self._sampler, self._options, self._seed = sampler, options, seed
        self._augment = Augmentation(options)

    def __getitem__(self, index: int) -> Item:
        patch = self._sampler.patch(index)
        rng = np.random.default_rng((self._seed, index, 1))
        image, labels = self._augment(patch.image, patch.labels, rng)
        return _item(image, labels, self._options)


class ValidationPatches:
    """Batches of one patch each, evenly spread over the images."""

    def __init__(self, grid: Sequence[Patch], options: Vista2dOptions) -> None:
        count = min(len(grid), options.val_patches)
        self._grid, self._options = grid, options
        self._chosen = [i * len(grid) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Item:
        patch: Patch = self._grid[self._chosen[index]]
        item = _item(patch.image, patch.labels, self._options)
        return {name: tensor[None] for name, tensor in item.items()}


def _item(image: NDArray[np.float32], labels: NDArray[np.integer], options: Vista2dOptions) -> Item:
    """The tensors of one patch.

    Args:
        image: ``(c, 1, y, x)``.
        labels: ``(1, y, x)``.
        options: the weights of the pixels.
    """
    flat = np.ascontiguousarray(labels[0])
    depths = depth(flat)
    weights = pixel_weights(flat, depths, options.weight_edge, options.weight_bone)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image[:, 0], np.float32)),
        "labels": torch.from_numpy(flat.astype(np.int64)),
        "distance": torch.from_numpy(core(depths)),
        "contact": torch.from_numpy(contacts(flat)),
        "weight": torch.from_numpy(weights),
    }

"""Patches with their targets, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg import Sample
from cellseg.augment import Augmentation
from cellseg.classes import UNKNOWN, classes_of
from cellseg.patches import Patch, PatchSampler
from cellseg_vista import targets
from cellseg_vista.options import VistaOptions

Item = dict[str, torch.Tensor]


class Grid(Protocol):
    """Patches by number, each read when asked for."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int, /) -> Patch:
        """One of them."""


class Targets:
    """Makes what the network should say about a patch, as tensors.

    Args:
        options: the weights of the voxels.
        dims: 2 for planes, 3 for volumes.
        samples: that patches come from; their voxel sizes are looked up by name.
    """

    def __init__(self, options: VistaOptions, dims: int, samples: Sequence[Sample]) -> None:
        self._options, self._dims = options, dims
        self._spacing = {sample.name: sample.spacing[3 - dims :] for sample in samples}

    def __call__(self, image: NDArray[np.float32], labels: NDArray[np.uint32], name: str) -> Item:
        """The tensors of one patch, ``s`` being its shape: ``(y, x)`` or ``(z, y, x)``.

        Args:
            image: ``(c, z, y, x)``.
            labels: ``(z, y, x)``, ids with or without classes.
            name: of the sample.

        Returns:
            ``image (c, *s)`` float32; ``labels (*s)`` int64, 0 where there is no object or it is
            not known; ``classes (*s)`` int64, -100 where not known; ``distance (*s)``, from 0 at
            the edge of an object to 1 inside; ``contact (*s)`` bool, between objects; ``weight
            (*s)`` in the embedding's loss.
        """
        if self._dims == 2:
            image, labels = image[:, 0], labels[0]
        ids = np.ascontiguousarray(np.where(labels == UNKNOWN, np.uint32(0), labels))
        spacing, options = self._spacing[name], self._options
        depths = targets.depth(ids, spacing)
        relatives = targets.relative(ids, depths)
        weights = targets.voxel_weights(ids, relatives, options.weight_edge, options.weight_bone)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image, np.float32)),
            "labels": torch.from_numpy(ids.astype(np.int64)),
            "classes": torch.from_numpy(classes_of(labels)),
            "distance": torch.from_numpy(targets.core(depths, relatives, options.distance_reach)),
            "contact": torch.from_numpy(targets.contacts(ids)),
            "weight": torch.from_numpy(weights),
        }


class TrainingPatches:
    """Augmented patch ``i``: a function of the seed and ``i``."""

    def __init__(
        self, sampler: PatchSampler, make: Targets, options: VistaOptions, seed: int
    ) -> None:
        self._sampler, self._make, self._seed = sampler, make, seed
        self._augment = Augmentation(options)

    def __getitem__(self, index: int) -> Item:
        patch = self._sampler.patch(index)
        rng = np.random.default_rng((self._seed, index, 1))
        image, labels = self._augment(patch.image, patch.labels, rng)
        return self._make(image, labels, patch.name)


class ValidationPatches:
    """Batches of one patch each, evenly spread over the images."""

    def __init__(self, grid: Grid, make: Targets, most: int) -> None:
        count = min(len(grid), most)
        self._grid, self._make = grid, make
        self._chosen = [i * len(grid) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Item:
        patch = self._grid[self._chosen[index]]
        item = self._make(patch.image, patch.labels, patch.name)
        return {name: tensor[None] for name, tensor in item.items()}

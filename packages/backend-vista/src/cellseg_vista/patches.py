"""Patches with their targets, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg import Sample
from cellseg.classes import UNKNOWN, classes_of
from cellseg.torch.patches import Item
from cellseg_vista import targets
from cellseg_vista.options import VistaOptions


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

    def __call__(
        self, image: NDArray[np.float32], labels: NDArray[np.uint32], name: str, index: int = 0
    ) -> Item:
        """The tensors of one patch, ``s`` being its shape: ``(y, x)`` or ``(z, y, x)``.

        Args:
            image: ``(c, z, y, x)``.
            labels: ``(z, y, x)``, ids with or without classes.
            name: of the sample.
            index: of the patch; makes no difference.

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

"""What a network says about the voxels of one image, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cellseg_vista.network import Maps


@dataclass(frozen=True)
class PixelMaps:
    """The network's maps of one image, whose axes ``*s`` are ``(y, x)`` or ``(z, y, x)``."""

    probabilities: NDArray[np.float32]
    """``(k, *s)`` probability of each class, background first; they sum to 1."""
    distance: NDArray[np.float32]
    """``(*s)`` how deep in its object a voxel lies: 0 at the edge, 1 from halfway in."""
    embedding: NDArray[np.float32]
    """``(e, *s)``."""


def pixel_maps(maps: Maps, classes: int) -> list[PixelMaps]:
    """The network's output for a batch, as one ``PixelMaps`` for each image.

    Args:
        maps: ``(n, ?, *s)`` each.
        classes: how many classes the data has, background included; those to spare in the
            network are left out of the softmax.
    """
    probabilities = maps.semantic[:, :classes].float().softmax(1).cpu().numpy()
    distance = maps.distance[:, 0].float().sigmoid().cpu().numpy()
    embedding = maps.embedding.float().cpu().numpy()
    return [PixelMaps(p, d, e) for p, d, e in zip(probabilities, distance, embedding, strict=True)]

"""Test-time augmentation: what the network says of mirrored images, averaged."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from cellseg.data import Image
from cellseg_vista.instances import PixelMaps

Look = Callable[[Image], list[PixelMaps]]
"""Maps of images ``(n, c, z, y, x)``, one for each."""


def mirrored(look: Look) -> Look:
    """The same with the means of classes and depths over all mirror images.

    Embeddings are those of the image as it is: two runs of the network have no common frame.
    Axes of a single voxel are not mirrored.
    """

    def averaged(images: Image) -> list[PixelMaps]:
        axes = [axis for axis in (1, 2, 3) if images.shape[1 + axis] > 1]
        plain = look(images)
        sums = [(maps.probabilities.copy(), maps.distance.copy()) for maps in plain]
        turns = [t for n in range(1, len(axes) + 1) for t in itertools.combinations(axes, n)]
        for turned in turns:
            seen = look(np.flip(images, [1 + axis for axis in turned]))
            for (probabilities, distance), maps in zip(sums, seen, strict=True):
                back = [axis - 4 for axis in turned]
                probabilities += np.flip(maps.probabilities, back)
                distance += np.flip(maps.distance, back)
        count = np.float32(1 + len(turns))
        return [
            PixelMaps(probabilities / count, distance / count, maps.embedding)
            for (probabilities, distance), maps in zip(sums, plain, strict=True)
        ]

    return averaged

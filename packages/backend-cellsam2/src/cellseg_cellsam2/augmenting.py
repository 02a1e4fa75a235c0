"""Random changes of clips: the same for all frames, and never along the time."""

from __future__ import annotations

import cv2  # noqa: TID253
import numpy as np
from numpy.typing import NDArray

from cellseg.augment import Augmentation
from cellseg_cellsam2.options import CellSam2Options

_KNOTS = 5
"""Points along each side between which the light changes smoothly."""


class ClipAugmentation:
    """Augments clips as the options say; all that is random comes from the generator given.

    Frames are mirrored in y and x together, then changed as ``cellseg.augment.Augmentation``
    changes the planes of a stack, and lit unevenly by one field for the whole clip.
    """

    def __init__(self, options: CellSam2Options) -> None:
        self._options = options
        # The planes of a stack may be mirrored in their order, but not time: cells do not merge.
        self._change = Augmentation(options.model_copy(update={"flip_probability": 0.0}))

    def __call__(
        self, images: NDArray[np.float32], labels: NDArray[np.uint32], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Augment one clip.

        Args:
            images: ``(c, t, y, x)``; not changed.
            labels: ``(t, y, x)``; not changed.
            rng: the same state gives the same result.

        Returns:
            New arrays of the same shapes.
        """
        for axis in (1, 2):
            if rng.random() < self._options.flip_probability:
                images, labels = np.flip(images, axis + 1), np.flip(labels, axis)
        images, labels = self._change(images, labels, rng)
        if rng.random() < self._options.illumination_probability:
            images = self._lit(images, rng)
        return images, labels

    def _lit(self, images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """What each pixel has above the darkest of its channel, times a smooth field."""
        limit = self._options.illumination_range
        knots = rng.uniform(1 - limit, 1 + limit, (_KNOTS, _KNOTS)).astype(np.float32)
        y, x = images.shape[2:]
        field = cv2.resize(knots, (x, y), interpolation=cv2.INTER_CUBIC)
        field = np.clip(field, 1 - limit, 1 + limit)
        low = images.min(axis=(1, 2, 3), keepdims=True)
        lit: NDArray[np.float32] = (images - low) * field + low
        return lit

"""What networks that were trained on photographs take. Light: torch is not imported."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Dataset, Image
from cellseg.errors import ConfigError, DataError
from cellseg.normalise import NormalisedImage

_MARGIN = 0.01


def check_pixels(samples: Dataset, network: str) -> None:
    """Refuse images that cannot be shown to such a network, before anything is loaded.

    Args:
        samples: at least one; the first one is looked at.
        network: what messages call it, such as ``Segment Anything``.

    Raises:
        ConfigError: they have other than 1 or 3 channels, or are normalised to other than 0 to 1.
    """
    image = samples[0].image
    channels = image.shape[0]
    if channels not in (1, 3):
        raise ConfigError(
            f"The images have {channels} channels, but {network} takes 1 or 3.",
            hint="Pick them: --channels 0, or --channels 0,1,2.",
        )
    if not isinstance(image, NormalisedImage):
        return
    method = image.normaliser.method
    if method == "none":
        plane = image[:, :1, :, :]
        if -_MARGIN <= plane.min() and plane.max() <= 1 + _MARGIN:
            return
    if method in ("z-score", "none"):
        raise ConfigError(
            f"--normalise {method}: {network} takes pixels from 0 to 1; what is beyond would be cut"
            " off.",
            hint="Use --normalise percentile, or min-max.",
        )


def check_plane(image: Image, network: str, backend: str) -> None:
    """Refuse a tile that cannot be shown to such a network.

    Args:
        image: ``(c, z, y, x)``.
        network: what messages call it, such as ``Segment Anything``.
        backend: the same.

    Raises:
        DataError: it has neither 1 nor 3 channels, or several planes.
    """
    if image.shape[0] not in (1, 3):
        raise DataError(
            f"{network} takes images of 1 or 3 channels, not {image.shape[0]}.",
            hint="Choose them with --channels.",
        )
    if image.shape[1] != 1:
        raise DataError(f"{backend} sees single planes, not volumes of {image.shape[1]} planes.")


def continued(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Images ``(n, c, y, x)``, continued by their reflection, at the bottom and at the right, to
    ``side`` pixels."""
    below, right = side - images.shape[2], side - images.shape[3]
    return np.pad(images, ((0, 0), (0, 0), (0, below), (0, right)), mode="symmetric")

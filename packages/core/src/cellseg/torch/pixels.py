"""What networks that were trained on photographs take. Light: torch is not imported."""

from __future__ import annotations

from cellseg.data import Dataset
from cellseg.errors import ConfigError
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

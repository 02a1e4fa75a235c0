"""An image to test an exported network with, and a picture of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.normalise import Normaliser
from cellseg.synthetic import make_image


def made_up_image(
    normaliser: Normaliser, channels: int, size: tuple[int, ...]
) -> NDArray[np.float32]:
    """Synthetic cells, ``(c, y, x)`` or ``(c, z, y, x)``, in the units that the normaliser expects.

    Args:
        normaliser: of the bundle; one with the statistics of its training images expects theirs.
        channels: each gets other cells.
        size: in pixels; along z the cells fade in and out.
    """
    height, width = size[-2:]
    shape = (max(height, 32), max(width, 32))
    image = np.stack([make_image((0, c), shape)[0][:height, :width] for c in range(channels)])
    image = image.astype(np.float32)
    if len(size) == 3:
        dark = image.min(axis=(1, 2), keepdims=True)
        fade = np.sin(np.pi * (np.arange(size[0]) + 0.5) / size[0])
        image = dark[:, None] + (image - dark)[:, None] * fade[:, None, None]
    if normaliser.dataset is not None or normaliser.method == "none":
        image = (image - image.min()) / max(float(np.ptp(image)), 1.0)
    if normaliser.dataset is not None:
        for channel, shift, scale in zip(
            image, normaliser.dataset.shift, normaliser.dataset.scale, strict=True
        ):
            channel[...] = shift + (channel / scale if scale else 0)
    return image.astype(np.float32)


def draw_cover(image: NDArray[np.float32], output: NDArray[np.float32]) -> bytes:
    """A PNG, twice as wide as high: the image beside an output, the middle plane of each.

    Args:
        image: ``(c, *s)``; its channels are averaged.
        output: ``(k, *s)``; without its first channel, if it has several.
    """
    import cv2

    rest = output[1:] if len(output) > 1 else output
    planes = [_grey(_middle(image.mean(axis=0))), _grey(_middle(rest.max(axis=0)))]
    drawn = [cv2.resize(plane, (256, 256), interpolation=cv2.INTER_AREA) for plane in planes]
    ok, data = cv2.imencode(".png", np.concatenate(drawn, axis=1))
    assert ok
    return bytes(data)


def _middle(volume: NDArray[Any]) -> NDArray[Any]:
    return volume[len(volume) // 2] if volume.ndim == 3 else volume


def _grey(plane: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(plane.min()), float(plane.max())
    return ((plane - low) / max(high - low, 1e-6) * 255).astype(np.uint8)

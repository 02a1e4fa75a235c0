"""What a camera behind a microscope makes of the light that leaves a synthetic specimen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float: TypeAlias = NDArray[np.float64]

_OFFSET = 100.0  # what a camera reads in the dark


@dataclass(frozen=True, slots=True)
class Microscope:
    """Defocus, haze, uneven light, photons and read noise, for images of one shape."""

    focus: float
    defocus: float
    """Blur of what lies in focus and out of it: standard deviations in pixels."""
    tilt: Float
    """``(y, x)``, 0 to 1: how far out of focus each place is."""
    haze: float
    """Share of light from other planes."""
    background: Float
    """``(y, x)``, in units of the light of a cell."""
    vignette: Float
    """``(y, x)``, 0 to 1."""
    photons: float
    """How many a pixel counts per unit of light."""

    @classmethod
    def random(cls, shape: tuple[int, int], rng: np.random.Generator) -> Microscope:
        """One for images of ``shape`` ``(y, x)``."""
        focus = rng.uniform(0.7, 1.2)
        defocus = focus + rng.uniform(0.5, 1.5)
        tilt = 1 / (1 + np.exp(-2.5 * smooth_noise(shape, max(shape) / 4, rng)))
        haze = rng.uniform(0.1, 0.25)

        y, x = (np.linspace(-1, 1, n) for n in shape)
        slope = rng.uniform(-1, 1, 2)
        background = rng.uniform(0.12, 0.3) * (1.2 + slope[0] * y[:, None] + slope[1] * x[None, :])
        middle = rng.uniform(-0.4, 0.4, 2)
        distance = (y[:, None] - middle[0]) ** 2 + (x[None, :] - middle[1]) ** 2
        vignette = 1 / (1 + rng.uniform(0.2, 0.7) * distance)
        return cls(focus, defocus, tilt, haze, background, vignette, rng.uniform(40, 130))

    def record(self, light: Float, rng: np.random.Generator) -> NDArray[np.uint16]:
        """An image in counts of the camera, ``(y, x)``."""
        from scipy import ndimage

        seen = (1 - self.tilt) * ndimage.gaussian_filter(light, self.focus)
        seen += self.tilt * ndimage.gaussian_filter(light, self.defocus)
        seen += self.haze * ndimage.gaussian_filter(light, 14)
        photons = self.photons * self.vignette * np.clip(seen + self.background, 0, None)
        counts = 12 * (rng.poisson(photons) + rng.normal(0, 2.0, light.shape)) + _OFFSET
        recorded: NDArray[np.uint16] = np.clip(counts.round(), 0, 65535).astype(np.uint16)
        return recorded


def smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Float:
    """Gaussian noise of unit variance that changes over ``sigma`` pixels."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    centred: Float = noise - noise.mean()
    return centred / max(float(noise.std()), 1e-12)

"""Stained tissue, photographed in red, green and blue, taken apart into its stains.

Method: Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution,
Anal Quant Cytol Histol 23 (2001) 291-299. A stain absorbs light of each colour in proportion to
its amount, so the logarithm of the brightness is a sum over the stains, and a matrix undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import LazyArray
from cellseg.errors import DataError

ABSORBED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""How much of red, green and blue haematoxylin, eosin and DAB absorb, as published."""
_DARKEST = 1e-6  # of the brightness from 0 to 1: what is darker counts as this
_PASSED_ON = frozenset({"where", "chunks"})

Pixels: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Stains:
    """A lazy ``(3, z, y, x)`` image in red, green and blue as one of its stains; float32.

    The amounts are those of ``skimage.color.rgb2hed``, at least 0, and mostly below 1. Each voxel
    is turned by itself, so it does not matter in which blocks the image is read. Picklable if the
    image is.

    * channel 0 is 0,
    * channel 1 is haematoxylin, that is, nuclei,
    * channel 2 is ``eosin`` times the eosin plus ``dab`` times the DAB.
    """

    raw: LazyArray
    """uint8 or uint16, which are divided by 255 and 65535, or floats from 0 to 1."""
    eosin: float = 0.0
    dab: float = 0.0
    name: str = ""
    """What errors call it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(3, z, y, x)``."""
        return self.raw.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always float32."""
        return np.dtype(np.float32)

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.float32]:
        """The block under ``key``; of the image, all three channels are read.

        Raises:
            DataError: the pixels are floats beyond 0 to 1, or NaN.
        """
        colours = self.raw[(slice(0, 3), *key[1:])]
        try:
            return separated(colours, self.eosin, self.dab)[key[0]]
        except DataError as error:
            raise DataError(f"{self.name}: {error}", hint=error.hint) from error

    def __getattr__(self, name: str) -> Any:
        if name in _PASSED_ON:
            return getattr(self.raw, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")


def check_colours(image: LazyArray, name: str) -> None:
    """Refuse what cannot be in red, green and blue, by its shape and type; nothing is read.

    Args:
        image: ``(c, z, y, x)``.
        name: what errors call it.

    Raises:
        DataError: other than 3 channels, or pixels other than uint8, uint16 or floats.
    """
    count = image.shape[0]
    if count != 3:
        raise DataError(
            f"{name} has {count} channel{'s' if count != 1 else ''}, but --stain-transform hed "
            "takes apart red, green and blue.",
            hint="Pick these with --channels, such as 0,1,2."
            if count > 3
            else "Train without --stain-transform.",
        )
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise DataError(
            f"{name} has pixels of type {image.dtype}: --stain-transform hed does not know which "
            "number is white.",
            hint="Store the images as uint8 (255 is white), uint16 (65535), or floats (1).",
        )


def separated(colours: Pixels, eosin: float, dab: float) -> NDArray[np.float32]:
    """The stains in a block, as :class:`Stains` has them.

    Args:
        colours: ``(3, z, y, x)``: uint8, uint16, or floats from 0 to 1; it is not changed.
        eosin: its share of channel 2.
        dab: likewise.

    Raises:
        DataError: the pixels are floats beyond 0 to 1, or NaN.
    """
    density = _density(colours)
    # Rows: how much haematoxylin, eosin and DAB one unit of density in each colour means.
    amounts = np.linalg.inv(np.array(ABSORBED)).T.astype(np.float32)
    out = np.zeros(colours.shape, np.float32)
    out[1] = _amount(density, amounts[0])
    for share, stain in ((eosin, amounts[1]), (dab, amounts[2])):
        if share:
            out[2] += np.float32(share) * _amount(density, stain)
    return out


def _amount(density: NDArray[np.float32], of: NDArray[np.float32]) -> NDArray[np.float32]:
    """One stain. No matrix product: its last digit may depend on the shape of the block."""
    total: NDArray[np.float32] = density[0] * of[0]
    total += density[1] * of[1]
    total += density[2] * of[2]
    np.maximum(total, 0, out=total)
    return total


def _density(colours: Pixels) -> NDArray[np.float32]:
    """Logarithm of the brightness, from 0 for white to 1 for ``_DARKEST`` and below."""
    if colours.dtype.kind == "u":
        levels = np.arange(np.iinfo(colours.dtype).max + 1) / np.iinfo(colours.dtype).max
        table = _absorbed(levels)
        found: NDArray[np.float32] = table[colours]
        return found
    low, high = float(colours.min(initial=0)), float(colours.max(initial=0))
    if not (low >= 0 and high <= 1):  # also if either is NaN
        raise DataError(
            f"Pixels from {low:g} to {high:g}: --stain-transform hed takes floats from 0 to 1, "
            "where 1 is white.",
            hint="Divide the images by the number of white, or store them as uint8 or uint16.",
        )
    return _absorbed(np.ascontiguousarray(colours, np.float64))


def _absorbed(brightness: NDArray[np.float64]) -> NDArray[np.float32]:
    density: NDArray[np.float64] = np.log(np.maximum(brightness, _DARKEST)) / np.log(_DARKEST)
    return density.astype(np.float32)

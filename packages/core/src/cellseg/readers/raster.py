"""PNG and JPEG images: shape and type from the header, pixels when they are sliced."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError
from cellseg.limits import DEFLATE, refuse_large_block
from cellseg.readers.problems import damaged
from cellseg.readers.stored import Stored

PNG = (".png",)
JPEG = (".jpg", ".jpeg")
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Samples of a pixel for each colour type of PNG, a palette decoded."""
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""The JPEG segments that state the size of the image."""


@dataclass(frozen=True, slots=True)
class Raster:
    """A PNG or JPEG file, decoded as a whole each time a block of it is read."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the file and copy one block."""
        import imagecodecs

        png = self.where.lower().endswith(PNG)
        with damaged(self.where):
            data = Path(self.where).read_bytes()
            pixels = imagecodecs.png_decode(data) if png else imagecodecs.jpeg_decode(data)
            if pixels.shape != self.shape:
                raise ValueError(f"its header says {self.shape}, its pixels are {pixels.shape}")
            return np.array(pixels[key])


def raster_image(path: Path) -> Stored:
    """The image in a PNG or JPEG file; only its header is read.

    Raises:
        DataError: it is neither, or damaged.
    """
    with damaged(str(path)), path.open("rb") as file:
        png = path.suffix.lower() in PNG
        height, width, samples, bits = _png(file) if png else jpeg_header(file)
    shape = (height, width) if samples == 1 else (height, width, samples)
    dtype = np.dtype(np.uint16 if bits > 8 else np.uint8)
    if png and height * width * bits // 8 > DEFLATE * path.stat().st_size:
        raise DataError(f"{path}: is cut short: it is too small for {height} x {width} pixels.")
    refuse_large_block(str(path), shape, dtype.itemsize, "the picture")
    alpha = png and samples in (2, 4)
    axes = "YX" if samples == 1 else "YXS"
    return Stored(Raster(str(path), shape, dtype), axes, alpha=alpha, colours=samples >= 3)


def _png(file: BinaryIO) -> tuple[int, int, int, int]:
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        raise ValueError("it is no PNG file")
    length, kind = struct.unpack(">I4s", file.read(8))
    if kind != b"IHDR":
        raise ValueError("its header is damaged")
    width, height, bits, colour = struct.unpack(">IIBB", file.read(length)[:10])
    samples = _PNG_SAMPLES[colour]
    while True:
        file.seek(4, 1)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"IDAT":
            return height, width, samples, bits
        if kind == b"tRNS":
            samples += 1  # decoding adds an alpha sample
        file.seek(length, 1)


def jpeg_header(file: BinaryIO) -> tuple[int, int, int, int]:
    """Height, width, samples of a pixel and bits of a sample of a JPEG file."""
    if file.read(2) != b"\xff\xd8":
        raise ValueError("it is no JPEG file")
    while True:
        mark, kind = file.read(2)
        while kind == 0xFF:  # fill bytes
            kind = file.read(1)[0]
        if mark != 0xFF:
            raise ValueError("its header is damaged")
        (length,) = struct.unpack(">H", file.read(2))
        if kind in _FRAME_MARKERS:
            bits, height, width, samples = struct.unpack(">BHHB", file.read(6))
            if samples == 4:
                where = getattr(file, "name", "The data")
                raise DataError(f"{where}: is a CMYK picture.", hint="Save it as RGB or gray.")
            return height, width, samples, bits
        file.seek(length - 2, 1)

"""TIFF files: what they say about themselves, and lazy reading of only what is sliced.

Uncompressed images are memory-mapped; of others only the tiles or strips under a slice are
decoded.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.errors import DataError
from cellseg.limits import refuse_absurd
from cellseg.readers.problems import damaged
from cellseg.readers.stored import UNKNOWN, Stored
from cellseg.readers.tiff_limits import (
    refuse_blocks,
    refuse_circle,
    refuse_others,
    refuse_stream,
    refuse_whole,
)
from cellseg.readers.tiff_metadata import channel_names, steps

SUFFIXES = (".tif", ".tiff")
_MAIN_KINDS = {"ome", "generic", "uniform", "shaped", "imagej"}
_TRUNCATION = (
    "invalid page offset",
    "TiffFileError",
    "Missing data",
    "missing files",
    "failed to read",
    "corrupted",
    "incompletely",
    "out of range",
    "circular",
)
"""Words of what tifffile logs where pixels or metadata are not there."""


@dataclass(frozen=True, slots=True)
class MappedTiff:
    """Uncompressed pixels that lie in one piece in the file."""

    where: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Copy one block out of the mapped file."""
        with damaged(self.where):
            pixels = np.memmap(self.where, self.dtype, "r", self.offset, self.shape)
            return np.array(pixels[key])


@dataclass(frozen=True, slots=True)
class PagedTiff:
    """Pixels in tiles or strips, one page for each plane."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    lead: int
    """How many of the stored axes run over pages; the others lie within a page."""

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the tiles or strips under one block."""
        with damaged(self.where):
            pages = _pages(self.where, *_identity(self.where))
            block = np.zeros([part.stop - part.start for part in key], self.dtype)
            planes = [range(part.start, part.stop) for part in key[: self.lead]]
            inner = self._within_page(pages[0], key[self.lead :])
            for at in itertools.product(*planes):
                number = int(np.ravel_multi_index(at, self.shape[: self.lead])) if at else 0
                target = tuple(i - part.start for i, part in zip(at, key[: self.lead], strict=True))
                plane = _read_page(self.where, pages[number], inner)
                block[target] = plane.reshape(block.shape[self.lead :])
            return block

    def _within_page(
        self, page: tifffile.TiffPage | tifffile.TiffFrame, key: tuple[slice, ...]
    ) -> tuple[slice, ...]:
        """The key for the axes of a page, which lacks or has other axes of length 1."""
        real = iter([k for k, n in zip(key, self.shape[self.lead :], strict=True) if n != 1])
        return tuple(slice(0, 1) if n == 1 else next(real) for n in page.keyframe.shape)


@dataclass(frozen=True, slots=True)
class WholeTiff:
    """Pixels whose pages and axes do not line up; decoded as a whole for each block."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the file and copy one block."""
        with damaged(self.where), tifffile.TiffFile(self.where) as file:
            pixels = np.asarray(file.series[0].asarray()).reshape(self.shape)
            return np.array(pixels[key])


def tiff_image(path: Path) -> Stored:
    """The image in a TIFF file; only its headers are read.

    Raises:
        DataError: it is no TIFF, is damaged, or holds several images.
    """
    with damaged(str(path)):
        refuse_circle(path)
    with damaged(str(path)), _strict(path), tifffile.TiffFile(path) as file:
        refuse_others(path, file)
        series = _main_series(path, file)
        shape = tuple(series.get_shape(squeeze=False))
        letters = series.get_axes(squeeze=False)
        axes = "".join(letter if letter in "TCZYXS" else UNKNOWN for letter in letters)
        first = series.pages[0].keyframe
        if series.dtype is None or first.dtype is None:
            raise DataError(f"{path}: cannot read pixels of {first.bitspersample} bits.")
        extra = first.extrasamples
        alpha = "S" in axes and any(kind in (1, 2) for kind in extra)
        return Stored(
            pixels=_pixels(path, file, series, shape),
            axes=axes,
            spacing=steps(file),
            channels=channel_names(file),
            alpha=alpha,
            colours=first.photometric in (2, 3, 6),
        )


class _Complaints(logging.Handler):
    """What tifffile logs in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        if record.thread == self._thread:
            self.lines.append(record.getMessage())


@contextmanager
def _strict(path: Path) -> Iterator[None]:
    """Make an error of pages that cannot be reached, which tifffile only logs and leaves out."""
    complaints = _Complaints()
    logger = tifffile.logger()
    logger.addHandler(complaints)
    try:
        yield
    finally:
        logger.removeHandler(complaints)
    for line in complaints.lines:
        if any(words in line for words in _TRUNCATION):
            raise DataError(f"{path}: is cut short or damaged: {line}")


def _main_series(path: Path, file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    everything = file.series
    if not everything:
        raise DataError(f"{path}: holds no image.")
    if everything[0].kind in _MAIN_KINDS:
        images = [s for s in everything if not s.pages[0].keyframe.is_reduced]
        if len(images) > 1:
            shapes = ", ".join(" x ".join(map(str, s.shape)) for s in images[:4])
            more = ", ..." if len(images) > 4 else ""
            raise DataError(
                f"{path}: holds {len(images)} images ({shapes}{more}).",
                hint="Save each as a file of its own.",
            )
        return images[0] if images else everything[0]
    return everything[0]


def _pixels(
    path: Path, file: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: tuple[int, ...]
) -> MappedTiff | PagedTiff | WholeTiff:
    size = path.stat().st_size
    dtype = np.dtype(series.dtype)
    refuse_absurd(str(path), shape)
    if any(page is None for page in series.pages):
        raise DataError(f"{path}: pages are missing from the file.")
    if any(page.parent is not file for page in series.pages):
        raise DataError(
            f"{path}: is part of an image that is spread over several files.",
            hint="Save it as one file, or as OME-Zarr.",
        )
    offset = series.dataoffset
    if offset is not None and dtype.kind != "b":
        if offset + math.prod(shape) * dtype.itemsize > size:
            raise DataError(f"{path}: is cut short: pixels are missing at its end.")
        return MappedTiff(str(path), offset, shape, dtype.newbyteorder(file.byteorder))
    refuse_blocks(path, series, shape)
    for page in (series.pages[0], series.pages[-1]):
        spans = zip(page.dataoffsets, page.databytecounts, strict=False)
        if any(start + count > size for start, count in spans):
            raise DataError(f"{path}: is cut short: pixels are missing at its end.")
    inner = tuple(n for n in series.pages[0].keyframe.shape if n != 1)
    for lead in range(len(shape) + 1):
        within = tuple(n for n in shape[lead:] if n != 1)
        if math.prod(shape[:lead]) == len(series.pages) and within == inner:
            return PagedTiff(str(path), shape, dtype.newbyteorder("="), lead)
    refuse_whole(path, shape, dtype.itemsize)
    return WholeTiff(str(path), shape, dtype.newbyteorder("="))


def _identity(where: str) -> tuple[int, int, int]:
    status = os.stat(where)
    return status.st_mtime_ns, status.st_size, status.st_ino


# The page tables of a file, not its pixels; the numbers make a replaced file a new one.
@lru_cache(maxsize=128)
def _pages(
    where: str, modified: int, size: int, inode: int
) -> list[tifffile.TiffPage | tifffile.TiffFrame]:
    with _strict(Path(where)), tifffile.TiffFile(where) as file:
        pages = list(_main_series(Path(where), file).pages)
        for page in pages:
            _ = page.dataoffsets, page.databytecounts
        _ = pages[0].keyframe.decode, pages[0].keyframe.jpegtables, pages[0].keyframe.jpegheader
        return pages


def _read_page(
    where: str, page: tifffile.TiffPage | tifffile.TiffFrame, key: tuple[slice, ...]
) -> NDArray[Any]:
    """The block under ``key`` of one page, in the axes of that page."""
    frame = page.keyframe
    name = page.parent.filehandle.path
    shape = frame.shape
    separate = frame.planarconfig == 2 and frame.samplesperpixel > 1
    chunk = ((1,) if separate else ()) + tuple(frame.chunks)
    block = np.zeros([part.stop - part.start for part in key], frame.dtype)
    spans = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(key, chunk, strict=True)
    ]
    with open(name, "rb") as file:
        for index in itertools.product(*spans):
            segment = int(np.ravel_multi_index(index, frame.chunked))
            count = page.databytecounts[segment]
            if count == 0:
                continue  # a sparse tile, which is all zero
            file.seek(page.dataoffsets[segment])
            data = file.read(count)
            if len(data) < count:
                raise DataError(f"{where}: is cut short: pixels are missing at its end.")
            origin = [i * size for i, size in zip(index, chunk, strict=True)]
            refuse_stream(where, frame, data)
            piece = _decode(frame, page, data, segment)
            extent = [min(s, n - o) for s, n, o in zip(chunk, shape, origin, strict=True)]
            piece = piece[tuple(slice(0, size) for size in extent)]
            low = [max(p.start, o) for p, o in zip(key, origin, strict=True)]
            high = [min(p.stop, o + e) for p, o, e in zip(key, origin, extent, strict=True)]
            to = tuple(
                slice(a - p.start, b - p.start) for a, b, p in zip(low, high, key, strict=True)
            )
            of = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
            block[to] = piece[of]
    return block


def _decode(
    frame: tifffile.TiffPage,
    page: tifffile.TiffPage | tifffile.TiffFrame,
    data: bytes,
    segment: int,
) -> NDArray[Any]:
    """One tile or strip in the axes of its page; tiles at the rim with their padding."""
    tables = {"jpegtables": page.jpegtables, "jpegheader": frame.jpegheader}
    options = {name: value for name, value in tables.items() if value is not None}
    piece, _, (depth, length, width, samples) = frame.decode(data, segment, **options)
    if piece is None:
        piece = np.zeros((depth, length, width, samples), frame.dtype)
    separate = frame.planarconfig == 2 and frame.samplesperpixel > 1
    sizes = (1,) if separate else ()
    sizes += (depth,) if frame.tiledepth > 1 else ()
    sizes += (length, width)
    sizes += (samples,) if frame.planarconfig == 1 and frame.samplesperpixel > 1 else ()
    return np.asarray(piece[:depth, :length, :width, :samples]).reshape(sizes)

"""What is refused of TIFF files before anything is decoded: circles, lies and huge tiles."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import tifffile

from cellseg.errors import DataError
from cellseg.limits import refuse_absurd, refuse_large_block, size_text

_MOST_PAGES = 1 << 24
_CODESTREAMS = {6: "jpeg", 7: "jpeg", 34892: "jpeg", 33007: "jpeg", 34933: "png", 33003: "jpeg2000",
                33004: "jpeg2000", 33005: "jpeg2000", 34712: "jpeg2000"}  # fmt: skip
"""Compressions whose data state a size of their own."""


def refuse_circle(path: Path) -> None:
    """Raise a DataError where the list of pages comes back to an earlier one, or never ends."""
    with path.open("rb", buffering=0) as file:
        start = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(f"{order}H", start[2:4])[0] if order and len(start) >= 8 else 0
        if version == 42:
            count, tag, link, at = "H", 12, "I", struct.unpack(f"{order}I", start[4:8])[0]
        elif version == 43 and len(start) == 16:
            count, tag, link, at = "Q", 20, "Q", struct.unpack(f"{order}Q", start[8:16])[0]
        else:
            return  # no TIFF, or one of a kind that tifffile reads in its own way
        wide, long = struct.calcsize(f"<{count}"), struct.calcsize(f"<{link}")
        seen = set[int]()
        while at:
            if at in seen or len(seen) > _MOST_PAGES:
                raise DataError(
                    f"{path}: is damaged: its list of pages comes back to an earlier one."
                )
            seen.add(at)
            file.seek(at)
            head = file.read(wide)
            if len(head) < wide:
                return  # tifffile says what is wrong
            file.seek(at + wide + struct.unpack(f"{order}{count}", head)[0] * tag)
            tail = file.read(long)
            at = struct.unpack(f"{order}{link}", tail)[0] if len(tail) == long else 0


def refuse_others(path: Path, file: tifffile.TiffFile) -> None:
    """Raise a DataError where OME-XML names files elsewhere, which would be opened."""
    try:
        root = ElementTree.fromstring(file.ome_metadata or "<OME/>")
    except ElementTree.ParseError:
        return  # tifffile, which has the same parser, says what is wrong
    for name in (each.attrib["FileName"] for each in root.iter() if "FileName" in each.attrib):
        if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
            raise DataError(
                f"{path}: its metadata name a file in another folder: {name[:80]!r}.",
                hint="Save it as one file, or as OME-Zarr.",
            )


def refuse_blocks(path: Path, series: tifffile.TiffPageSeries, shape: tuple[int, ...]) -> None:
    """Raise a DataError for tiles or strips that are too large, or not as many as the image has."""
    where = str(path)
    refuse_absurd(where, shape)
    frame = series.pages[0].keyframe
    if frame is None or frame.dtype is None:
        return
    kind = "a tile" if frame.is_tiled else "a strip"
    refuse_large_block(where, tuple(frame.chunks), frame.dtype.itemsize, kind)
    wanted = math.prod(frame.chunked)
    found = len(series.pages[0].dataoffsets)
    if found < wanted:
        raise DataError(
            f"{path}: is damaged: it has {found} of the {wanted} tiles or strips that its size"
            " asks for."
        )


def refuse_whole(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise a DataError for an image that can only be decoded as a whole and is too large."""
    refuse_large_block(str(path), shape, itemsize, "the image")


def refuse_stream(where: str, frame: Any, data: bytes) -> None:
    """Raise a DataError where the data of a tile say that it is far larger than the page does.

    Args:
        where: the file.
        frame: the page, as tifffile has it.
        data: of the tile or strip.
    """
    kind = _CODESTREAMS.get(int(frame.compression))
    if kind is None:
        return
    try:
        pixels = _SIZES[kind](io.BytesIO(data))
    except (ValueError, LookupError, struct.error, DataError):
        return  # the decoder says what is wrong
    most = 4 * math.prod(frame.chunks) + (1 << 20)
    if pixels > most:
        raise DataError(
            f"{where}: is damaged: a tile holds {size_text(pixels)} of pixels, and the page says"
            f" {size_text(math.prod(frame.chunks))}."
        )


def _jpeg(file: BinaryIO) -> int:
    from cellseg.readers.raster import jpeg_header

    height, width, samples, _ = jpeg_header(file)
    return height * width * samples


def _png(file: BinaryIO) -> int:
    data = file.read(24)
    width, height = struct.unpack(">II", data[16:24])
    return int(height * width)


def _jpeg2000(file: BinaryIO) -> int:
    data = file.read(1 << 16)
    at = data.index(b"\xff\x4f\xff\x51") + 8
    x1, y1, x0, y0 = struct.unpack(">4I", data[at : at + 16])
    (samples,) = struct.unpack(">H", data[at + 32 : at + 34])
    return int(max(x1 - x0, 0) * max(y1 - y0, 0) * samples)


_SIZES = {"jpeg": _jpeg, "png": _png, "jpeg2000": _jpeg2000}

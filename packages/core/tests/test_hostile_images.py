"""Image files from strangers: headers that lie, bombs, names of files elsewhere.

Each is refused in one line that names it, before memory is taken; what is large and honest is not.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hostile_files import PIXELS, deflated, refused, taken

from cellseg.errors import DataError
from cellseg.outputs.formats import output_for

# TIFF

WIDTH, HEIGHT, BITS, COMPRESSION, ROWS, SAMPLES = 256, 257, 258, 259, 278, 277
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
LARGE = 10**6


def tiff(path: Path, tags: Mapping[int, Any], **options: Any) -> Path:
    """A TIFF file whose tags say something else than what was written."""
    tifffile.imwrite(path, PIXELS, **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        for code, value in tags.items():
            file.pages[0].tags[code].overwrite(value)
    return path


@pytest.mark.parametrize(
    ("options", "tags", "match"),
    [
        ({}, {WIDTH: LARGE, HEIGHT: LARGE}, "is cut short"),
        ({"compression": "zlib"}, {WIDTH: LARGE, HEIGHT: LARGE}, "has 1 of the 15625 tiles"),
        (
            {"compression": "zlib"},
            {WIDTH: LARGE, HEIGHT: LARGE, ROWS: LARGE},
            "a strip has 1000000 x 1000000 pixels, 2 TB; .* at most 2.147 GB",
        ),
        (
            {"compression": "zlib", "tile": (64, 64)},
            {TILE_WIDTH: 2**30, TILE_HEIGHT: 2**30, WIDTH: 2**30, HEIGHT: 2**30},
            "a tile has 1073741824 x 1073741824 pixels",
        ),
        ({}, {BITS: 65535}, "65535 bits"),
        ({}, {SAMPLES: 65535}, "is cut short"),
        ({"compression": "zlib"}, {SAMPLES: 65535}, "cannot be"),
        ({}, {WIDTH: 0}, "cannot be read"),
        ({"compression": "zlib"}, {ROWS: 0}, ""),
    ],
)
def test_a_tiff_header_that_lies(
    tmp_path: Path, options: dict[str, Any], tags: dict[int, Any], match: str
) -> None:
    refused(tiff(tmp_path / "lie.tif", tags, **options), match)


@pytest.mark.parametrize("back", [0, 1, 2])
def test_a_list_of_pages_without_an_end(tmp_path: Path, back: int) -> None:
    path = tmp_path / "circle.tif"
    tifffile.imwrite(path, np.ones((3, 8, 8), np.uint16), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
    content = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<H", content, offsets[2])
    struct.pack_into("<I", content, offsets[2] + 2 + 12 * count, offsets[back])
    path.write_bytes(content)
    refused(path, "its list of pages comes back")


def _with_tile(path: Path, data: bytes, compression: int) -> Path:
    """A TIFF file whose only tile has other data."""
    tifffile.imwrite(path, PIXELS.astype(np.uint8), compression="zlib", tile=(64, 64))
    at = path.stat().st_size
    with path.open("ab") as file:
        file.write(data)
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        tags[TILE_OFFSETS].overwrite([at])
        tags[TILE_BYTES].overwrite([len(data)])
        tags[COMPRESSION].overwrite(compression)
    return path


def test_a_tile_that_inflates(tmp_path: Path) -> None:
    refused(_with_tile(tmp_path / "bomb.tif", deflated(64), 8), "cannot be read")


@pytest.mark.parametrize("kind", ["jpeg", "png", "jpeg2k"])
def test_a_tile_that_says_it_is_larger_than_the_page(tmp_path: Path, kind: str) -> None:
    import imagecodecs

    large = np.zeros((3000, 3000), np.uint8)
    data = getattr(imagecodecs, f"{kind}_encode")(large)
    if kind == "jpeg2k":  # without the box around it
        data = data[data.index(b"\xff\x4f\xff\x51") :]
    codes = {"jpeg": 7, "png": 34933, "jpeg2k": 33005}
    refused(_with_tile(tmp_path / "tile.tif", data, codes[kind]), "a tile holds 9 MB of pixels")


@pytest.mark.parametrize(
    "written",
    ['"../secret.tif"', '"..&#47;secret.tif"', '"&#x2e;./secret.tif"', """ '../secret.tif'"""],
)
def test_metadata_that_name_files_elsewhere(tmp_path: Path, written: str) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, ome=True)
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
    assert text is not None
    text = text.replace("</TiffData>", "").replace(
        "</Pixels>",
        f'<TiffData IFD="0"><UUID FileName={written}>urn:uuid:1</UUID></TiffData></Pixels>',
    )
    tifffile.imwrite(path, PIXELS, description=text, metadata=None)
    refused(path, "name a file in another folder: '../secret.tif'")


def test_xml_that_grows(tmp_path: Path) -> None:
    names = [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 100}">' for n in range(12)]
    text = (
        f'<?xml version="1.0"?><!DOCTYPE OME [{"".join(names)}]><OME><Pixels>&e11;</Pixels></OME>'
    )
    path = tmp_path / "laughs.ome.tif"
    tifffile.imwrite(path, PIXELS, description=text, metadata=None)
    refused(path, "cannot be read|damaged")


# PNG and JPEG


def png(path: Path, width: int, height: int, data: bytes, bits: int = 8) -> Path:
    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_png_that_inflates(tmp_path: Path) -> None:
    refused(png(tmp_path / "a.png", 2**31 - 1, 2**31 - 1, deflated(1)), "is cut short")
    refused(
        png(tmp_path / "b.png", 60000, 60000, bytes(4_000_000)), "picture has 60000 x 60000 pixels"
    )


def test_a_jpeg_header_that_lies(tmp_path: Path) -> None:
    import imagecodecs

    content = bytearray(imagecodecs.jpeg_encode(np.zeros((16, 16), np.uint8)))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 65500, 65500)
    (tmp_path / "a.jpg").write_bytes(content)
    refused(tmp_path / "a.jpg", "picture has 65500 x 65500 pixels, 4.29 GB")


# NIfTI


def nifti(path: Path, data: bytes, *shape: int) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), path)
    compressed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    struct.pack_into("<8h", content, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    content = content[:352] + data
    path.write_bytes(gzip.compress(content, 9) if compressed else content)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_header_that_lies(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    refused(nifti(path, bytes(64), 32767, 32767, 32767), "is cut short")
    refused(nifti(path, bytes(64), 4, 4, -4), "none of an image")


def test_no_more_of_a_compressed_nifti_is_unpacked_than_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cellseg.readers.nifti_file as module

    path = nifti(tmp_path / "bomb.nii.gz", bytes(200 * 2**20), 4, 4, 4)
    written: list[int] = []
    real = module.scratch_file

    def counted() -> Any:
        file = real()
        write = file.write
        file.write = lambda data: (written.append(len(data)), write(data))[1]
        return file

    monkeypatch.setattr(module, "scratch_file", counted)
    assert taken(path).shape == (1, 4, 4, 4) and sum(written) == 352 + 64


# Names of results


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../../x", "..", "", "C:x", "a\0b", "x" * 300, "a/" + "é" * 150, "..\\x",
     ".cellseg/x", "a/.hidden"],
)  # fmt: skip
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be used as a file name"):
        output_for("tiff", tmp_path, name, "cells")

"""Label images and probabilities as TIFF files, written block by block."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX
from cellseg.outputs.formats import PROBABILITIES
from cellseg.outputs.result import Result, output_file

Number = TypeVar("Number", np.uint32, np.float32)
UNKNOWN = (1.0, 1.0, 1.0)
_LARGEST_STRIP = 1 << 20


def write_tiff(result: Result, path: Path) -> None:
    """Write an OME-TIFF: uint32, zlib, axes and voxel size in its metadata.

    Images of more than one block are written in tiles, so that viewers open them at once.
    """
    tile = _tile(result)
    blocks = (ids for _, _, ids in result.blocks(_page(result, tile)))
    _write(path, result, blocks, tile)


def write_tiff_probabilities(result: Result, path: Path) -> None:
    """Write an OME-TIFF of probabilities: float32, a channel for each class, otherwise as labels.

    The values are precise to 11 bits.
    """
    tile = _tile(result)
    blocks = (values for *_, values in result.probability_blocks(_page(result, tile)))
    _write(path, result, blocks, tile, result.probabilities[0].shape[0])


def _write(
    path: Path,
    result: Result,
    blocks: Iterator[NDArray[Any]],
    tile: tuple[int, int] | None,
    channels: int = 0,
) -> None:
    """Write one block after the other; with ``channels``, blocks of probabilities."""
    import tifffile

    axes = with_classes(result.axes) if channels else result.axes
    sizes = {"t": len(result.frames), "c": channels} | dict(zip("zyx", result.shape, strict=True))
    shape = tuple(sizes[axis] for axis in axes)
    name = result.name + (PROBABILITIES if channels else "")
    metadata: dict[str, Any] = {
        "axes": axes.upper(),
        # Otherwise a random one: the same labels shall give the same file.
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}",
    }
    if channels and len(result.classes) == channels:
        metadata["Channel"] = {"Name": list(result.classes)}
    if result.spacing != UNKNOWN:
        for axis, size in zip("ZYX", result.spacing, strict=True):
            if axis.lower() in axes:
                metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    with output_file(path) as temporary:
        tifffile.imwrite(
            temporary,
            _pages(blocks, tile),
            shape=shape,
            dtype=np.float32 if channels else np.uint32,
            photometric="minisblack",
            tile=tile,
            compression="zlib",
            compressionargs={"level": 1},
            ome=True,
            metadata=metadata,
            bigtiff=4 * int(np.prod(shape, dtype=np.int64)) > 1 << 31,
        )


def _tile(result: Result) -> tuple[int, int] | None:
    """The tiles of the file; None where each plane is one strip."""
    if result.shape[1] * result.shape[2] <= _LARGEST_STRIP:
        return None
    y, x = result.block[1:]
    return (y, x) if y % 16 == x % 16 == 0 and y <= 4096 and x <= 4096 else (512, 512)


def _page(result: Result, tile: tuple[int, int] | None) -> ZYX:
    """The blocks of which the file is written, in its order."""
    y, x = result.shape[1:] if tile is None else tile
    return (1, y, x)


def _pages(blocks: Iterator[NDArray[Any]], tile: tuple[int, int] | None) -> Iterator[NDArray[Any]]:
    for block in blocks:
        plane = block[0]
        if tile is not None and plane.shape != tile:
            missing = [(0, t - n) for t, n in zip(tile, plane.shape, strict=True)]
            plane = np.pad(plane, missing)
        yield np.ascontiguousarray(plane)


def with_classes(axes: str) -> str:
    """The axes of probabilities, by those of the labels: ``c`` goes before the spatial ones."""
    return "t" * axes.count("t") + "c" + axes.replace("t", "")


def place(
    axes: str, frame: int, where: tuple[slice, ...], block: NDArray[Number], kind: int = 0
) -> tuple[tuple[int | slice, ...], NDArray[Number]]:
    """Where a ``(z, y, x)`` block of a frame goes in an array of ``axes``, and its shape there."""
    key: list[int | slice] = [frame] if "t" in axes else []
    key += [kind] if "c" in axes else []
    if "z" in axes:
        return (*key, *where), block
    return (*key, *islice(where, 1, None)), block[0]

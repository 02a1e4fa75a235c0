"""Label images as TIFF files, written block by block."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX
from cellseg.outputs.result import Result, output_file

UNKNOWN = (1.0, 1.0, 1.0)
_LARGEST_STRIP = 1 << 20


def write_tiff(result: Result, path: Path) -> None:
    """Write an OME-TIFF: uint32, zlib, axes and voxel size in its metadata.

    Images of more than one block are written in tiles, so that viewers open them at once.
    """
    import tifffile

    sizes = {"t": len(result.frames)} | dict(zip("zyx", result.shape, strict=True))
    shape = tuple(sizes[axis] for axis in result.axes)
    metadata: dict[str, Any] = {
        "axes": result.axes.upper(),
        # Otherwise a random one: the same labels shall give the same file.
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, result.name)}",
    }
    if result.spacing != UNKNOWN:
        for axis, size in zip("ZYX", result.spacing, strict=True):
            if axis.lower() in result.axes:
                metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    tile = None if shape[-2] * shape[-1] <= _LARGEST_STRIP else _tile(result.block)
    block: ZYX = (1, result.shape[1], result.shape[2]) if tile is None else (1, *tile)
    with output_file(path) as temporary:
        tifffile.imwrite(
            temporary,
            _pages(result, block, tile),
            shape=shape,
            dtype=np.uint32,
            tile=tile,
            compression="zlib",
            compressionargs={"level": 1},
            ome=True,
            metadata=metadata,
            bigtiff=4 * int(np.prod(shape, dtype=np.int64)) > 1 << 31,
        )


def _tile(block: ZYX) -> tuple[int, int]:
    y, x = block[1:]
    return (y, x) if y % 16 == x % 16 == 0 and y <= 4096 and x <= 4096 else (512, 512)


def _pages(
    result: Result, block: ZYX, tile: tuple[int, int] | None
) -> Iterator[NDArray[np.uint32]]:
    for _, _, ids in result.blocks(block):
        plane = ids[0]
        if tile is not None and plane.shape != tile:
            missing = [(0, t - n) for t, n in zip(tile, plane.shape, strict=True)]
            plane = np.pad(plane, missing)
        yield np.ascontiguousarray(plane)


def place(
    axes: str, frame: int, where: tuple[slice, ...], ids: NDArray[np.uint32]
) -> tuple[tuple[int | slice, ...], NDArray[np.uint32]]:
    """Where a ``(z, y, x)`` block of a frame goes in an array of ``axes``, and its shape there."""
    key: list[int | slice] = [frame] if "t" in axes else []
    if "z" in axes:
        return (*key, *where), ids
    return (*key, *islice(where, 1, None)), ids[0]

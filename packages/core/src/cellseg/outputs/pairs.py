"""Images with their labels, as data sets that the readers take without being told anything."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Spacing
from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.outputs.images import UNKNOWN
from cellseg.outputs.result import Result, output_file

PairFormat: TypeAlias = Literal["tif", "png", "ome-zarr", "hdf5"]

_OME_TYPES = (
    "uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its labels, as they are stored."""

    name: str
    """Of the files."""
    image: NDArray[Any]
    """``(c, z, y, x)``."""
    labels: NDArray[np.unsignedinteger[Any]]
    """``(z, y, x)``, at most 32 bits, 0 is background."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Micrometres, ``(z, y, x)``."""
    channels: tuple[str, ...] = ()
    """Their names, or none."""


def refuse(format: PairFormat, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise a DataError where a format cannot hold an image of this shape and type exactly.

    Args:
        format: the format to write.
        name: of the image.
        shape: ``(c, z, y, x)``.
        dtype: of the image.
    """
    hint = "Write another format: --format ome-zarr or hdf5"
    if format == "tif" and dtype.name not in _OME_TYPES:
        raise DataError(f"{name}: OME-TIFF has no pixels of type {dtype}.", hint=hint)
    if format == "png" and (
        shape[0] not in (1, 3) or shape[1] > 1 or dtype.name not in ("uint8", "uint16")
    ):
        size = " x ".join(map(str, shape))
        raise DataError(
            f"{name}: PNG holds grey or RGB planes of 8 or 16 bits, not {size} (c, z, y, x) of "
            f"{dtype}.",
            hint=f"{hint}, or tif",
        )


def write_pair(pair: Pair, folder: Path, format: PairFormat) -> None:
    """Write an image and its labels into the folder of a data set.

    ``tif`` makes ``images/NAME.tif`` and ``labels/NAME.tif`` (OME-TIFF); ``png`` the same with the
    image as PNG; ``ome-zarr`` makes ``NAME.ome.zarr`` with the labels inside; ``hdf5`` makes
    ``NAME.h5`` with the data sets ``raw`` and ``label``. Pixels keep their type, and what the
    format has a place for is written: the voxel size, except in PNG, and the names of the channels,
    except in PNG and HDF5.

    Raises:
        DataError: the format cannot hold the image.
        StorageError: the disk is full, or permission is missing.
    """
    refuse(format, pair.name, pair.image.shape, pair.image.dtype)
    if format == "hdf5":
        _write_hdf5(pair, folder / f"{pair.name}.h5")
    elif format == "ome-zarr":
        from cellseg.ome.image import write_image

        result = Result(pair.name, (pair.labels,), (), spacing=pair.spacing)
        with output_file(folder / f"{pair.name}.ome.zarr") as temporary:
            write_image(temporary, pair.image, result, pair.channels)
    else:
        if format == "png":
            _write_png(pair, folder / "images" / f"{pair.name}.png")
        else:
            _write_tiff(pair, pair.image, folder / "images" / f"{pair.name}.tif")
        _write_tiff(pair, pair.labels[None], folder / "labels" / f"{pair.name}.tif")


def _write_tiff(pair: Pair, pixels: NDArray[Any], path: Path) -> None:
    """An OME-TIFF of ``(c, z, y, x)``, without axes of length 1."""
    import tifffile

    axes = "".join(a for a, n in zip("CZ", pixels.shape, strict=False) if n > 1) + "YX"
    # Otherwise a random one: the same pixels shall give the same file.
    unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{path.parent.name}/{pair.name}")
    metadata: dict[str, Any] = {"axes": axes, "UUID": f"urn:uuid:{unique}"}
    if pixels is pair.image and pair.channels:
        metadata["Channel"] = {"Name": list(pair.channels)}
    if pair.spacing != UNKNOWN:
        for axis, size in zip("ZYX", pair.spacing, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    with output_file(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels.reshape([n for n in pixels.shape[:2] if n > 1] + list(pixels.shape[2:])),
            photometric="minisblack",
            compression="zlib",
            compressionargs={"level": 1},
            ome=True,
            metadata=metadata,
            bigtiff=pixels.nbytes > 1 << 31,
        )


def _write_png(pair: Pair, path: Path) -> None:
    import cv2

    plane = np.moveaxis(pair.image[:, 0], 0, -1)
    # OpenCV has the colours in the order blue, green, red.
    data = cv2.imencode(".png", np.ascontiguousarray(plane[..., ::-1]))[1]
    write_atomic(path, data.tobytes())


def _write_hdf5(pair: Pair, path: Path) -> None:
    """By way of memory: HDF5 may crash the process where writing a file fails."""
    import h5py

    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        for key, pixels, axes in (("raw", pair.image, "czyx"), ("label", pair.labels, "zyx")):
            data = file.create_dataset(
                key, data=pixels, compression="gzip", compression_opts=1, shuffle=True
            )
            data.attrs["axes"] = axes
            if pair.spacing != UNKNOWN:
                data.attrs["voxel_size_um"] = pair.spacing
    write_atomic(path, held.getvalue())

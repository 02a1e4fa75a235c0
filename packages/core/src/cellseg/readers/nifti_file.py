"""NIfTI files: what their header says, and their voxels, mapped into memory.

A compressed file cannot be read in pieces. The first time that one is read, it is unpacked into a
nameless file in the folder for temporary files, which is gone when the process ends.
"""

from __future__ import annotations

import gzip
import math
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError, PluginError
from cellseg.files import storage_errors
from cellseg.limits import DEFLATE, refuse_absurd
from cellseg.readers.problems import damaged
from cellseg.readers.stored import Channel, Stored, micrometres

_AXES = "XYZTC"
"""What the axes of a NIfTI file are, by its standard."""
_UNITS = {"mm": "mm", "micron": "um", "meter": "m", "unknown": "um"}
_LARGEST = 1000.0
"""Voxels larger than this, in µm, are none of a microscope."""


@dataclass(frozen=True, slots=True)
class NiftiVoxels:
    """The voxels of one file, ``(x, y, z, …)`` as stored."""

    where: str
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    """Type of the numbers in the file."""
    offset: int
    """Where they begin in it."""
    slope: float
    inter: float
    """A voxel is ``slope * number + inter``."""
    whole: bool = False
    """Labels: fractions are an error, and whole numbers come as integers."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        if self.whole and (self._scaled or self.stored.kind == "f"):
            return np.dtype(np.uint32)
        return np.dtype(np.float32) if self._scaled else self.stored.newbyteorder("=")

    @property
    def _scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Copy one block.

        Raises:
            DataError: the file is damaged or gone, or labels are fractions.
        """
        with damaged(self.where):
            status = os.stat(self.where)
            numbers = np.array(_mapped(self, status.st_mtime_ns, status.st_ino)[key])
        if self._scaled:
            numbers = numbers * self.slope + self.inter
        if self.whole and numbers.dtype.kind == "f":
            if numbers.size and not (
                (numbers == np.rint(numbers)).all() and numbers.min() >= 0 and numbers.max() < 2**32
            ):
                raise DataError(
                    f"{self.where}: holds values that are no labels: fractions, or below 0.",
                    hint="Labels are 0 for background and 1, 2, 3, ... for objects or classes.",
                )
        return numbers.astype(self.dtype)


@dataclass(frozen=True, slots=True)
class Stacked:
    """Files of one shape as the channels of one image: ``(c, x, y, z, …)``."""

    files: tuple[NiftiVoxels, ...]

    @property
    def where(self) -> str:
        """The first file."""
        return self.files[0].where

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return (len(self.files), *self.files[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds those of all files."""
        return np.result_type(*(file.dtype for file in self.files))

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Copy one block."""
        blocks = [file.read(key[1:]) for file in self.files[key[0]]]
        return np.stack(blocks).astype(self.dtype)


def nifti_image(path: Path, unit: str = "auto", *, labels: bool = False) -> Stored:
    """The image in a NIfTI file; only its header is read.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        unit: of the voxel size: ``nm``, ``um``, ``mm``, or ``auto`` for what the header says. A
            header that says nothing means µm.
        labels: it holds labels, so that fractions are an error.

    Raises:
        DataError: it is no NIfTI file, is damaged, or states voxels that no microscope has.
        PluginError: nibabel is not installed.
    """
    nibabel = _nibabel()
    with damaged(str(path)):
        image: Any = nibabel.load(path)
        header, proxy = image.header, image.dataobj
        shape = tuple(int(length) for length in proxy.shape)
        # In the header of an opened image, these are blank.
        offset, stored = int(proxy.offset), np.dtype(proxy.dtype)
        slope, inter = float(proxy.slope), float(proxy.inter)
        zooms = [float(size) for size in header.get_zooms()[:3]]
        said = str(header.get_xyzt_units()[0])
    if not 2 <= len(shape) <= len(_AXES):
        raise DataError(f"{path}: is no image: its shape is {shape}.")
    refuse_absurd(str(path), shape)
    voxels = NiftiVoxels(str(path), shape, stored, offset, slope, inter, labels)
    most = path.stat().st_size * (DEFLATE if _compressed(path) else 1)
    if offset < 0 or offset + math.prod(shape) * stored.itemsize > most:
        raise DataError(f"{path}: is cut short: voxels are missing at its end.")
    sizes = [micrometres(size, _UNITS[said] if unit == "auto" else unit) for size in zooms]
    if unit == "auto" and said != "unknown" and any(size and size > _LARGEST for size in sizes):
        raise DataError(
            f"{path}: its header says that a voxel is {' x '.join(map(str, zooms))} {said}.",
            hint="If these are nm, as many programs write them: --voxel-unit nm",
        )
    spacing = {axis: size for axis, size in zip("XYZ", sizes, strict=False) if size is not None}
    return Stored(voxels, _AXES[: len(shape)], spacing)


def stacked(images: list[Stored], names: tuple[str, ...]) -> Stored:
    """Images of single files as the channels of one.

    Raises:
        DataError: they differ in shape or voxel size.
    """
    first, *others = images
    for other in others:
        if other.pixels.shape != first.pixels.shape or other.spacing != first.spacing:
            raise DataError(
                f"{first.where} and {other.where} are channels of one image, but differ in "
                f"shape or voxel size: {first.pixels.shape} and {other.pixels.shape}."
            )
    files = tuple(image.pixels for image in images if isinstance(image.pixels, NiftiVoxels))
    channels = tuple(Channel(name) for name in names)
    if not others:
        return Stored(first.pixels, first.axes, first.spacing, channels)
    return Stored(Stacked(files), "C" + first.axes, first.spacing, channels)


def _compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


# Mapped, not read; the numbers make a file that was written anew a new one.
@lru_cache(maxsize=1024)
def _mapped(voxels: NiftiVoxels, modified: int, inode: int) -> NDArray[Any]:
    path = Path(voxels.where)
    if not _compressed(path):
        return np.memmap(path, voxels.stored, "r", voxels.offset, voxels.shape, "F")
    with storage_errors(Path(tempfile.gettempdir())), scratch_file() as file:
        wanted = voxels.offset + math.prod(voxels.shape) * voxels.stored.itemsize
        with gzip.open(path) as packed:  # no more than is wanted, however much there is
            while (left := wanted - file.tell()) and (block := packed.read(min(left, 1 << 20))):
                file.write(block)
        if file.tell() < wanted:
            raise DataError(f"{path}: is cut short: voxels are missing at its end.")
        file.flush()
        return np.memmap(file, voxels.stored, "r", voxels.offset, voxels.shape, "F")


def scratch_file() -> Any:
    """A nameless file for temporary data; what is mapped of it stays when it is closed."""
    return tempfile.TemporaryFile(prefix="cellseg-")


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise PluginError(
            "NIfTI files are read with nibabel, which is not installed.",
            hint='Install it: uv pip install "cellseg-core[nifti]"',
        ) from error
    return nibabel

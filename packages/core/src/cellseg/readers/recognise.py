"""Which reader a path is for, from names and metadata files alone; no pixel is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellseg.errors import DataError
from cellseg.limits import MOST_JSON, read_bytes
from cellseg.locations import is_remote, prefetch
from cellseg.readers.ctc_folders import is_ctc

TIFF_SUFFIXES = (".tif", ".tiff")
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUFFIXES = TIFF_SUFFIXES + RASTER_SUFFIXES
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
COLLECTION = "datasets.yaml"
"""The file that makes a folder a collection of data sets."""
_YAML_SUFFIXES = (".yaml", ".yml")
_CREMI = re.compile(r"sample_?[abc]\+?(_padded)?(_\d{8})?\.(hdf|h5|hdf5)", re.IGNORECASE)
_SNEMI3D = tuple(
    f"{volume}_{part}" for volume in ("AC3", "AC4") for part in ("inputs", "labels")
) + tuple(f"{volume}-{part}" for volume in ("train", "test") for part in ("input", "labels"))
_ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")


def is_folder(path: Path) -> bool:
    """A PNG or JPEG file, or a folder that holds images, itself or in ``images/``, but for those
    that another reader is made for."""
    if path.is_file():
        return path.suffix.lower() in RASTER_SUFFIXES
    return (
        _plain(path)
        and not is_snemi3d(path)
        and not is_ctc(path)
        and (_holds(path, IMAGE_SUFFIXES) or _holds(path / "images", IMAGE_SUFFIXES))
    )


def is_tiff(path: Path) -> bool:
    """A TIFF file."""
    return path.is_file() and path.suffix.lower() in TIFF_SUFFIXES


def is_ome_zarr(path: Path) -> bool:
    """An OME-Zarr image, or a folder of them."""
    return any(_is_image(one) for one in _first(path))


def is_plate(path: Path) -> bool:
    """An OME-Zarr plate."""
    return is_zarr_node(path) and "plate" in ome_attributes(path)


def is_zarr(path: Path) -> bool:
    """A Zarr container that is neither an OME-Zarr image nor a plate, or a folder of them."""
    return any(not _is_image(one) and "plate" not in ome_attributes(one) for one in _first(path))


def is_hdf5(path: Path) -> bool:
    """An HDF5 file, or a folder of them, that no other reader is made for."""
    if is_cremi(path) or is_snemi3d(path):
        return False
    if path.is_file():
        return path.suffix.lower() in HDF5_SUFFIXES
    return _plain(path) and _holds(path, HDF5_SUFFIXES)


def is_snemi3d(path: Path) -> bool:
    """A folder with an image of SNEMI3D under one of its usual names."""
    return _plain(path) and any(name.endswith(("inputs", "input")) for name in snemi3d_files(path))


def snemi3d_files(folder: Path) -> dict[str, Path]:
    """The files of SNEMI3D in a folder, or in its ``image/`` and ``seg/``, by their names without
    extension."""
    found: dict[str, Path] = {}
    for place in (folder, folder / "image", folder / "seg"):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.suffix.lower() in HDF5_SUFFIXES + TIFF_SUFFIXES and file.stem in _SNEMI3D:
                found.setdefault(file.stem, file)
    return found


def is_cremi(path: Path) -> bool:
    """A file of CREMI, by its name and what it holds, or a folder of them alone."""
    if path.is_file():
        return _CREMI.fullmatch(path.name) is not None and _has_cremi_image(path)
    if not _plain(path):
        return False
    files = [file for file in path.iterdir() if file.suffix.lower() in HDF5_SUFFIXES]
    named = all(_CREMI.fullmatch(file.name) for file in files)
    return bool(files) and named and any(map(_has_cremi_image, sorted(files)))


def is_nifti(path: Path) -> bool:
    """A NIfTI file, a folder of them, or nnU-Net data sets."""
    if path.is_file():
        return path.name.lower().endswith(NIFTI_SUFFIXES)
    return _plain(path) and (
        bool(nnunet_folders(path)) or any(map(holds_nifti, (path, path / "images")))
    )


def holds_nifti(folder: Path) -> bool:
    """A folder that has NIfTI files directly in it."""
    return folder.is_dir() and any(
        file.name.lower().endswith(NIFTI_SUFFIXES) and not file.name.startswith(".")
        for file in folder.iterdir()
    )


def nnunet_folders(path: Path) -> list[Path]:
    """``path`` if it is an nnU-Net data set with NIfTI images, else the folders in it that are."""
    if holds_nifti(path / "imagesTr"):
        return [path]
    if not path.is_dir():
        return []
    return sorted(one for one in path.iterdir() if holds_nifti(one / "imagesTr"))


def is_collection(path: Path) -> bool:
    """A YAML file, or a folder with a ``datasets.yaml``."""
    if path.is_file():
        return path.suffix.lower() in _YAML_SUFFIXES
    return (path / COLLECTION).is_file()


def is_zarr_node(path: Path) -> bool:
    """A Zarr group or array."""
    if not is_remote(path) and not path.is_dir():
        return False
    return any((path / name).is_file() for name in _ZARR_FILES)


def zarr_attributes(path: Path) -> Mapping[str, Any]:
    """The attributes of a Zarr group or array, of format 2 or 3.

    Raises:
        DataError: its metadata is damaged.
    """
    node = read_json(path / "zarr.json")
    if node is not None:
        attributes = node.get("attributes", {})
        if not isinstance(attributes, dict):
            raise DataError(f"{path / 'zarr.json'}: its attributes are damaged.")
        return attributes
    return read_json(path / ".zattrs") or {}


def ome_attributes(path: Path) -> Mapping[str, Any]:
    """The OME metadata of a Zarr group: the attributes (0.4), or those under ``ome`` (0.5)."""
    attributes = zarr_attributes(path)
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def read_json(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no such file.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        value = json.loads(read_bytes(file, MOST_JSON))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: is damaged: it should hold a JSON object.")
    return value


def zarrs_in(folder: Path) -> list[Path]:
    """The Zarr containers directly in a folder, sorted.

    Raises:
        DataError: it is no folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is neither a Zarr container nor a folder of them.")
    inside = [one for one in folder.iterdir() if not one.name.startswith(".")]
    prefetch(one / name for one in inside for name in _ZARR_FILES[:2])
    return sorted(one for one in inside if is_zarr_node(one))


def _zarrs(path: Path) -> list[Path]:
    """``path`` if it is a container, else the containers in it."""
    if is_zarr_node(path):
        return [path]
    return zarrs_in(path) if path.is_dir() and not is_collection(path) else []


def _first(path: Path) -> list[Path]:
    """The first of the containers that says what it is; a damaged one among others does not."""
    containers = _zarrs(path)
    for one in containers[:-1]:
        try:
            ome_attributes(one)
        except DataError:
            continue
        return [one]
    return containers[-1:]


def _is_image(path: Path) -> bool:
    attributes = ome_attributes(path)
    return "multiscales" in attributes or "bioformats2raw.layout" in attributes


def _plain(path: Path) -> bool:
    return path.is_dir() and not is_zarr_node(path) and not is_collection(path)


def _has_cremi_image(file: Path) -> bool:
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            return "volumes/raw" in opened
    except OSError:  # damaged: the reader that opens it says so
        return False


def _holds(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.is_dir() and any(
        file.suffix.lower() in suffixes and not file.name.startswith(".") for file in path.iterdir()
    )

"""The output formats, and where each one puts its file. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from cellseg.errors import DataError

Format: TypeAlias = Literal["ome-zarr", "tiff", "hdf5", "geojson", "parquet", "csv"]

SUFFIXES: dict[Format, str] = {
    "ome-zarr": ".ome.zarr",
    "tiff": ".tif",
    "hdf5": ".h5",
    "geojson": ".geojson",
    "parquet": ".parquet",
    "csv": ".csv",
}


@dataclass(frozen=True, slots=True)
class Output:
    """One file or container to write."""

    format: Format
    path: Path
    """What appears when it is done; for labels in the input, the label's own group."""
    label_name: str
    container: Path | None = None
    """The OME-Zarr image group that the labels go into, or None for a file of their own."""


def output_for(format: Format, folder: Path, name: str, label_name: str) -> Output:
    """Where the output of the image ``name`` goes in a folder.

    Raises:
        DataError: the name would lead out of the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
        raise DataError(f"The image name {name!r} cannot be used as a file name.")
    path = folder.joinpath(*parts)
    return Output(format, path.with_name(path.name + SUFFIXES[format]), label_name)


def output_inside(container: Path, label_name: str) -> Output:
    """Labels written into the OME-Zarr image they belong to."""
    return Output("ome-zarr", container / "labels" / label_name, label_name, container)

"""The output formats, and where each one puts its file. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from cellseg.errors import DataError
from cellseg.track_files import table_beside

Format: TypeAlias = Literal["ome-zarr", "tiff", "hdf5", "geojson", "parquet", "csv", "ctc", "geff"]

SUFFIXES: dict[Format, str] = {
    "ome-zarr": ".ome.zarr",
    "tiff": ".tif",
    "hdf5": ".h5",
    "geojson": ".geojson",
    "parquet": ".parquet",
    "csv": ".csv",
    "ctc": "_RES",
    "geff": ".geff",
}
_LONGEST = 200
"""Bytes of a file name, with room for what is added to it."""
TRACKED: tuple[Format, ...] = ("ctc", "geff")
"""Formats of tracks: only for movies whose objects were followed from frame to frame."""
PROBABILITIES = "_probabilities"
"""What is added to the name of a label image, for the probabilities of its classes."""


@dataclass(frozen=True, slots=True)
class Output:
    """One file or container to write."""

    format: Format
    path: Path
    """What appears when it is done; for labels in the input, the label's own group."""
    label_name: str
    container: Path | None = None
    """The OME-Zarr image group that the labels go into, or None for a file of their own."""
    probabilities: bool = False
    """Whether these are the probabilities of the classes instead of the labels. HDF5 files and new
    OME-Zarr containers hold both."""
    smoothing: float = 0.0
    """Tolerance in pixels with which outlines are simplified; only for those of GeoJSON."""


def output_for(format: Format, folder: Path, name: str, label_name: str) -> Output:
    """Where the output of the image ``name`` goes in a folder.

    Raises:
        DataError: the name would lead out of the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    longest = max((len(os.fsencode(part)) for part in parts), default=0)
    if (
        not parts
        or parts[0] == "/"
        or any(part.startswith(".") for part in parts)
        or ":" in parts[0]
        or "\0" in name
        or longest > _LONGEST
    ):
        raise DataError(f"The image name {name[:200]!r} cannot be used as a file name.")
    path = folder.joinpath(*parts)
    return Output(format, path.with_name(path.name + SUFFIXES[format]), label_name)


def probabilities_beside(output: Output) -> Output | None:
    """Where the probabilities of the classes go, by the output of the labels.

    None where they are in the same file or container, and for formats without voxels.
    """
    if output.container is not None:
        path = output.container / (output.label_name + PROBABILITIES)
    elif output.format == "tiff":
        suffix = SUFFIXES["tiff"]
        path = output.path.with_name(output.path.name.removesuffix(suffix) + PROBABILITIES + suffix)
    else:
        return None
    return replace(output, path=path, probabilities=True)


def tracks_beside(output: Output) -> Path | None:
    """The table of the tracks that is written with the labels; None for formats that hold it.

    Of labels in an OME-Zarr image it is beside that image, and has the name of the labels, too.
    """
    if output.format in TRACKED:
        return None
    if output.container is not None:
        name = output.container.name.removesuffix(".zarr").removesuffix(".ome")
        return table_beside(output.container, f"{name}_{output.label_name}")
    return table_beside(output.path, output.path.name.removesuffix(SUFFIXES[output.format]))


def output_inside(container: Path, label_name: str) -> Output:
    """Labels written into the OME-Zarr image they belong to."""
    return Output("ome-zarr", container / "labels" / label_name, label_name, container)

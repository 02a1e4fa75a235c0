"""Tracked labels, whatever holds them: results or truth of the Cell Tracking Challenge, or ours."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from cellseg.data import LazyArray
from cellseg.errors import DataError
from cellseg.outputs.formats import SUFFIXES, Format
from cellseg.readers.ctc import frame_labels, listed, shifted
from cellseg.readers.ctc_folders import (
    RESULT_TABLE,
    Kind,
    frames,
    numbered,
    sequences,
    with_name,
)
from cellseg.readers.ctc_folders import Sequence as Folders
from cellseg.readers.recognise import is_zarr_node
from cellseg.readers.stored import Stored, known_axes
from cellseg.readers.view import View
from cellseg.track_files import TABLE, read_ctc_table, read_tracks_csv, table_beside
from cellseg.tracks import Lineage

Role: TypeAlias = Literal["result", "truth"]
_VOXELS: tuple[Format, ...] = ("ome-zarr", "tiff", "hdf5")
_HOLD_LABELS = (".tif", ".tiff", ".h5", ".hdf5")


@dataclass(frozen=True, slots=True)
class TrackedMovie:
    """Labels of a movie whose ids are those of tracks."""

    name: str
    """Relative to the path that was opened: ``01``, ``train/01``."""
    frames: Sequence[LazyArray]
    """Each ``(z, y, x)``, integers, 0 is background."""
    lineage: Lineage
    """As the table says, right or not (see ``cellseg.tracks.faults``)."""
    path: Path
    """The folder, file or container of the labels."""
    segmentation: Mapping[tuple[int, int | None], LazyArray] | None = None
    """The segmentation truth (SEG) of a CTC truth, by frame and plane, None being the whole frame;
    each ``(z, y, x)``, with one plane where it is of one. Its ids are no tracks."""


def open_tracked(path: Path, role: Role | None = None) -> list[TrackedMovie]:
    """All tracked labels at a path, lazily; sorted by name.

    Args:
        path: ``NN_RES``, ``NN_GT``, a data set or tree of the Cell Tracking Challenge; a TIFF,
            OME-Zarr or HDF5 output of cellseg with its ``NAME_tracks.csv`` beside it; or a folder
            of these. A movie that a folder holds both as ``NN_RES`` and in another format is taken
            from ``NN_RES``.
        role: where a path holds results and truth, which to take.

    Raises:
        DataError: there are no tracked labels, masks are missing, a table cannot be read, or the
            path holds both results and truth and ``role`` is None.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    path = with_name(path)
    if path.is_file() or is_zarr_node(path):
        return [_output(path)]
    if path.name.endswith("_RES") or (path / RESULT_TABLE).is_file():
        return [_result(path.name.removesuffix("_RES"), path)]
    if path.name == "TRA":
        path = path.parent
    found = sequences(path)
    truths = [one for one in found if one.gold is not None and _has_tracks(one)]
    results = {} if path.name.endswith("_GT") else _results_in(path)
    if results and truths and role is None:
        raise DataError(
            f"{path}: holds results and truth.",
            hint=f"Name one of the folders: {next(iter(results.values()))} or {truths[0].gold}",
        )
    if truths and (role != "result" or not results):
        return [_truth(one) for one in truths]
    movies = {
        name: _result(name, file) if file.name.endswith(SUFFIXES["ctc"]) else _output(file, name)
        for name, file in results.items()
    }
    if not movies:
        raise DataError(
            f"{path}: holds no tracked labels.",
            hint="Expected NN_RES with res_track.txt, NN_GT/TRA with man_track.txt, or labels with "
            f"a table NAME{TABLE} beside them.",
        )
    return [movies[name] for name in sorted(movies)]


def _has_tracks(folders: Folders) -> bool:
    return folders.table is not None and folders.table.is_file()


def _result(name: str, folder: Path) -> TrackedMovie:
    lineage = read_ctc_table(folder / RESULT_TABLE)
    return TrackedMovie(name, *_masks(folder, "mask", lineage), folder)


def _truth(folders: Folders) -> TrackedMovie:
    assert folders.gold is not None and folders.table is not None
    masks, lineage = _masks(folders.gold / "TRA", "man_track", read_ctc_table(folders.table))
    shift = min(frames(folders.gold / "TRA", "man_track"))
    pieces = numbered(folders.gold / "SEG", "man_seg")
    segmentation = {
        (frame - shift, plane): frame_labels(file) for (frame, plane), file in pieces.items()
    }
    return TrackedMovie(folders.name, masks, lineage, folders.gold, segmentation or None)


def _masks(folder: Path, kind: Kind, lineage: Lineage) -> tuple[list[View], Lineage]:
    """The masks of a folder, and the lineage counted as they are."""
    files = frames(folder, kind)
    if not files:
        raise DataError(f"{folder}: holds no masks.", hint=f"Expected {kind}000.tif and so on.")
    missing = set(range(min(files), max(files) + 1)) - set(files)
    if missing:
        raise DataError(f"{folder}: masks of {listed(missing)} are missing.")
    masks = [frame_labels(file) for file in files.values()]
    for mask, file in zip(masks, files.values(), strict=True):
        if mask.shape != masks[0].shape:
            raise DataError(
                f"{file}: is {mask.shape} (z, y, x), but the masks before it are {masks[0].shape}."
            )
    return masks, shifted(lineage, min(files))


def _results_in(folder: Path) -> dict[str, Path]:
    """The tracked labels below a folder by name: ``NN_RES``, and files with a table of tracks."""
    found: dict[str, Path] = {}
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        here = Path(place)
        relative = here.relative_to(folder)
        for table in sorted(name for name in files if name.endswith(TABLE)):
            name = table.removesuffix(TABLE)
            beside = (here / (name + SUFFIXES[format]) for format in _VOXELS)
            labels = next((file for file in beside if file.exists()), None)
            if labels is not None:
                found.setdefault((relative / name).as_posix(), labels)
        for name in inner:
            if name.endswith(SUFFIXES["ctc"]) and (here / name / RESULT_TABLE).is_file():
                found[(relative / name.removesuffix(SUFFIXES["ctc"])).as_posix()] = here / name
            elif name.endswith(".zarr") and _tracked_inside(here / name):
                found.setdefault((relative / _stem(here / name)).as_posix(), here / name)
        inner[:] = [name for name in inner if not name.endswith((".zarr", ".geff"))]
    return found


def _stem(path: Path) -> str:
    """The name of an image that a label file or container belongs to."""
    for suffix in (*SUFFIXES.values(), ".ome.tif", ".zarr", ".tiff", ".hdf5"):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def _tracked_inside(container: Path) -> list[Path]:
    """The label images in an OME-Zarr image that have a table of tracks beside it."""
    start = f"{_stem(container)}_"
    tables = container.parent.glob(f"{glob.escape(start)}*{TABLE}")
    names = sorted(table.name.removeprefix(start).removesuffix(TABLE) for table in tables)
    labels = (container / "labels" / name for name in names if name)
    return [group for group in labels if is_zarr_node(group)]


def _output(path: Path, name: str = "") -> TrackedMovie:
    """Labels that cellseg wrote, with the table beside them."""
    if path.suffix.lower() not in _HOLD_LABELS and (path.is_file() or path.suffix == ".geff"):
        raise DataError(
            f"{path}: cannot hold tracked labels.",
            hint="Name the TIFF, OME-Zarr or HDF5 file, the folder NN_RES, or a folder of these.",
        )
    stem = _stem(path)
    table = table_beside(path, stem)
    container = path.parent.parent
    if path.parent.name == "labels" and is_zarr_node(container):
        stem = _stem(container)
        table = table_beside(container, f"{stem}_{path.name}")
    elif not table.is_file() and is_zarr_node(path):
        inside = _tracked_inside(path)
        if len(inside) > 1:
            raise DataError(
                f"{path}: has {len(inside)} label images with tracks.",
                hint=f"Name one of them: {inside[0]}",
            )
        if inside:
            return _output(inside[0], name)
    if not table.is_file():
        raise DataError(
            f"{path}: has no table of tracks beside it.",
            hint=f"Expected {table.name}. cellseg track links labels without tracks.",
        )
    stored = _stored(path)
    axes = known_axes(stored)
    lengths = dict(zip(axes, stored.pixels.shape, strict=True))
    if lengths.get("C", 1) > 1 or "S" in lengths or stored.pixels.dtype.kind not in "ui":
        raise DataError(f"{path}: holds an image, not labels.")
    views = [View(stored.pixels, axes, None, frame) for frame in range(lengths.get("T", 1))]
    return TrackedMovie(name or stem, views, read_tracks_csv(table), path)


def _stored(path: Path) -> Stored:
    if path.is_dir():
        from cellseg.ome.read import levels

        return levels(path, strict=False)[0]
    if path.suffix.lower() in (".h5", ".hdf5"):
        from cellseg.readers.containers import hdf5_array

        return hdf5_array(path, "labels")
    from cellseg.readers.tiff import tiff_image

    return tiff_image(path)

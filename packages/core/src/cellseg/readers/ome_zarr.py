"""OME-Zarr images and plates with their label images."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.locations import remembered
from cellseg.ome.read import (
    Field,
    ask_for,
    images_in,
    labels_of,
    levels,
    plate_wells,
    well_fields,
)
from cellseg.readers.options import OmeZarrOptions, PlateOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import is_zarr_node, zarrs_in
from cellseg.readers.view import samples_of

_SOME_WELLS = "Mend them, or name the wells to use, such as --wells 'B/*,C/03'."


def open_ome_zarr(path: Path, options: OmeZarrOptions, labelled: bool) -> list[Sample]:
    """An OME-Zarr image, all series of a container, or all images of a folder."""
    with remembered():
        return _open_images(path, options, labelled)


def open_plate(path: Path, options: PlateOptions, labelled: bool) -> list[Sample]:
    """All fields of a plate; those of one well share a ``source``, for they show one culture."""
    with remembered():
        return _open_plate(path, options, labelled)


def _open_images(path: Path, options: OmeZarrOptions, labelled: bool) -> list[Sample]:
    containers = [path] if is_zarr_node(path) else zarrs_in(path)
    ask_for(containers, arrays=True)
    problems = Problems()
    samples: list[Sample] = []
    for container in containers:
        name = container.name.removesuffix(".zarr").removesuffix(".ome")
        groups: list[Path] = []
        with problems.kept(name):
            groups = images_in(container)
        ask_for(groups, arrays=True)
        for group in groups:
            inner = name if group == container else f"{name}/{group.name}"
            with problems.kept(inner):
                samples += _samples(inner, group, options, labelled)
    problems.refuse(samples)
    return samples


def _open_plate(path: Path, options: PlateOptions, labelled: bool) -> list[Sample]:
    problems = Problems()
    fields: list[Field] = []
    wells = _chosen_wells(path, plate_wells(path), options)
    ask_for(path / well for well in wells)
    for well in wells:
        with problems.kept(well):
            fields += well_fields(path, well)
    samples: list[Sample] = []
    chosen = _of_acquisition(path, fields, options)
    ask_for((field.path for field in chosen), arrays=True)
    if labelled:
        ask_for(field.path / "labels" for field in chosen)
    for field in chosen:
        with problems.kept(field.name):
            samples += _samples(field.name, field.path, options, labelled, field.well)
    problems.refuse(samples, hint=_SOME_WELLS)
    if not fields:
        raise DataError(f"{path}: the plate has no fields.")
    return samples


def _samples(
    name: str, group: Path, options: OmeZarrOptions, labelled: bool, source: str = ""
) -> list[Sample]:
    image = levels(group, strict=not options.allow_missing_chunks)[0]
    labels = labels_of(group, options.label, image) if labelled else None
    return samples_of(name, image, labels, options, group, source=source)


def _chosen_wells(path: Path, wells: list[str], options: PlateOptions) -> list[str]:
    """Those that the user wants, in the order of the plate."""
    if options.wells is None:
        return wells
    wanted: set[str] = set()
    for pattern in (part.strip() for part in options.wells.split(",")):
        matching = {w for w in wells if fnmatchcase(w, pattern) or w.replace("/", "") == pattern}
        if not matching:
            raise DataError(
                f"{path}: has no well {pattern!r}.", hint=f"It has: {', '.join(wells)}."
            )
        wanted |= matching
    return [well for well in wells if well in wanted]


def _of_acquisition(path: Path, fields: list[Field], options: PlateOptions) -> list[Field]:
    """The fields of the acquisition that the user wants; all of them by default."""
    if options.acquisition is None or not fields:
        return fields
    known = sorted({f.acquisition for f in fields if f.acquisition is not None})
    if options.acquisition not in known:
        raise DataError(
            f"{path}: has no acquisition {options.acquisition}.",
            hint=f"It has: {', '.join(map(str, known))}."
            if known
            else "Its fields name no acquisition; leave --acquisition out.",
        )
    return [field for field in fields if field.acquisition == options.acquisition]

"""OME-Zarr images and plates with their label images."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.ome.read import Field, images_in, labels_of, levels, plate_fields
from cellseg.readers.options import OmeZarrOptions, PlateOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import is_zarr_node, zarrs_in
from cellseg.readers.view import samples_of


def open_ome_zarr(path: Path, options: OmeZarrOptions, labelled: bool) -> list[Sample]:
    """An OME-Zarr image, all series of a container, or all images of a folder."""
    containers = [path] if is_zarr_node(path) else zarrs_in(path)
    groups: list[tuple[str, Path]] = []
    for container in containers:
        name = container.name.removesuffix(".zarr").removesuffix(".ome")
        images = images_in(container)
        several = images != [container]
        groups += [(f"{name}/{g.name}" if several else name, g) for g in images]
    problems = Problems()
    samples: list[Sample] = []
    for name, group in groups:
        with problems.kept():
            samples += _samples(name, group, options, labelled)
    problems.refuse()
    return samples


def open_plate(path: Path, options: PlateOptions, labelled: bool) -> list[Sample]:
    """All fields of a plate; those of one well share a ``source``, for they show one culture."""
    fields = _chosen(path, plate_fields(path), options)
    problems = Problems()
    samples: list[Sample] = []
    for field in fields:
        with problems.kept():
            samples += _samples(field.name, field.path, options, labelled, field.well)
    problems.refuse()
    return samples


def _samples(
    name: str, group: Path, options: OmeZarrOptions, labelled: bool, source: str = ""
) -> list[Sample]:
    image = levels(group, strict=not options.allow_missing_chunks)[0]
    labels = labels_of(group, options.label, image) if labelled else None
    return samples_of(name, image, labels, options, group, source=source)


def _chosen(path: Path, fields: list[Field], options: PlateOptions) -> list[Field]:
    wells = list(dict.fromkeys(field.well for field in fields))
    if options.wells is not None:
        wanted: set[str] = set()
        for pattern in (part.strip() for part in options.wells.split(",")):
            matching = {
                w for w in wells if fnmatchcase(w, pattern) or w.replace("/", "") == pattern
            }
            if not matching:
                raise DataError(
                    f"{path}: has no well {pattern!r}.", hint=f"It has: {', '.join(wells)}."
                )
            wanted |= matching
        fields = [field for field in fields if field.well in wanted]
    if options.acquisition is not None:
        known = sorted({f.acquisition for f in fields if f.acquisition is not None})
        fields = [field for field in fields if field.acquisition == options.acquisition]
        if not fields:
            raise DataError(
                f"{path}: has no acquisition {options.acquisition}.",
                hint=f"It has: {', '.join(map(str, known))}."
                if known
                else "Its fields name no acquisition; leave --acquisition out.",
            )
    if not fields:
        raise DataError(f"{path}: the plate has no fields.")
    return fields

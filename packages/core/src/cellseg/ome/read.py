"""What OME-Zarr containers (0.4 and 0.5) say about their images, labels, plates and wells.

The metadata is JSON and is read as such: importing ngio takes seconds, a folder of images must
open in less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from cellseg.errors import DataError
from cellseg.limits import member
from cellseg.locations import is_remote, prefetch
from cellseg.readers.problems import damaged
from cellseg.readers.recognise import ome_attributes
from cellseg.readers.stored import UNKNOWN, Channel, Stored, micrometres
from cellseg.readers.zarr_array import zarr_array

GROUP_FILES = ("zarr.json", ".zattrs")
"""What holds the attributes of a group, in the one format or the other."""
ARRAY_FILES = ("zarr.json", ".zarray")
"""What describes an array."""
_BY_TYPE = {"channel": "C", "time": "T"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of view of a plate."""

    name: str
    """``B/03/0``."""
    well: str
    """``B/03``."""
    path: Path
    """The image group."""
    acquisition: int | None


def levels(path: Path, *, strict: bool) -> list[Stored]:
    """The arrays of the multiscale image (or label image) at ``path``, the largest first.

    Args:
        path: a Zarr group with ``multiscales``.
        strict: a chunk that is not on disk is an error when it is read.

    Raises:
        DataError: there is no such image, or its metadata is damaged.
    """
    attributes = ome_attributes(path)
    if "multiscales" not in attributes:
        raise DataError(f"{path}: is no OME-Zarr image: it has no multiscales metadata.")
    with damaged(str(path)):
        multiscale = attributes["multiscales"][0]
        axes = multiscale.get("axes") or [{"name": name} for name in "tczyx"]
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
        letters = "".join(_letter(axis) for axis in axes)
        channels = _channels(attributes)
        found = []
        for dataset in multiscale["datasets"]:
            array = zarr_array(member(path, dataset["path"]), strict=strict, named=False)
            if array is None:
                raise DataError(f"{path}: the level {dataset['path']} is missing.")
            if len(array.shape) != len(axes):
                raise DataError(
                    f"{array.where}: has {len(array.shape)} axes, its metadata {len(axes)}."
                )
            spacing = _spacing(letters, axes, [dataset, multiscale])
            found.append(Stored(array, letters, spacing, channels))
    if not found:
        raise DataError(f"{path}: its multiscales metadata lists no array.")
    return found


def ask_for(groups: Iterable[Path], *, arrays: bool = False) -> None:
    """Have the metadata of groups at addresses read, many at the same time, for those who read it
    next; with ``arrays``, that of the levels of images, too."""
    far = [group for group in groups if is_remote(group)]
    prefetch(group / name for group in far for name in GROUP_FILES)
    if arrays:
        listed = [path for group in far for path in _listed(group)]
        prefetch(path / name for path in listed for name in ARRAY_FILES)


def _listed(group: Path) -> list[Path]:
    """The levels that an image lists; none of one whose metadata is damaged."""
    try:
        with damaged(str(group)):
            datasets = ome_attributes(group)["multiscales"][0]["datasets"]
            return [member(group, one["path"]) for one in datasets]
    except DataError:  # told when the image is opened
        return []


def label_names(path: Path) -> list[str]:
    """Names of the label images inside an image: as listed, or else as found on disk."""
    folder = path / "labels"
    listed = ome_attributes(folder).get("labels")
    if isinstance(listed, list) and listed:
        return [str(name) for name in listed]
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if "multiscales" in ome_attributes(p))


def labels_of(path: Path, name: str | None, image: Stored) -> Stored:
    """The level of a label image that has as many voxels as ``image``.

    Chunks of labels that are not on disk are 0: writers leave empty ones out.

    Args:
        path: the image group.
        name: of the label image; None means the only one.
        image: the level of the image that the labels are for.

    Raises:
        DataError: there is no such label image, there are several and none is named, or no level
            fits.
    """
    names = label_names(path)
    if name is None:
        if len(names) != 1:
            listed = ", ".join(names)
            raise DataError(
                f"{path}: has {len(names)} label images: {listed}."
                if names
                else f"{path}: has no label image.",
                hint=f"Choose one: --label {names[0]}" if names else None,
            )
        name = names[0]
    folder = member(path / "labels", name)
    if name not in names and "multiscales" not in ome_attributes(folder):
        raise DataError(
            f"{path}: has no label image {name!r}.", hint=f"It has: {', '.join(names) or 'none'}."
        )
    every = levels(folder, strict=False)
    wanted = _extent(image)
    for level in every:
        if _extent(level) == wanted:
            return level
    shapes = ", ".join(str(_extent(level)) for level in every)
    raise DataError(
        f"{folder} and {image.where} differ in shape (t, z, y, x): the labels have {shapes}, the "
        f"image has {wanted}."
    )


def images_in(path: Path) -> list[Path]:
    """The image groups of an OME-Zarr container: itself, or the series in it."""
    attributes = ome_attributes(path)
    if "multiscales" in attributes:
        return [path]
    listed = ome_attributes(path / "OME").get("series")
    if isinstance(listed, list):
        return [member(path, name) for name in listed]
    if is_remote(path):  # which may be unable to list; they are numbered without gaps
        series = takewhile(ome_attributes, (path / str(n) for n in count()))
        return list(series)
    numbered = [p for p in path.iterdir() if p.name.isdecimal() and p.is_dir()]
    return sorted(numbered, key=lambda p: int(p.name))


def plate_wells(path: Path) -> list[str]:
    """All wells of a plate (``B/03``), in the order of its metadata.

    Raises:
        DataError: it is no plate, or its metadata is damaged.
    """
    attributes = ome_attributes(path)
    if "plate" not in attributes:
        raise DataError(f"{path}: is no OME-Zarr plate: it has no plate metadata.")
    with damaged(str(path)):
        return [str(entry["path"]) for entry in attributes["plate"]["wells"]]


def well_fields(path: Path, well: str) -> list[Field]:
    """The fields of one well, in the order of its metadata.

    Args:
        path: the plate.
        well: as the plate lists it.

    Raises:
        DataError: the well is missing, empty or damaged.
    """
    about = ome_attributes(member(path, well)).get("well")
    if about is None:
        raise DataError(f"{path / well}: this well of the plate is missing.")
    fields = []
    with damaged(str(path / well)):
        for image in about["images"]:
            name = f"{well}/{image['path']}"
            fields.append(Field(name, well, member(path, name), image.get("acquisition")))
    if not fields:
        raise DataError(f"{path / well}: this well of the plate is empty: it lists no images.")
    return fields


def _extent(stored: Stored) -> tuple[int, ...]:
    lengths = dict(zip(stored.axes, stored.pixels.shape, strict=True))
    return tuple(lengths.get(axis, 1) for axis in "TZYX")


def _letter(axis: Mapping[str, Any]) -> str:
    by_type = _BY_TYPE.get(str(axis.get("type", "")))
    name = str(axis["name"]).upper()
    return by_type or (name if name in ("T", "C", "Z", "Y", "X") else UNKNOWN)


def _spacing(
    letters: str, axes: Sequence[Mapping[str, Any]], holders: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The scales of the level and of the whole image multiplied, in µm."""
    factors = [1.0] * len(axes)
    for holder in holders:
        for transform in holder.get("coordinateTransformations") or []:
            if transform.get("type") == "scale":
                scale = transform["scale"]
                factors = [a * float(b) for a, b in zip(factors, scale, strict=True)]
    found = {}
    for letter, axis, factor in zip(letters, axes, factors, strict=True):
        if letter in "ZYX" and not 0 <= factor < math.inf:
            raise ValueError(f"its scale along {letter} is {factor}")
        size = micrometres(factor, axis.get("unit")) if letter in "ZYX" else None
        if size is not None:
            found[letter] = size
    return found


def _channels(attributes: Mapping[str, Any]) -> tuple[Channel, ...]:
    listed = (attributes.get("omero") or {}).get("channels") or []
    return tuple(
        Channel(str(c.get("label") or ""), str(c.get("wavelength_id") or "")) for c in listed
    )

"""Pixel sizes and channel names in TIFF files: OME-XML, ImageJ, and the resolution tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import tifffile

from cellseg.readers.stored import Channel, micrometres

_TAG_UNITS = {3: "cm", 4: "mm", 5: "um"}
"""Inches are left out: they are dots on paper, which say nothing about the specimen."""


def steps(file: tifffile.TiffFile) -> dict[str, float]:
    """Size in µm of a step along Z, Y and X, as far as the file says."""
    pixels = _ome_pixels(file)
    if pixels is not None:
        found = {axis: _number(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"}
        units = {axis: pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"}
        return _kept({axis: micrometres(value, units[axis]) for axis, value in found.items()})
    about = _description(file)
    unit = about.get("unit")
    spaced = micrometres(_number(about.get("spacing")), str(unit) if unit else None)
    tags = file.pages[0].tags
    if file.is_imagej and not unit:
        return {}
    name = str(unit) if file.is_imagej else _tag_unit(tags, str(unit) if unit else None)
    y, x = (_per_unit(tags, tag, name) for tag in ("YResolution", "XResolution"))
    return _kept({"Z": spaced if unit else None, "Y": y, "X": x})


def channel_names(file: tifffile.TiffFile) -> tuple[Channel, ...]:
    """What OME-XML calls the channels; empty where the file names none."""
    pixels = _ome_pixels(file)
    if pixels is None:
        return ()
    found = []
    for element in pixels:
        if element.tag.rpartition("}")[2] == "Channel":
            length = element.get("EmissionWavelength", "")
            found.append(Channel(element.get("Name", ""), f"{float(length):g}" if length else ""))
    return tuple(found) if any(c.name or c.wavelength for c in found) else ()


def _ome_pixels(file: tifffile.TiffFile) -> ElementTree.Element | None:
    text = file.ome_metadata
    if not text:
        return None
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"its OME-XML is damaged: {error}") from error
    return next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)


def _description(file: tifffile.TiffFile) -> Mapping[str, Any]:
    if file.is_imagej:
        return file.imagej_metadata or {}
    shaped = file.shaped_metadata if file.is_shaped else None
    return shaped[0] if shaped else {}


def _tag_unit(tags: Any, stated: str | None) -> str | None:
    """The unit of the resolution tags; ``stated`` counts where the tag says that it has none."""
    tag = tags.get("ResolutionUnit")
    number = int(tag.value) if tag is not None else 1
    return stated if number == 1 else _TAG_UNITS.get(number)


def _per_unit(tags: Any, name: str, unit: str | None) -> float | None:
    tag = tags.get(name)
    if tag is None or unit is None:
        return None
    count, length = tag.value
    return micrometres(length / count, unit) if count else None


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return 0.0


def _kept(found: Mapping[str, float | None]) -> dict[str, float]:
    return {axis: value for axis, value in found.items() if value is not None}

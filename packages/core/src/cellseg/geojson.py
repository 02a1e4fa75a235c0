"""Reading GeoJSON (RFC 7946) as QuPath and others write it: features with plain geometries.

Coordinates are those of the file: ``(x, y)``, or ``(x, y, z)``, in pixels, the first of which spans
(0, 0) to (1, 1), as in QuPath and in what ``cellseg predict --format geojson`` writes.

This module is light: no arrays, and nothing is recursive, so that no file can exhaust the stack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from cellseg.errors import DataError

MOST_BYTES = 200 * 2**20
"""Larger files are refused: as Python objects they would take several GB."""

Position: TypeAlias = tuple[float, float, float | None]
"""``(x, y, z)``, ``z`` None where the file gives two numbers."""
Path2: TypeAlias = tuple[Position, ...]
Polygon: TypeAlias = tuple[Path2, ...]
"""Its outside, then its holes; a ring may or may not repeat its first position at its end."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The points, lines and polygons of a feature, whatever the file calls their collection."""

    points: Path2 = ()
    lines: tuple[Path2, ...] = ()
    """Each of at least 2 positions."""
    polygons: tuple[Polygon, ...] = ()
    """Each ring of at least 3 positions."""
    plane: int | None = None
    """The plane of a volume, from 0, where QuPath states one."""
    frame: int | None = None
    """The time point, from 0, where QuPath states one."""

    @property
    def extended(self) -> Path2:
        """The positions of all lines and of the outsides of all polygons."""
        rings = (*self.lines, *(polygon[0] for polygon in self.polygons))
        return tuple(position for ring in rings for position in ring)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing in the file."""

    where: str
    """How messages call it, with the file: ``cells.geojson, feature 3``."""
    geometry: Geometry
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classification(self) -> str:
        """The name of the class that QuPath gave it; empty where it gave none."""
        given = self.properties.get("classification")
        if isinstance(given, Mapping):
            names = given.get("names")
            joined = ": ".join(map(str, names)) if isinstance(names, list) else None
            given = given.get("name", joined)
        return given if isinstance(given, str) else ""


def read_features(path: Path) -> list[Feature]:
    """The features of a file: a FeatureCollection, a Feature, a geometry, or a list of either.

    QuPath leaves the plane out where it is the first one. So where any feature of a file has one,
    those without are in plane 0 of frame 0.

    Raises:
        DataError: the file is missing, too large or no GeoJSON, or a feature has no geometry, one
            of a kind that is not known, or coordinates that are not finite.
    """
    return features(read_text(path), path)


def features(text: str, path: Path, apart: bool = False) -> list[Feature]:
    """Like ``read_features``, of a text that was read before.

    Args:
        text: what the file holds.
        path: what messages call it.
        apart: whether the geometries of a collection that is no feature's are a feature each, as
            napari-geojson means them, and not one together.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise DataError(f"{path}: is nested too deeply to be GeoJSON.") from None
    except ValueError as error:
        raise DataError(
            f"{path}: is no valid JSON: {error}.", hint="Export it again; it may be cut short."
        ) from None
    found = [
        _feature(item, f"{path}, feature {number}")
        for number, item in enumerate(_items(data, apart), 1)
    ]
    if not any(one.geometry.plane is not None for one in found):
        return found
    return [
        one
        if one.geometry.plane is not None
        else replace(one, geometry=replace(one.geometry, plane=0, frame=0))
        for one in found
    ]


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is missing, empty, larger than ``MOST_BYTES``, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{path}: has {size / 2**20:.0f} MB; at most {MOST_BYTES >> 20} are read.",
                hint="Divide it: a folder may hold one file for each image.",
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no text in UTF-8 (byte {error.start}).", hint="Save it as UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{path}: is empty.")
    return text


def _items(data: Any, apart: bool) -> Iterator[Any]:
    if isinstance(data, list):
        yield from data
    elif apart and isinstance(data, dict) and isinstance(data.get("geometries"), list):
        yield from data["geometries"]
    elif isinstance(data, dict) and data.get("type") == "FeatureCollection":
        listed = data.get("features")
        yield from listed if isinstance(listed, list) else [data]
    else:
        yield data


def _feature(data: Any, where: str) -> Feature:
    if not isinstance(data, dict):
        raise DataError(f"{where}: is no GeoJSON object, but {_shown(data)}.")
    if data.get("type") != "Feature":
        return Feature(where, _geometry(data, where))
    properties = data.get("properties")
    if properties is None:
        properties = {}
    if not isinstance(properties, dict):
        raise DataError(f"{where}: its properties are {_shown(properties)}, no JSON object.")
    geometry = data.get("geometry")
    if not isinstance(geometry, dict):
        raise DataError(f"{where}: has no geometry.")
    return Feature(where, _geometry(geometry, where), properties)


def _geometry(data: dict[str, Any], where: str) -> Geometry:
    """Geometries of a collection are put together; a collection in a collection is refused."""
    parts = [data]
    if data.get("type") == "GeometryCollection":
        listed = data.get("geometries")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise DataError(f"{where}: its GeometryCollection has no list of geometries.")
        parts = listed
    points: list[Position] = []
    lines: list[Path2] = []
    polygons: list[Polygon] = []
    for part in parts:
        kind, held = part.get("type"), part.get("coordinates")
        if kind == "Point":
            points.append(_position(held, where))
        elif kind == "MultiPoint":
            points += _positions(held, where)
        elif kind == "LineString":
            lines.append(_positions(held, where, 2))
        elif kind == "MultiLineString":
            lines += [_positions(one, where, 2) for one in _list(held, where)]
        elif kind == "Polygon":
            polygons.append(_polygon(held, where))
        elif kind == "MultiPolygon":
            polygons += [_polygon(one, where) for one in _list(held, where)]
        else:
            raise DataError(
                f"{where}: is of the type {_shown(kind)}.",
                hint="Known: Point, LineString and Polygon, Multi... of these, and collections.",
            )
    if not (points or lines or polygons):
        raise DataError(f"{where}: its geometry is empty.")
    plane = data.get("plane")
    if plane is None:
        return Geometry(tuple(points), tuple(lines), tuple(polygons))
    if not isinstance(plane, dict):
        raise DataError(f"{where}: its plane is {_shown(plane)}, no JSON object.")
    z, t = (whole(plane.get(axis, 0), f"{where}: its plane's {axis}") for axis in "zt")
    return Geometry(tuple(points), tuple(lines), tuple(polygons), z, t)


def whole(value: Any, what: str) -> int:
    """A number from 0 on that has no fraction.

    Raises:
        DataError: it is something else; the message begins with ``what``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise DataError(f"{what} is {_shown(value)}, no whole number.")
    if not 0 <= value < 2**31:
        raise DataError(f"{what} is {_shown(value)}: it must be from 0 on.")
    return int(value)


def _polygon(data: Any, where: str) -> Polygon:
    return tuple(_positions(ring, where, 3) for ring in _list(data, where))


def _positions(data: Any, where: str, least: int = 1) -> Path2:
    found = tuple(_position(one, where) for one in _list(data, where))
    if len(found) < least:
        raise DataError(f"{where}: a line or ring has only {len(found)} position(s).")
    return found


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list) or not data:
        raise DataError(f"{where}: its coordinates are {_shown(data)}, no list.")
    return data


def _position(data: Any, where: str) -> Position:
    numbers = _list(data, where)
    if len(numbers) not in (2, 3):
        raise DataError(f"{where}: a position is {_shown(data)}, not x and y, or x, y and z.")
    x, y, *rest = (_number(one, where) for one in numbers)
    return x, y, rest[0] if rest else None


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: a coordinate is {_shown(value)}, no number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{where}: a coordinate is not finite.")
    return number


def _shown(value: Any) -> str:
    """A value as messages quote it: short, and nothing at all of what it contains."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

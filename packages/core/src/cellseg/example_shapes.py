"""What a file of examples shows: outlines and points from GeoJSON, tables and ImageJ.

Coordinates become continuous, ``(y, x)`` in pixels: pixel ``i`` reaches from ``i`` to ``i + 1``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.errors import DataError
from cellseg.geojson import Feature, Position, features, read_text, whole
from cellseg.outlines import Polygon, ellipse, rectangle
from cellseg.prompt_files import Mark, Place, is_positive, read_table, text_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROIS = (".roi", ".zip")
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".geojson", *ROIS)
"""Files that a folder of examples is searched for."""
_TAGS = ("tag", "tags", "class")
_AREAS = ("polygon", "rectangle", "ellipse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One object in a file: polygons, a point, or a mask."""

    where: str
    """How messages call it, with the file."""
    polygons: tuple[Polygon, ...] = ()
    point: tuple[float, float] | None = None
    mask: NDArray[np.bool_] | None = None
    """``(y, x)``, cut to its box."""
    corner: tuple[int, int] = (0, 0)
    """First row and column of the mask."""
    plane: int | None = None
    frame: int | None = None
    leading: int | None = None
    """Its place in a stack that may be a volume or a movie."""
    image: str | None = None
    names: frozenset[str] = frozenset()
    """Of its class; several where the file says several things."""
    negative: bool = False
    """Whether the file says by itself that it is to be left alone."""


def read_shapes(path: Path) -> list[Shape]:
    """All that a file shows.

    Raises:
        DataError: the file is missing, damaged or of no known kind, or something in it is neither
            a polygon nor a point.
    """
    if path.suffix.lower() in ROIS:
        from cellseg.example_rois import read_rois

        return read_rois(path)
    text = read_text(path)
    if text.lstrip()[0] in "{[":
        found = features(text, path, apart=True)
        shapes = [shape for feature in found for shape in _of_feature(feature)]
    else:
        marks = read_table(text, path, examples=True)
        _refuse_repeated(marks)
        shapes = [_of_mark(mark) for mark in marks]
    if not shapes:
        raise DataError(f"{path}: shows no objects.")
    return shapes


def _of_feature(feature: Feature) -> Iterator[Shape]:
    """One for each point, and one for all polygons together."""
    geometry, properties, where = feature.geometry, feature.properties, feature.where
    if geometry.lines:
        raise no_area(where, "a line")
    label = properties.get("label")
    frame = geometry.frame
    if properties.get("frame") is not None:
        frame = whole(properties["frame"], f"{where}: the frame")
        if geometry.frame not in (None, 0, frame):
            raise DataError(
                f"{where}: is in frame {frame} by its properties, but in {geometry.frame} by its "
                "plane."
            )
    shared: dict[str, Any] = {
        "where": where,
        "frame": frame,
        "image": text_of(properties, "image", where),
        "names": _names(feature),
        "negative": not is_positive("" if label is None else str(label), where),
    }
    for position in geometry.points:
        x, y, _ = position
        plane = _plane([position], geometry.plane, where)
        yield Shape(point=(y, x), plane=plane, **shared)
    if geometry.polygons:
        rings = [ring for polygon in geometry.polygons for ring in polygon]
        plane = _plane([position for ring in rings for position in ring], geometry.plane, where)
        polygons = tuple(
            tuple(np.array([(y, x) for x, y, _ in ring], np.float64) for ring in polygon)
            for polygon in geometry.polygons
        )
        yield Shape(polygons=polygons, plane=plane, **shared)


def _names(feature: Feature) -> frozenset[str]:
    """QuPath's class, and what the properties ``tag``, ``tags`` and ``class`` say."""
    found = {feature.classification}
    for key in _TAGS:
        value = feature.properties.get(key)
        for one in value if isinstance(value, list) else [value]:
            found.add(text_of({key: one}, key, feature.where) or "")
    return frozenset(name.strip() for name in found if name.strip())


def _plane(positions: list[Position], plane: int | None, where: str) -> int | None:
    """The only plane of some positions; their own z goes before the plane of the geometry."""
    found = {plane if z is None else math.floor(z) for _, _, z in positions}
    if len(found) > 1:
        raise DataError(
            f"{where}: lies in several planes.", hint="Examples are drawn in one plane each."
        )
    return found.pop()


def _of_mark(mark: Mark) -> Shape:
    about: dict[str, Any] = {
        "where": mark.where,
        "frame": mark.frame,
        "leading": mark.leading,
        "image": mark.image,
        "names": frozenset([mark.tag] if mark.tag else []),
        "negative": not mark.positive,
    }
    if mark.shape and mark.shape not in _AREAS:
        raise no_area(mark.where, f"a {mark.shape}")
    if mark.outline:
        corners = np.array([(y, x) for _, y, x in mark.outline], np.float64)
        if mark.shape == "ellipse" and len(corners) != 4:
            raise DataError(f"{mark.where}: an ellipse has {len(corners)} corners, not 4.")
        polygon = ellipse(corners) if mark.shape == "ellipse" else (corners,)
        return Shape(polygons=(polygon,), plane=_plane_of(mark.outline, mark.where), **about)
    if mark.box is not None:
        if mark.points:
            raise DataError(
                f"{mark.where}: has a point and a box.", hint="An example is one or the other."
            )
        (z0, y0, x0), (z1, y1, x1) = mark.box
        if z0 is not None and z1 is not None and z1 - z0 > 1:
            raise DataError(
                f"{mark.where}: lies in several planes.", hint="Examples are drawn in one plane."
            )
        plane = None if z0 is None else math.floor(z0)
        return Shape(polygons=(rectangle(y0, x0, y1, x1),), plane=plane, **about)
    ((z, y, x),) = mark.points
    return Shape(point=(y, x), plane=None if z is None else math.floor(z), **about)


def _plane_of(places: tuple[Place, ...], where: str) -> int | None:
    return _plane([(x, y, z) for z, y, x in places], None, where)


def _refuse_repeated(marks: list[Mark]) -> None:
    """Several rows for one object are for prompts."""
    seen: dict[tuple[str | None, int | None, str], str] = {}
    for mark in marks:
        if mark.object is None:
            continue
        key = mark.image, mark.frame, mark.object
        if key in seen:
            raise DataError(
                f"{mark.where}: shows the object {mark.object!r} again, after {seen[key]}.",
                hint="An example is one point, one box or one polygon.",
            )
        seen[key] = mark.where


def no_area(where: str, what: str) -> DataError:
    """The error for what is neither a point nor an area."""
    return DataError(f"{where}: is {what}, which has no area.", hint="Draw a polygon or a point.")

"""What a file of prompts says, row by row and feature by feature: CSV tables and GeoJSON.

Coordinates become those of ``cellseg.data.Prompt``: continuous, voxel ``i`` from ``i`` to
``i + 1``. This module is light.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cellseg.errors import DataError
from cellseg.geojson import Feature, features, read_text, whole
from cellseg.texts import did_you_mean

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".geojson")
"""Files that a folder of prompts is searched for."""
Place: TypeAlias = tuple[float | None, float, float]
"""``(z, y, x)``; z None where the file gives none."""

_MOST_COLUMNS = 100
_POINT = ("z", "y", "x")
_BOX = ("z0", "y0", "x0", "z1", "y1", "x1")
_ABOUT = ("image", "frame", "object", "label")
_TAGS = ("tag", "class")
_NAPARI = ("index", "shape-type", "vertex-index")
_POSITIVE = ("1", "positive", "true")
_NEGATIVE = ("0", "negative", "false")
NEGATIVE_CLASSES = ("negative", "ignore*")
"""Classes of QuPath, in small letters, that say what does not count."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A row of a table, or a feature: some points, a box, or both."""

    where: str
    """How messages call it, with the file."""
    points: tuple[Place, ...] = ()
    positive: bool = True
    """Whether its points lie on the object."""
    box: tuple[Place, Place] | None = None
    """First and last corner."""
    image: str | None = None
    frame: int | None = None
    object: str | None = None
    """What marks of one object have in common."""
    name: str = ""
    leading: int | None = None
    """The first of three axes of napari, which is z in a volume and the frame in a movie."""
    shape: str = ""
    """What napari calls the shape; only of examples, which have its ``outline`` and no ``box``."""
    outline: tuple[Place, ...] = ()
    """The vertices of the shape."""
    tag: str = ""
    """The class of an example."""


def read_marks(path: Path) -> list[Mark]:
    """All that a file says; which of both it is shows in its first character.

    Raises:
        DataError: the file is neither, or something in it is wrong; the message names the line or
            the feature.
    """
    text = read_text(path)
    if text.lstrip()[0] in "{[":
        marks = [_of_feature(feature) for feature in features(text, path)]
    else:
        marks = read_table(text, path)
    if not marks:
        raise DataError(f"{path}: holds no points and no boxes.")
    return marks


def read_table(text: str, path: Path, examples: bool = False) -> list[Mark]:
    """All rows of a CSV table.

    Args:
        text: what the file holds.
        path: what messages call it.
        examples: whether these are examples, which may have tags, negative boxes, and shapes of
            napari with their outlines.

    Raises:
        DataError: a row is wrong, or this is no such table.
    """
    try:
        return list(_of_table(text, path, examples))
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV table: {error}.") from None


def _of_table(text: str, path: Path, examples: bool) -> Iterator[Mark]:
    header = text.lstrip("\r\n").splitlines()[0]
    separator = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    columns = [name.strip().lower() for name in next(cells for cells in rows if cells)]
    axes = _axes(columns, path, _TAGS if examples else ())
    shapes: dict[tuple[str, str], list[tuple[str, dict[str, str]]]] = {}
    for cells in rows:
        where = f"{path}, line {rows.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise DataError(f"{where}: has {len(cells)} fields, but the header {len(columns)}.")
        row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
        if "shape-type" in columns:
            shapes.setdefault((row.get("image", ""), row["index"]), []).append((where, row))
        elif axes:
            yield _napari_point(row, axes, where)
        else:
            yield _row(row, where, examples)
    for vertices in shapes.values():
        yield _napari_shape(vertices, axes, examples)


def _axes(columns: Sequence[str], path: Path, more: Sequence[str]) -> list[str]:
    """The columns of napari's axes, in order; none in another table."""
    if len(columns) > _MOST_COLUMNS:
        raise DataError(f"{path}: has {len(columns)} columns; at most {_MOST_COLUMNS} are read.")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: has the column {twice[0]!r} twice.")
    axes = [name for name in columns if re.fullmatch(r"axis-\d+", name)]
    known = [*_ABOUT, *more, *_NAPARI, *axes] if axes else [*_ABOUT, *more, *_POINT, *_BOX]
    if not axes and columns[0] in ("", "index"):  # pandas numbers the rows
        known.append(columns[0])
    for name in columns:
        if name not in known:
            listed = ", ".join(name for name in known if name)
            raise DataError(
                f"{path}: has an unknown column {name[:80]!r}.",
                hint=did_you_mean(name, known, f"Known: {listed}. Leave out the others."),
            )
    if not axes:
        if not {"y", "x"} <= {*columns} and not {"y0", "x0", "y1", "x1"} <= {*columns}:
            raise DataError(
                f"{path}: has neither the columns y and x (points) nor y0, x0, y1 and x1 (boxes)."
            )
        return []
    ordered = [f"axis-{number}" for number in range(len(axes))]
    if sorted(axes) != sorted(ordered) or len(axes) not in (2, 3, 4):
        raise DataError(
            f"{path}: has the columns {', '.join(axes)}.",
            hint="Layers of 2 to 4 axes can be read: axis-0, axis-1 and so on, y and x the last.",
        )
    if "shape-type" in columns and "index" not in columns:
        raise DataError(f"{path}: the shapes of napari need the column index.")
    return ordered


def _row(row: Mapping[str, str], where: str, examples: bool) -> Mark:
    given = {name: _number(row[name], name, where) for name in (*_POINT, *_BOX) if row.get(name)}
    has_point = "y" in given or "x" in given
    has_box = bool(given.keys() & {*_BOX})
    needed = ({"y", "x"} if has_point else set()) | ({"y0", "x0", "y1", "x1"} if has_box else set())
    missing = sorted(needed - given.keys())
    if missing:
        raise DataError(f"{where}: has no {missing[0]}.")
    if not needed:
        raise DataError(f"{where}: has neither a point (y, x) nor a box (y0, x0, y1, x1).")
    if ("z0" in given) != ("z1" in given):
        raise DataError(f"{where}: has only one of z0 and z1.")
    positive = is_positive(row.get("label", ""), where)
    if not positive and not has_point and not examples:
        raise DataError(f"{where}: a box cannot be negative.", hint="Only points can.")
    z = given.get("z")
    box = None
    if has_box:
        first, last = given.get("z0", z), given.get("z1", z)
        box = _box(
            [(first, given["y0"], given["x0"]), (last, given["y1"], given["x1"])], 0.5, where
        )
    return Mark(
        where=where,
        points=((_middle(z), given["y"] + 0.5, given["x"] + 0.5),) if has_point else (),
        positive=positive,
        box=box,
        **_about(row, where),
    )


def _napari_point(row: Mapping[str, str], axes: Sequence[str], where: str) -> Mark:
    *more, y, x = (_number(row[axis], axis, where) for axis in axes)
    return Mark(
        where=where,
        points=((_middle(more[-1]) if more else None, y + 0.5, x + 0.5),),
        positive=is_positive(row.get("label", ""), where),
        **_leading(row, [more], where),
    )


def _napari_shape(
    vertices: Sequence[tuple[str, Mapping[str, str]]], axes: Sequence[str], examples: bool
) -> Mark:
    """The bounding box of a shape, or for examples its outline."""
    where, row = vertices[0]
    positive = is_positive(row.get("label", ""), where)
    if not positive and not examples:
        raise DataError(f"{where}: a box cannot be negative.", hint="Only points can.")
    corners = [[_number(row[axis], axis, line) for axis in axes] for line, row in vertices]
    places = [(more[-1] if more else None, y, x) for *more, y, x in corners]
    about = _leading(row, [corner[:-2] for corner in corners], where)
    if examples:
        outline = tuple((_middle(z), y + 0.5, x + 0.5) for z, y, x in places)
        shape = row["shape-type"].lower()
        return Mark(where=where, positive=positive, shape=shape, outline=outline, **about)
    return Mark(where=where, box=_box(places, 0.5, where), **about)


def _leading(row: Mapping[str, str], more: Sequence[Sequence[float]], where: str) -> dict[str, Any]:
    """What a row of napari is about: with four axes the first is the frame, with three perhaps."""
    about = _about(row, where)
    if not more[0]:
        return about
    numbers = {_nearest(one[0]) for one in more}
    if len(more[0]) == 2:
        if len(numbers) > 1 or about["frame"] not in (None, *numbers):
            raise DataError(f"{where}: is in more than one frame.")
        return {**about, "frame": numbers.pop()}
    return {**about, "leading": numbers.pop() if len(numbers) == 1 else None}


def _about(row: Mapping[str, str], where: str) -> dict[str, Any]:
    frame = None
    if row.get("frame"):
        frame = whole(_number(row["frame"], "frame", where), f"{where}: the frame")
    named = row.get("object") or None
    return {
        "image": row.get("image") or None,
        "frame": frame,
        "object": named,
        "name": named or "",
        "tag": row.get("tag") or row.get("class") or "",
    }


def _of_feature(feature: Feature) -> Mark:
    geometry, properties, where = feature.geometry, feature.properties, feature.where
    label = properties.get("label")
    positive = is_positive("" if label is None else str(label), where)
    positive = positive and feature.classification.lower() not in NEGATIVE_CLASSES
    if not positive and not geometry.points:
        raise DataError(f"{where}: a box cannot be negative.", hint="Only points can.")
    image, named = (text_of(properties, key, where) for key in ("image", "object"))
    frame = geometry.frame
    if properties.get("frame") is not None:
        frame = whole(properties["frame"], f"{where}: the frame")
        if geometry.frame not in (None, 0, frame):
            raise DataError(
                f"{where}: is in frame {frame} by its properties, but in {geometry.frame} by its "
                "plane."
            )
    plane = geometry.plane
    box = None
    if geometry.extended:
        corners = [(plane if z is None else z, y, x) for x, y, z in geometry.extended]
        box = _box(corners, 0.0, where)
    return Mark(
        where=where,
        points=tuple((_middle(plane) if z is None else z, y, x) for x, y, z in geometry.points),
        positive=positive,
        box=box,
        image=image,
        frame=frame,
        object=named,
        name=named or text_of(properties, "name", where) or "",
    )


def text_of(properties: Mapping[str, object], key: str, where: str) -> str | None:
    """A property that is a text or a number, as a text; None where there is none.

    Raises:
        DataError: it is something else.
    """
    value = properties.get(key)
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return None if value is None else str(value)
    raise DataError(f"{where}: its property {key!r} is neither a text nor a number.")


def _box(corners: Sequence[Place], shift: float, where: str) -> tuple[Place, Place]:
    """The box around ``corners``; along z it takes in the planes of the first and the last."""
    zs = [z for z, _, _ in corners if z is not None]
    ys, xs = [y for _, y, _ in corners], [x for _, _, x in corners]
    if min(ys) == max(ys) or min(xs) == max(xs):
        raise DataError(
            f"{where}: the box has no area: y {min(ys):g} to {max(ys):g}, x {min(xs):g} to "
            f"{max(xs):g}."
        )
    low, high = None, None
    if zs:
        low, high = float(math.floor(min(zs) + shift)), float(math.floor(max(zs) + shift) + 1)
    return (low, min(ys) + shift, min(xs) + shift), (high, max(ys) + shift, max(xs) + shift)


def _middle(plane: float | None) -> float | None:
    return None if plane is None else plane + 0.5


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def is_positive(text: str, where: str) -> bool:
    """What a label says; ``1.0`` is what pandas makes of 1 beside an empty cell.

    Raises:
        DataError: it is none.
    """
    label = text.lower().removesuffix(".0")
    if label not in ("", *_POSITIVE, *_NEGATIVE):
        raise DataError(
            f"{where}: the label is {text[:80]!r}.",
            hint="1 or positive for a point on the object, 0 or negative for one beside it.",
        )
    return label not in _NEGATIVE


def _number(text: str, column: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        hint = "Write decimals with a point." if re.fullmatch(r"-?\d+,\d+", text) else None
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise DataError(f"{where}: {column} is {shown!r}, no number.", hint=hint) from None
    if not math.isfinite(number):
        raise DataError(f"{where}: {column} is not finite.")
    return number

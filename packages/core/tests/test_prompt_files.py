"""Files of prompts that are refused, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cellseg import geojson
from cellseg.errors import DataError
from cellseg.prompting import read_prompts


def point(x: float, y: float, **properties: Any) -> dict[str, Any]:
    geometry = {"type": "Point", "coordinates": [x, y]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


LINE = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 1], [9, 9]]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("y,x\n", "holds no points"),
        ("y,x\n1,nan\n", "line 2: x is not finite"),
        ("y,x\n\n1,1\n1,1e999\n", "line 4: x is not finite"),
        ("y,x\n1,b\n", "line 2: x is 'b', no number"),
        ("\n\ny,x\n1,b\n", "line 4: x is 'b', no number"),
        ("y;x\n1,5;2\n", "line 2: y is '1,5', no number"),
        ("y,x\n1\n", "line 2: has 1 fields, but the header 2"),
        ("y,x,colour\n1,1,red\n", "unknown column 'colour'"),
        ("y,x,lable\n1,1,1\n", "unknown column 'lable'"),
        ("y,y\n1,1\n", "column 'y' twice"),
        ("z,x\n1,1\n", "neither the columns y and x"),
        ("y,x,y0,x0,y1,x1\n,,,,,1\n", "line 2: has no x0"),
        ("y,x,label\n,,1\n", "neither a point"),
        ("y,x,label\n1,1,2\n", "the label is '2'"),
        ("y,x,label\n1,1,0\n", "only negative points"),
        ("y,x,label,object\n1,1,0,a\n2,2,0,a\n", "only negative points"),
        ("y0,x0,y1,x1\n1,1,1,5\n", "the box has no area"),
        ("object,y0,x0,y1,x1\na,1,1,9,9\na,1,1,5,5\n", "object 'a' has a box already"),
        ("y0,x0,y1,x1,z0,z1\n1,1,2,2,1,\n", "only one of z0 and z1"),
        ("y0,x0,y1,x1,label\n1,1,2,2,0\n", "a box cannot be negative"),
        ("y,x,z,object\n1,1,1,a\n1,1,,a\n", "a z for some of its marks only"),
        ("y,x,frame\n1,1,1.5\n", "line 2: the frame is 1.5, no whole number"),
        ("y,x,frame\n1,1,-1\n", "must be from 0 on"),
        ("axis-0,axis-2\n1,1\n", "axis-0, axis-2"),
        ("shape-type,axis-0,axis-1\nline,1,1\n", "need the column index"),
        ('y,x\n1,"' + "9" * 200_000 + '"\n', "no CSV table"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_prompts(file, ["a"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no points"),
        ({"type": "FeatureCollection", "features": []}, "holds no points"),
        ([3], "feature 1: is no GeoJSON object, but 3"),
        ([{"type": "Feature", "geometry": None}], "feature 1: has no geometry"),
        ([{"type": "Feature", "geometry": {"type": "Circle"}}], "of the type 'Circle'"),
        ({"type": "Topology", "objects": {}}, "of the type 'Topology'"),
        ([{"type": "Point", "coordinates": [1]}], "not x and y"),
        ([{"type": "Point", "coordinates": [1, True]}], "True, no number"),
        ([{"type": "Point", "coordinates": [1, float("nan")]}], "not finite"),
        ([{"type": "Point", "coordinates": [1, 10**400]}], "not finite"),
        ([{"type": "Polygon", "coordinates": [[[1, 1], [2, 2]]]}], r"only 2 position\(s\)"),
        ([{"type": "Polygon", "coordinates": []}], "no list"),
        ([{"type": "Polygon", "coordinates": {"x": 1}}], "a mapping of 1, no list"),
        ([{"type": "LineString", "coordinates": [[1, 1], [1, 9]]}], "the box has no area"),
        (
            {"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection"}]},
            "of the type 'GeometryCollection'",
        ),
        ({"type": "GeometryCollection", "geometries": []}, "its geometry is empty"),
        ([point(1, 1, label=0)], "feature 1: has only negative points"),
        ([point(1, 1, label="cell")], "the label is 'cell'"),
        ([{**LINE, "properties": {"label": 0.0}}], "a box cannot be negative"),
        ([{**LINE, "properties": {"label": "cell"}}], "the label is 'cell'"),
        ([point(1, 1, frame="x")], "the frame is 'x', no whole number"),
        ([point(1, 1, object=[1])], "'object' is neither a text nor a number"),
    ],
)
def test_geojson_that_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    file = tmp_path / "prompts.geojson"
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_prompts(file, ["a"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"type": "Feature", ', "no valid JSON"),
        (b"[1" + b"0" * 5000 + b"]", "no valid JSON"),
        (b"\xff\xfey\x00,\x00", "no text in UTF-8"),
        (b"y,x\n\x001,2\n", "no number"),
    ],
    ids=["deep", "short", "digits", "utf-16", "nul"],
)
def test_hostile_files(tmp_path: Path, raw: bytes, message: str) -> None:
    file = tmp_path / "prompts.csv"
    file.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_prompts(file, ["a"])


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    with file.open("wb") as sparse:
        sparse.truncate(geojson.MOST_BYTES + 1)
    with pytest.raises(DataError, match="at most 200 are read"):
        read_prompts(file, ["a"])
    with pytest.raises(DataError, match="there is no such file"):
        read_prompts(tmp_path / "none.csv", ["a"])

"""YAML, GeoJSON, tables and regions from strangers: bounded, and no code."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest

from cellseg import geojson
from cellseg.errors import CellsegError, ConfigError, DataError
from cellseg.example_shapes import read_shapes
from cellseg.geojson import read_features
from cellseg.options import read_config
from cellseg.prompt_files import read_marks
from cellseg.track_files import read_ctc_table, read_tracks_csv
from cellseg.yaml_files import MOST_VALUES

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: !!python/object/apply:os.mkdir [{canary}]", "not valid YAML"),
        ("!!python/object/new:os.mkdir [{canary}]", "not valid YAML"),
        ("a: !!python/module:os", "not valid YAML"),
        ("a: !mine 1", "not valid YAML"),
        (LAUGHS, f"more than {MOST_VALUES} values"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: *a}", "contains itself"),
        ("[" * 5_000, "nested too deeply"),
        ("{a: " * 5_000, "nested too deeply"),
        ("epochs: 3\nepochs: 4", "line 2: 'epochs' is there twice"),
        ("1: 2", "expected one 'option: value'"),
        ("? [a]\n: 1", "not valid YAML|expected one"),
        ("- a", "expected one 'option: value'"),
        ("a: 2024-13-45", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 1\x00", "not valid YAML"),
        ("a: b\n---\nc: d", "not valid YAML"),
        ("a: '" + "x" * (1 << 20) + "'", "has more than 0.5 MB"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, match: str) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("{canary}", str(canary)))
    with pytest.raises(ConfigError, match=match) as error:
        read_config(path)
    assert "config.yaml" in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 1000 and not canary.exists()


def test_plain_yaml_is_read_with_its_anchors(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("\ufeffbase: &base {a: 1}\nmore: {<<: *base, b: [1.5, null, yes]}\n")
    assert read_config(path) == {"base": {"a": 1}, "more": {"a": 1, "b": [1.5, None, True]}}
    path.write_text("# nothing\n")
    assert read_config(path) == {}


@pytest.mark.parametrize("kind", ["config", "collection", "space", "recipe"])
def test_all_that_is_yaml_is_read_the_same(tmp_path: Path, kind: str) -> None:
    from cellseg.clusters.recipes import read_recipe
    from cellseg.plugins import Plugins
    from cellseg.readers import open_dataset
    from cellseg.tuning import searched

    path = tmp_path / "datasets.yaml"
    path.write_text(LAUGHS)
    with pytest.raises(ConfigError, match="stands for more than"):
        if kind == "config":
            read_config(path)
        elif kind == "collection":
            open_dataset(Plugins(), tmp_path, "collection", {}, False)
        elif kind == "space":
            assert searched.read_config is read_config
            searched.read_config(path)
        else:
            read_recipe(str(path))


# GeoJSON


def feature(coordinates: object, kind: str = "Polygon") -> dict[str, object]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}}


def write(path: Path, features: list[object]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.slow
def test_a_million_points_are_read(tmp_path: Path) -> None:
    points = [[x % 1000, x // 1000] for x in range(1_000_000)]
    path = write(tmp_path / "a.geojson", [feature(points, "MultiPoint")])
    started = time.monotonic()
    (found,) = read_features(path)
    assert len(found.geometry.points) == 1_000_000
    assert time.monotonic() - started < 600, "it does not grow faster than the file"


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geojson, "MOST_BYTES", 2 << 20)
    path = tmp_path / "a.geojson"
    path.write_text(" " * (3 << 20))
    with pytest.raises(DataError, match="has 3 MB; at most 2 are read"):
        read_features(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"type": "Feature", "geometry": ' * 20_000,
        json.dumps(feature([[[0, 0], [1, 1e308 * 10], [1, 0]]])),
        json.dumps(feature([[[0, 0], [float("nan"), 1], [1, 0]]])),
        '{"type": "Point", "coordinates": [1e400, 2]}',
        '{"type": "Point", "coordinates": [' + "9" * 5000 + ", 2]}",
        '{"type": "Point", "coordinates": [[[1]], 2]}',
        '{"type": "Point", "coordinates": [1, 2], "plane": {"z": 1e400}}',
        '{"type": "Point", "coordinates": [1, 2], "plane": {"z": NaN}}',
        '{"type":"Feature", "geometry":{"type":"Point", "coordinates":[1, 2]}, "properties":3}',
    ],
)
def test_geojson_that_lies(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    for read in (read_features, read_marks, read_shapes):
        with pytest.raises(DataError, match=r"a\.geojson") as error:
            read(path)
        assert len(str(error.value)) < 1000


# Tables


@pytest.mark.parametrize(
    "text",
    [
        "y,x\n" + "1" * 200_000 + ",2\n",
        'y,x\n"' + "1" * 200_000,
        "y,x\n1e400,2\n",
        "y,x\nnan,2\n",
        "y,x," + ",".join(f"c{i}" for i in range(20_000)) + "\n",
        "y,x\n1,2\x00\n",
        "index,shape-type,axis-0,axis-1\n",
    ],
)
def test_tables_that_lie(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    for read in (read_marks, read_shapes):
        with pytest.raises(DataError, match=r"a\.csv") as error:
            read(path)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "line", ["1" * 5000 + " 0 1 0", "1" * 200_000, "1 0 1e400 0", "1 0 -1 0", "x" * 100_000, "\x00"]
)
def test_track_tables_that_lie(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(line + "\n")
    (tmp_path / "a.csv").write_text("id,begin,end,parent\n" + line.replace(" ", ",") + "\n")
    for read, name in ((read_ctc_table, "a.txt"), (read_tracks_csv, "a.csv")):
        with pytest.raises(DataError, match=name) as error:
            read(tmp_path / name)
        assert len(str(error.value)) < 1000


# Regions of ImageJ


def rois(path: Path, entries: int, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(entries):
            archive.writestr(f"{number}.roi", data)
    return path


def test_a_zip_of_regions_that_unpacks_to_too_much(tmp_path: Path) -> None:
    path = rois(tmp_path / "bomb.zip", 3, bytes(70 << 20))
    with pytest.raises(DataError, match="holds 210 MB; at most 200 are read"):
        read_shapes(path)


def test_a_zip_of_too_many_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cellseg.example_rois as module

    monkeypatch.setattr(module, "MOST_REGIONS", 5)
    with pytest.raises(DataError, match="has 6 regions; at most 5 are read"):
        read_shapes(rois(tmp_path / "many.zip", 6, b"x"))


@pytest.mark.parametrize(
    "data", [b"", b"Iout", b"Iout" + b"\xff" * 200, bytes(64), b"Iout" + bytes(2) + b"\x00" * 300]
)
def test_regions_that_lie(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.roi").write_bytes(data)
    with pytest.raises(CellsegError, match=r"a\.roi"):
        read_shapes(tmp_path / "a.roi")

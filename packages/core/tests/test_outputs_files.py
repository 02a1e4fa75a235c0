"""Every output format holds exactly the labels, and opens in the programs it is for."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cellseg.data import Segmentation
from cellseg.engine.plan import Plan
from cellseg.engine.tile import tile_labels
from cellseg.errors import DataError, StorageError
from cellseg.outputs.formats import Output, output_for
from cellseg.outputs.geojson import outlines
from cellseg.outputs.result import Result, output_file
from cellseg.outputs.write import write


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import engine_fakes

    return engine_fakes


def result(labels, block=(1, 64, 64), movie=False, scored=False, **values):
    """A result with the frames ``labels``, ``(t, z, y, x)``."""
    objects = []
    for frame in labels:
        plan = Plan(frame.shape, frame.shape, (0, 0, 0))
        ids = range(1, int(frame.max()) + 1)
        scores = {i: 1 / i for i in ids if i != 2} if scored else {}
        classes = {i: i % 2 for i in ids if i != 2} if scored else {}
        objects.append(tile_labels(Segmentation(frame, scores, classes), plan, 0).objects)
    return Result(
        name="img", frames=list(labels), objects=objects, movie=movie, block=block, **values
    )


def random_labels(fakes, shape, seed=0):
    import cc3d

    return cc3d.connected_components(
        fakes.blobs(shape, seed, 0.4)[0] > 0, connectivity=26, out_dtype=np.uint32
    )


SHAPES = [
    ((1, 1, 70, 90), "yx"),
    ((1, 5, 130, 90), "zyx"),
    ((3, 1, 40, 50), "tyx"),
    ((2, 3, 40, 50), "tzyx"),
]


@pytest.fixture(params=SHAPES, ids=[axes for _, axes in SHAPES])
def case(request, fakes):
    (t, *shape), axes = request.param
    labels = np.stack([random_labels(fakes, tuple(shape), seed) for seed in range(t)])
    expected = labels if "t" in axes else labels[0]
    expected = expected if "z" in axes else expected.squeeze(-3)
    return result(labels, movie="t" in axes, spacing=(2.0, 0.5, 0.25)), axes, expected


def test_tiff(case, tmp_path):
    import tifffile

    given, axes, expected = case
    write(given, Output("tiff", tmp_path / "a.tif", "cells"))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        series = file.series[0]
        assert series.axes.lower() == axes
        assert (series.asarray() == expected).all()
        assert series.dtype == np.uint32
        assert 'PhysicalSizeX="0.25"' in file.ome_metadata
        assert series.pages[0].compression.name in ("ADOBE_DEFLATE", "DEFLATE")


@pytest.mark.parametrize("block", [(1, 512, 512), (1, 500, 333)])
def test_large_tiff_is_tiled(block, tmp_path, fakes):
    import tifffile

    labels = random_labels(fakes, (1, 1100, 1300))[None]
    write(result(labels, block=block), Output("tiff", tmp_path / "a.tif", "cells"))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].is_tiled
        assert (file.asarray() == labels[0, 0]).all()


def test_hdf5(case, tmp_path):
    import h5py

    given, axes, expected = case
    write(given, Output("hdf5", tmp_path / "a.h5", "cells"))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["labels"].attrs["axes"] == axes
        assert (file["labels"][...] == expected).all()
        assert file["labels"].dtype == np.uint32
        assert file["labels"].attrs["spacing_um"][-1] == 0.25


def test_same_labels_give_the_same_bytes(case, tmp_path):
    given, _, _ = case
    for name in "ab":
        for format in ("tiff", "hdf5", "geojson", "csv", "parquet"):
            write(given, output_for(format, tmp_path / name, "img", "cells"))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def rasterised(polygons, shape):
    """The pixels whose centres are inside, by the even-odd rule."""
    image = np.zeros(shape, bool)
    for polygon in polygons:
        for ring in polygon:
            for (x0, y0), (x1, y1) in pairwise(ring):
                if x0 == x1:
                    image[min(y0, y1) : max(y0, y1), x0:] ^= True
    return image


def shoelace(ring):
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


MASKS = {
    "pixel": [[1]],
    "line": [[1, 1, 1]],
    "corner": [[1, 0], [0, 1]],
    "ring": [[1, 1, 1], [1, 0, 1], [1, 1, 1]],
    "open ring": [[1, 1, 1], [1, 0, 1], [1, 1, 0]],
    "two holes": [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]],
    "island": [
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 1, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1],
    ],
    "stairs": [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]],
}


@pytest.mark.parametrize("name", MASKS)
def test_outlines_cover_exactly_the_pixels(name):
    mask = np.array(MASKS[name], bool)
    assert (rasterised(outlines(mask), mask.shape) == mask).all()


def test_outlines_of_random_masks(fakes):
    rng = np.random.default_rng(0)
    for seed in range(60):
        shape = tuple(rng.integers(1, 16, 2))
        mask = rng.random(shape) < rng.choice([0.2, 0.5, 0.8])
        polygons = outlines(mask)
        assert (rasterised(polygons, shape) == mask).all(), seed
        area = sum(
            abs(shoelace(polygon[0])) - sum(abs(shoelace(hole)) for hole in polygon[1:])
            for polygon in polygons
        )
        assert area == mask.sum()
        for polygon in polygons:
            for ring in polygon:
                assert ring[0] == ring[-1]
                # No point that changes nothing, and edges along one axis only.
                steps = np.diff(np.array(ring), axis=0)
                assert ((steps != 0).sum(1) == 1).all()


def test_geojson(case, tmp_path):
    given, axes, expected = case
    write(given, Output("geojson", tmp_path / "a.geojson", "cells"))
    document = json.loads((tmp_path / "a.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    drawn = np.zeros((len(given.frames), *given.shape), np.uint32)
    for feature in document["features"]:
        geometry = feature["geometry"]
        polygons = geometry["coordinates"]
        if geometry["type"] == "Polygon":
            polygons = [polygons]
        plane = geometry.get("plane", {"t": 0, "z": 0})
        assert ("plane" in geometry) == (axes != "yx")
        points = np.concatenate([np.array(p[0]) for p in polygons])
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        moved = [[[(x - x0, y - y0) for x, y in ring] for ring in p] for p in polygons]
        mask = rasterised(moved, (y1 - y0, x1 - x0))
        drawn[plane["t"], plane["z"], y0:y1, x0:x1][mask] = int(feature["properties"]["name"])
    assert (drawn.reshape(expected.shape) == expected).all()


def test_geojson_of_objects_in_several_blocks_and_one_huge(tmp_path):
    labels = np.zeros((1, 1, 600, 1500), np.uint32)
    labels[0, 0, 0:600, 0:3] = 1
    labels[0, 0, 0:3, 0:1500] = 1
    labels[0, 0, 100:120, 90:700] = 2
    labels[0, 0, 5:9, 5:9] = 3
    write(result(labels, block=(1, 64, 64)), Output("geojson", tmp_path / "a.geojson", "cells"))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    areas = {
        f["properties"]["name"]: abs(shoelace(f["geometry"]["coordinates"][0])) for f in features
    }
    assert areas == {"1": 1800 + 4500 - 9, "2": 20 * 610, "3": 16}


def test_table(tmp_path):
    labels = np.zeros((1, 1, 20, 30), np.uint32)
    labels[0, 0, 0:4, 5:9] = 1
    labels[0, 0, 6:9, 10:20] = 2
    labels[0, 0, 15, 29] = 3
    given = result(labels, scored=True, classes=("dead", "alive"))
    write(given, Output("csv", tmp_path / "a.csv", "cells"))
    write(given, Output("parquet", tmp_path / "a.parquet", "cells"))
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert rows[0] == {
        "id": "1", "area": "16", "centroid_z": "0.0", "centroid_y": "1.5", "centroid_x": "6.5",
        "z_min": "0", "y_min": "0", "x_min": "5", "z_max": "1", "y_max": "4", "x_max": "9",
        "score": "1.0", "class": "alive", "touches_border": "true",
    }  # fmt: skip
    assert [row["touches_border"] for row in rows] == ["true", "false", "true"]
    assert [row["class"] for row in rows] == ["alive", "", "alive"]
    assert rows[1]["score"] == ""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == list(rows[0])
    assert table["area"].to_pylist() == [16, 30, 1]
    assert table["score"].to_pylist()[1] is None
    assert table["touches_border"].to_pylist() == [True, False, True]


def test_table_of_planes_and_movies(tmp_path):
    labels = np.zeros((2, 3, 20, 30), np.uint32)
    labels[:, 0:3, 5:9, 5:9] = 1
    one = result(labels, movie=True)
    write(one, Output("csv", tmp_path / "a.csv", "cells"))
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(r["frame"], r["id"], r["touches_border"]) for r in rows] == [
        ("0", "1", "true"),
        ("1", "1", "true"),
    ]
    write(result(labels, movie=True, planes=True), Output("csv", tmp_path / "b.csv", "cells"))
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert [r["touches_border"] for r in rows] == ["false", "false"]


@pytest.mark.parametrize("name", ["../a", "/a", "", "a/../../b", "C:/x"])
def test_names_stay_in_the_folder(name, tmp_path):
    with pytest.raises(DataError):
        output_for("tiff", tmp_path, name, "cells")


def test_errors_that_hide_their_number_are_understood(tmp_path):
    with pytest.raises(StorageError, match=r"a\.h5.*disk is full"):
        with output_file(tmp_path / "a.h5") as temporary:
            temporary.write_text("half")
            raise RuntimeError("Can't write (errno = 28, error message = 'No space left')")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="a bug"):
        with output_file(tmp_path / "a.h5"):
            raise RuntimeError("a bug")

"""Outlines with fewer vertices stay those of their objects: valid, whole, with their holes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shapely
from engine_fakes import discs, plugins, read

from cellseg.errors import ConfigError, UsageError
from cellseg.options import parse
from cellseg.outputs.geojson import outlines, simplified
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def random_objects(count, seed=0):
    """Outlines of smooth and of ragged masks, with holes and with pieces that meet by corners."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        noise = rng.random(rng.integers(2, 24, 2))
        if number % 2:
            noise = gaussian_filter(noise, 1.2)
        found.append(outlines(noise >= np.quantile(noise, rng.choice([0.2, 0.5, 0.7]))))
    return found


def geometry(polygons):
    return shapely.MultiPolygon([(rings[0], rings[1:]) for rings in polygons])


def rings(polygons):
    return [len(polygon) for polygon in polygons]


@pytest.mark.parametrize("tolerance", [0.5, 1, 2.5, 40])
def test_simplified_outlines_keep_their_topology(tolerance):
    exact = random_objects(150)
    simple = simplified(exact, tolerance)
    assert len(simple) == len(exact)
    for before, after in zip(exact, simple, strict=True):
        shape = geometry(after)
        assert shape.is_valid
        assert rings(after) == rings(before)  # no piece and no hole is lost
        assert all(shapely.Polygon(ring).area > 0 for polygon in after for ring in polygon)
        corners = {point for polygon in before for ring in polygon for point in ring}
        for polygon in after:
            for ring in polygon:
                assert ring[0] == ring[-1]
                assert corners.issuperset(ring)
        if shape.equals(geometry(before)):
            continue
        assert shape.hausdorff_distance(geometry(before)) <= 2 * tolerance


def test_the_larger_the_tolerance_the_fewer_the_vertices():
    objects = random_objects(60, seed=1)

    def vertices(tolerance):
        found = simplified(objects, tolerance)
        return sum(len(ring) for one in found for polygon in one for ring in polygon)

    counts = [vertices(tolerance) for tolerance in (1e-9, 0.5, 1, 2, 4)]
    assert counts[0] == sum(len(r) for one in objects for polygon in one for r in polygon)
    assert all(fewer < more for more, fewer in pairwise(counts))


def test_a_step_goes_where_it_is_lower_than_the_tolerance():
    mask = np.ones((6, 20), bool)
    mask[0, 10:] = False  # one step of a pixel, half a pixel from the line across it
    (exact,) = outlines(mask)
    assert len(exact[0]) == 7
    assert len(simplified([[exact]], 0.4)[0][0][0]) == 7
    assert len(simplified([[exact]], 1.1)[0][0][0]) == 5


def test_an_outline_that_would_cross_itself_stays_exact(monkeypatch):
    objects = random_objects(3, seed=2)
    library, crossed = shapely.simplify, shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])

    def simplify(shapes, *args, **values):
        found = library(shapes, *args, **values)
        found[1] = crossed
        return found

    usual = simplified(objects, 2.0)
    monkeypatch.setattr(shapely, "simplify", simplify)
    assert simplified(objects, 2.0) == [usual[0], objects[1], usual[2]]


def test_nothing_to_simplify():
    assert simplified([], 1.0) == []


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.npy"
    pixels = discs((180, 170), radius=11, step=28)
    pixels[0, 0, 12:16, 12:16] = 0  # a hole
    np.save(path, pixels)
    return path


def run(image, out, **values):
    given = {"backend": "flat", "reader": "npy", "output": out, **values}
    return predict(plugins(), image, parse(PredictSettings, given), emit=lambda event: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_smoothing_reaches_the_file_and_only_the_outlines(image, tmp_path, workers):
    size = {"tile_size": 64, "halo": 24, "format": ("geojson", "tiff"), "workers": workers}
    run(image, tmp_path / "exact", **size)
    run(image, tmp_path / "smooth", **size, smoothing=1)
    assert (read(tmp_path / "exact" / "a.tif") == read(tmp_path / "smooth" / "a.tif")).all()
    exact, smooth = (
        json.loads((tmp_path / name / "a.geojson").read_text())["features"]
        for name in ("exact", "smooth")
    )
    assert [f["properties"] for f in exact] == [f["properties"] for f in smooth]
    expected = simplified([[f["geometry"]["coordinates"]] for f in exact], 1.0)
    for one, polygons in zip(smooth, expected, strict=True):
        assert one["geometry"]["coordinates"] == json.loads(json.dumps(polygons[0]))
    assert [len(f["geometry"]["coordinates"]) for f in smooth].count(2) == 1
    assert sum(map(vertices, smooth)) < sum(map(vertices, exact)) / 2


def vertices(feature):
    return sum(map(len, feature["geometry"]["coordinates"]))


def test_no_smoothing_is_exact(image, tmp_path):
    run(image, tmp_path / "none", format=("geojson",))
    run(image, tmp_path / "zero", format=("geojson",), smoothing=0)
    none, zero = (tmp_path / name / "a.geojson" for name in ("none", "zero"))
    assert none.read_bytes() == zero.read_bytes()


def test_smoothing_without_outlines_is_refused(image, tmp_path):
    with pytest.raises(ConfigError, match="--smoothing") as caught:
        run(image, tmp_path / "out", format=("tiff", "csv"), smoothing=1)
    assert "--format geojson" in caught.value.hint
    with pytest.raises(UsageError, match="--output is missing"):
        run(image, None, format=("geojson",), smoothing=1)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--smoothing"):
            parse(PredictSettings, {"smoothing": wrong})
    assert not (tmp_path / "out").exists()


def test_another_smoothing_is_another_prediction(image, tmp_path):
    given = {"format": ("geojson",), "smoothing": 1}
    run(image, tmp_path / "out", **given)
    with pytest.raises(ConfigError, match=r"--smoothing 1\.0, not with --smoothing 2\.0"):
        run(image, tmp_path / "out", resume=True, **{**given, "smoothing": 2})
    run(image, tmp_path / "out", resume=True, **given)

"""What GeoJSON says of examples, which of them count, and in which images they lie."""

from __future__ import annotations

import json
import random

import pytest
from drawn_examples import MOVIE, ONE, VOLUME, box, feature, only, point, sample, square, written
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.errors import ConfigError, DataError
from cellseg.plugins import Plugins
from cellseg.workflows.examples import read_examples


@pytest.fixture(scope="module")
def plugins():
    return Plugins(installed=())


def test_qupath(plugins, tmp_path):
    ring = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]
    hole = [[12, 12], [12, 14], [14, 14], [14, 12], [12, 12]]
    path = written(
        tmp_path / "e.geojson",
        feature({"type": "Polygon", "coordinates": [ring, hole]}, "Tumor"),
        feature({"type": "MultiPoint", "coordinates": [[30.2, 5.5], [33, 7]]}, "Tumor"),
        feature(square(40, 20), "Stroma"),
        feature(
            {
                "type": "MultiPolygon",
                "coordinates": [square(1, 1)["coordinates"], square(3, 8)["coordinates"]],
            },
            "Stroma",
        ),
        feature(square(50, 30), "Ignore*"),
    )
    found = read_examples(plugins, path, ONE)
    assert found.classes == ("background", "Stroma", "Tumor") and not found.notes
    pieces, first, second, holed, stroma, ignored = only(found)
    assert box(pieces) == (0, 1, 1, 11, 6) and pieces.mask.sum() == 32 and pieces.kind == 1
    assert first.point == (5.5, 30.2) and first.corner == (0, 5, 30) and first.kind == 2
    assert second.point == (7, 33) and second.mask is None
    assert box(holed) == (0, 10, 10, 10, 10) and holed.mask.sum() == 96
    assert not holed.mask[2:4, 2:4].any() and holed.where == f"{path}, feature 1"
    assert stroma.kind == 1 and stroma.positive
    assert ignored.kind == 0 and not ignored.positive
    assert found.places == {("a", 0, 0)}


def test_a_bare_collection_holds_an_example_for_each_geometry(plugins, tmp_path):
    path = tmp_path / "napari.geojson"
    geometries = [square(0, 0), square(9, 9)]
    path.write_text(json.dumps({"type": "GeometryCollection", "geometries": geometries}))
    assert len(only(read_examples(plugins, path, ONE))) == 2
    written(path, feature({"type": "GeometryCollection", "geometries": geometries}))
    assert len(only(read_examples(plugins, path, ONE))) == 1  # of a feature, it is one object


def test_tags_choose_and_order_the_classes(plugins, tmp_path):
    path = written(
        tmp_path / "e.geojson",
        feature(square(0, 0), "b"),
        feature(square(10, 0), "a"),
        feature(square(20, 0), tags=["c", "debris"]),
        feature(square(30, 0)),
        feature(square(40, 0), "Negative"),
        feature(square(50, 0), "x", label=0),
    )
    found = read_examples(plugins, path, ONE, tags=["b", "a"], negative_tags=["debris"])
    assert found.classes == ("background", "b", "a")
    assert [(e.corner[2], e.kind) for e in only(found)] == [
        (0, 1),
        (10, 2),
        (20, 0),
        (40, 0),
        (50, 0),
    ]
    assert found.notes == (
        f"1 example(s) in {path} are of other classes than --tag says, and left out: 1 without a "
        "class.",
    )
    # A class that is asked for is looked for, even if it is called negative.
    found = read_examples(plugins, path, ONE, tags=["Negative"])
    assert [(e.corner[2], e.kind) for e in only(found)] == [(40, 1), (50, 0)]
    assert "a (1), b (1), c (1), debris (1), 1 without a class" in found.notes[0]


def test_unnamed_examples_are_one_class_without_a_name(plugins, tmp_path):
    path = written(
        tmp_path / "e.json", feature(square(0, 0)), feature(point(9, 9), label="negative")
    )
    found = read_examples(plugins, path, ONE)
    assert found.classes == () and [e.kind for e in only(found)] == [1, 0]


@pytest.mark.parametrize(
    ("features", "options", "said"),
    [
        (
            [feature(square(0, 0), "a"), feature(square(9, 9))],
            {},
            "1 example.s. have a class .a., but 1 have none",
        ),
        ([feature(square(0, 0), "a")], {"tags": ["b"]}, "--tag b: .* no example of this class"),
        ([feature(square(0, 0))], {"negative_tags": ["b"]}, "--negative-tag b: .* no example"),
        (
            [feature(square(0, 0), "a", label=0)],
            {"tags": ["a"]},
            "all examples of this class in .* are negative",
        ),
        (
            [feature(square(0, 0), "negative")],
            {},
            "shows no object to look for, only negative ones .1.",
        ),
        ([feature(square(0, 0), tags=["a", "b"])], {}, "feature 1: is of several classes: a, b"),
        (
            [feature(square(0, 0), tags=["a", "b"])],
            {"tags": ["a"], "negative_tags": ["b"]},
            "looked for as a, and left alone as b",
        ),
        (
            [feature(square(0, 0)), feature(square(0, 0))],
            {},
            "feature 2: shows the same as .*feature 1",
        ),
        (
            [feature(square(0, 0)), feature(square(0, 0), label=0)],
            {},
            "shows the same, but of another class, as",
        ),
        (
            [feature(square(58, 0))],
            {},
            "feature 1: lies outside of a: x 62, y 0, but the image has 60 x 40",
        ),
        (
            [feature(square(0, 38), "kidney")],
            {},
            "feature 1 .kidney.: lies outside of a: x 4, y 42",
        ),
        ([feature(point(60, 0))], {}, "outside of a: x 60, y 0"),
        ([feature(point(-0.1, 0))], {}, "outside of a: x -0.1, y 0"),
        (
            [feature({"type": "Polygon", "coordinates": [[[0, 0], [4, 4], [4, 0], [0, 4]]]})],
            {},
            "feature 1: its outline crosses itself at x 2, y 2",
        ),
        ([feature(square(1.6, 1.6, 0.5))], {}, "covers no pixel, at x 1.85, y 1.85"),
        (
            [feature({"type": "LineString", "coordinates": [[0, 0], [4, 4]]})],
            {},
            "is a line, which has no area",
        ),
        ([feature(square(0, 0, z=1))], {}, "is in plane 1, but a has 1 plane"),
        ([feature(square(0, 0, t=2))], {}, "is in frame 2, but a is no movie"),
        ([feature(square(0, 0), image="b")], {}, "there is no image 'b' among the images"),
        ([feature(square(0, 0), "background")], {}, "a class called background"),
        ([feature(square(2 * n, 0, 1), f"c{n}") for n in range(16)], {}, "has 16 classes"),
        (
            [feature({"type": "Polygon", "coordinates": [[[0, 0, 0], [4, 0, 1], [4, 4, 2]]]})],
            {},
            "lies in several planes",
        ),
    ],
)
def test_errors_of_geojson(plugins, tmp_path, features, options, said):
    path = written(tmp_path / "e.geojson", *features)
    with pytest.raises(DataError, match=said) as caught:
        read_examples(plugins, path, ONE, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tags": ["a", "a"]}, "--tag a is given twice"),
        ({"tags": ["a"], "negative_tags": ["a"]}, "exclude each other"),
        ({"tags": ["background"]}, "--tag background"),
        ({"tags": [f"c{n}" for n in range(16)]}, "16 classes; 15 fit"),
    ],
)
def test_tags_that_make_no_sense(plugins, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        read_examples(
            plugins, written(tmp_path / "e.json", feature(square(0, 0), "a")), ONE, **options
        )


def test_planes_and_frames(plugins, tmp_path):
    path = written(tmp_path / "e.geojson", feature(square(0, 0, z=3)), feature(point(5, 5)))
    assert [e.corner for e in only(read_examples(plugins, path, VOLUME))] == [(0, 5, 5), (3, 0, 0)]
    path = written(
        tmp_path / "m.geojson", feature(square(0, 0, t=2)), feature(square(9, 9), frame=1)
    )
    found = read_examples(plugins, path, MOVIE)
    assert [image.sample.name for image in found.images] == ["m#1", "m#2"]
    assert found.places == {("m", 1, 0), ("m", 2, 0)}
    path = written(tmp_path / "e.geojson", feature(square(0, 0)))
    with pytest.raises(DataError, match="v has 5 planes, but z is not given"):
        read_examples(plugins, path, VOLUME)
    with pytest.raises(DataError, match="m is a movie, but the frame is not given"):
        read_examples(plugins, path, MOVIE)


def test_images_are_matched_by_name(plugins, tmp_path):
    several = [sample("x/a"), sample("x/b"), sample("c")]
    path = written(
        tmp_path / "e.geojson",
        feature(square(0, 0), image="b.tif"),
        feature(point(1, 1), image="c"),
    )
    found = read_examples(plugins, path, several)
    assert [image.sample.name for image in found.images] == ["x/b", "c"]
    # Without a name in the feature, that of the file counts, and then that of the folder's files.
    path = written(tmp_path / "b.geojson", feature(square(0, 0)))
    assert [i.sample.name for i in read_examples(plugins, path, several).images] == ["x/b"]
    with pytest.raises(DataError, match="does not say in which of the 3 images it lies"):
        read_examples(plugins, written(tmp_path / "z.json", feature(square(0, 0))), several)
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder / "c.geojson", feature(square(0, 0)))
    (folder / "a.csv").write_text("y,x\n3,4\n")
    found = read_examples(plugins, folder, several)
    assert [image.sample.name for image in found.images] == ["x/a", "c"]
    written(folder / "d.geojson", feature(square(0, 0)))
    with pytest.raises(DataError, match=r"there is no image 'd.geojson' among the images"):
        read_examples(plugins, folder, several)


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_the_order_in_the_file_does_not_matter(tmp_path_factory, shuffled: random.Random):
    features = [feature(square(x, y), name) for x in (0, 9, 30) for y, name in ((0, "a"), (9, "b"))]
    features += [feature(point(3, 20), "a"), feature(square(50, 20), "negative")]
    path = tmp_path_factory.mktemp("order") / "e.geojson"
    first = read_examples(Plugins(installed=()), written(path, *features), ONE)
    shuffled.shuffle(features)
    again = read_examples(Plugins(installed=()), written(path, *features), ONE)
    assert again.digest == first.digest
    places = [e.corner for e in only(first)]
    assert places == sorted(places) and [e.corner for e in only(again)] == places
    features.pop()
    assert (
        read_examples(Plugins(installed=()), written(path, *features), ONE).digest != first.digest
    )

"""What files of examples say: GeoJSON of QuPath, ROIs of ImageJ, tables of napari, label images."""

from __future__ import annotations

import json
import random
import zipfile

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.examples import examples_of_labels
from cellseg.plugins import Plugins
from cellseg.workflows.examples import read_examples


@pytest.fixture(scope="module")
def plugins():
    return Plugins(installed=())


def sample(name="a", shape=(1, 40, 60), frame=None):
    return Sample(
        name=name if frame is None else f"{name}#{frame}",
        image=np.zeros((1, *shape), np.uint8),
        source=name,
        frame=frame,
    )


ONE = [sample()]
VOLUME = [sample("v", (5, 40, 60))]
MOVIE = [sample("m", frame=number) for number in range(3)]


def feature(geometry, name=None, **properties):
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "11111111-2222-3333-4444-555555555555",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def square(x, y, side=4, **plane):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    found = {"type": "Polygon", "coordinates": [ring]}
    return {**found, "plane": {"c": -1, "z": 0, "t": 0, **plane}} if plane else found


def point(x, y):
    return {"type": "Point", "coordinates": [x, y]}


def written(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def box(example):
    """Plane, first row, first column, height, width."""
    return (*example.corner, *example.mask.shape)


def only(found):
    (image,) = found.images
    return image.examples


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


def test_rois_of_imagej(plugins, tmp_path):
    polygon = ImagejRoi.frompoints([[10, 10], [20, 10], [20, 20], [10, 20]], name="nucleus-1")
    polygon.roitype = ROI_TYPE.POLYGON
    fine = ImagejRoi.frompoints(np.array([[30.5, 5.5], [36.5, 5.5], [33.5, 11.5]]), name="nucleus")
    rect = ImagejRoi(roitype=ROI_TYPE.RECT, left=40, top=3, right=46, bottom=9, name="0003-0040")
    rect.group = 2
    oval = ImagejRoi(roitype=ROI_TYPE.OVAL, left=40, top=20, right=50, bottom=26, name="nucleus 3")
    dots = ImagejRoi.frompoints([[2, 30], [5, 31]], name="negative")
    dots.roitype = ROI_TYPE.POINT
    path = tmp_path / "rois.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, roi in enumerate((polygon, fine, rect, oval, dots)):
            archive.writestr(f"{number}.roi", roi.tobytes())
    found = read_examples(plugins, path, ONE)
    assert found.classes == ("background", "group 2", "nucleus")
    rect, fine, polygon, oval, one, two = only(found)
    assert (box(rect), rect.kind, rect.mask.all()) == ((0, 3, 40, 6, 6), 1, True)
    assert fine.kind == 2 and fine.corner[0] == 0 and 15 <= fine.mask.sum() <= 21
    assert box(polygon) == (0, 10, 10, 10, 10) and polygon.mask.all()
    y, x = np.indices((40, 60)) + 0.5
    expected = ((y - 23) / 3) ** 2 + ((x - 45) / 5) ** 2 < 1
    assert box(oval) == (0, 20, 40, 6, 10)
    np.testing.assert_array_equal(oval.mask, expected[20:26, 40:50])
    assert (one.point, two.point) == ((30.5, 2.5), (31.5, 5.5)) and not one.positive
    found = read_examples(plugins, path, ONE, tags=["nucleus"])
    assert "group 2 (1)" in found.notes[0] and "ROI 5 (4)" in only(found)[-1].where


def roi(kind=ROI_TYPE.RECT, **values):
    return ImagejRoi(roitype=kind, **{"left": 1, "top": 1, "right": 9, "bottom": 9, **values})


def test_positions_of_rois(plugins, tmp_path):
    def placed(samples, **values):
        path = tmp_path / "one.roi"
        roi(**values).tofile(path)
        (image,) = read_examples(plugins, path, samples).images
        return image.sample.frame, image.examples[0].corner[0]

    assert placed(ONE) == (None, 0)
    assert placed(ONE, position=1) == (None, 0)
    assert placed(VOLUME, position=4) == (None, 3)
    assert placed(VOLUME, z_position=2, t_position=1) == (None, 1)
    assert placed(MOVIE, position=3) == (2, 0)
    assert placed(MOVIE, z_position=1, t_position=2) == (1, 0)
    with pytest.raises(DataError, match="in plane 5, but v has 5"):
        placed(VOLUME, position=6)
    with pytest.raises(DataError, match="v has 5 planes, but z is not given"):
        placed(VOLUME)


def test_a_composite_roi_has_holes(plugins, tmp_path):
    def path(x, y, side):
        ring = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
        ops = [value for i, (a, b) in enumerate(ring) for value in (0 if i == 0 else 1, a, b)]
        return [*ops, 4]

    shape = np.array(path(10, 10, 20) + path(12, 12, 5) + path(40, 10, 4), np.float32)
    made = roi(left=10, top=10, right=44, bottom=30)
    made.multi_coordinates, made.shape_roi_size = shape, len(shape)
    made.tofile(tmp_path / "c.roi")
    (one,) = only(read_examples(plugins, tmp_path / "c.roi", ONE))
    expected = np.zeros((40, 60), bool)
    expected[10:30, 10:30] = True
    expected[12:17, 12:17] = False
    expected[10:14, 40:44] = True
    assert box(one) == (0, 10, 10, 20, 34)
    np.testing.assert_array_equal(one.mask, expected[10:30, 10:44])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (roi(ROI_TYPE.LINE).tobytes(), "of the type line, which has no area"),
        (roi(rounded_rect_arc_size=5).tobytes(), "rounded corners"),
        (b"Iout", "no region of ImageJ, or damaged"),
        (b"x" * 200, "no region of ImageJ, or damaged"),
    ],
)
def test_other_rois_are_refused(plugins, tmp_path, data, said):
    (tmp_path / "bad.roi").write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_examples(plugins, tmp_path / "bad.roi", ONE)


def test_files_that_are_no_rois(plugins, tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="no ZIP file"):
        read_examples(plugins, tmp_path / "bad.zip", ONE)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="no regions"):
        read_examples(plugins, tmp_path / "empty.zip", ONE)
    with pytest.raises(DataError, match="no such file"):
        read_examples(plugins, tmp_path / "none.zip", ONE)
    assert ROI_OPTIONS and ROI_SUBTYPE  # of the version that is installed


def test_tables(plugins, tmp_path):
    path = tmp_path / "e.csv"
    path.write_text(
        "y,x,y0,x0,y1,x1,tag,label\n5,6,,,,,a,\n,,9.5,9.5,19.5,14.5,a,1\n,,29.5,9.5,31.5,14.5,,0\n"
    )
    found = read_examples(plugins, path, ONE)
    assert found.classes == ("background", "a")
    first, second, third = only(found)
    assert first.point == (5.5, 6.5) and first.corner == (0, 5, 6)
    assert box(second) == (0, 10, 10, 10, 5) and second.mask.all() and second.kind == 1
    assert box(third) == (0, 30, 10, 2, 5) and not third.positive


def test_layers_of_napari(plugins, tmp_path):
    header = "index,shape-type,vertex-index,axis-0,axis-1,axis-2,tag\n"
    corners = [(9.5, 9.5), (9.5, 19.5), (14.5, 19.5), (14.5, 9.5)]
    rows = [f"0,rectangle,{i},2,{y},{x},a\n" for i, (y, x) in enumerate(corners)]
    rows += [f"1,ellipse,{i},1,{y},{x + 20},a\n" for i, (y, x) in enumerate(corners)]
    rows += [f"2,polygon,{i},1,{y + 10},{x},a\n" for i, (y, x) in enumerate(corners[:3])]
    path = tmp_path / "shapes.csv"
    path.write_text(header + "".join(rows))
    disc, triangle, rectangle = only(read_examples(plugins, path, VOLUME))
    assert box(disc) == (1, 10, 30, 5, 10) and 30 < disc.mask.sum() < 45
    assert triangle.corner[0] == 1 and 20 <= triangle.mask.sum() <= 30
    assert box(rectangle) == (2, 10, 10, 5, 10) and rectangle.mask.all()
    # In a movie, the first axis is the frame.
    found = read_examples(plugins, path, MOVIE)
    assert [image.sample.frame for image in found.images] == [1, 2]
    path.write_text(header + "0,path,0,1,3,3,a\n0,path,1,1,5,5,a\n")
    with pytest.raises(DataError, match="is a path, which has no area"):
        read_examples(plugins, path, VOLUME)
    path.write_text("index,axis-0,axis-1,axis-2\n0,3,10,11\n1,0,5,5\n")
    assert [e.point for e in only(read_examples(plugins, path, VOLUME))] == [
        (5.5, 5.5),
        (10.5, 11.5),
    ]


def test_rows_of_one_object_are_refused(plugins, tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("object,y,x\na,5,6\na,7,8\n")
    with pytest.raises(DataError, match=r"line 3: shows the object 'a' again, after .*line 2"):
        read_examples(plugins, path, ONE)
    path.write_text("y,x,y0,x0,y1,x1\n5,6,1,1,9,9\n")
    with pytest.raises(DataError, match="has a point and a box"):
        read_examples(plugins, path, ONE)


def test_label_images(plugins, tmp_path):
    labels = np.zeros((40, 60), np.uint16)
    labels[5:9, 5:9], labels[20:30, 30:33], labels[0, 0], labels[39, 59] = 7, 300, 2, 2
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    found = read_examples(plugins, tmp_path / "labels.tif", ONE)
    corners, first, second = only(found)
    assert found.classes == () and box(corners) == (0, 0, 0, 40, 60) and corners.mask.sum() == 2
    assert box(first) == (0, 5, 5, 4, 4) and box(second) == (0, 20, 30, 10, 3)
    assert second.where.endswith("labels.tif, object 300")
    with pytest.raises(DataError, match=r"--tag a: .* no example of this class"):
        read_examples(plugins, tmp_path / "labels.tif", ONE, tags=["a"])
    with pytest.raises(DataError, match="label image is 1 x 40 x 60, but a is 1 x 41 x 60"):
        read_examples(plugins, tmp_path / "labels.tif", [sample(shape=(1, 41, 60))])
    tifffile.imwrite(tmp_path / "labels.tif", labels * 0)
    with pytest.raises(DataError, match="no object to look for, none"):
        read_examples(plugins, tmp_path / "labels.tif", ONE)


def test_many_objects_of_several_label_images(plugins, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    ids = np.arange(1, 1 + 20 * 30, dtype=np.uint16).reshape(20, 30).repeat(2, 0).repeat(2, 1)
    for name in ("b", "c"):
        tifffile.imwrite(folder / f"{name}.tif", ids)
    several = [sample(name) for name in "abc"]
    found = read_examples(plugins, folder, several)
    assert [image.sample.name for image in found.images] == ["b", "c"]
    assert [len(image.examples) for image in found.images] == [600, 600]


def test_objects_of_volumes_are_taken_where_they_are_largest(plugins, tmp_path):
    labels = np.zeros((5, 40, 60), np.uint8)
    labels[1, 5:8, 5:8], labels[2, 5:10, 5:9], labels[3, 5:6, 5:9] = 1, 1, 1
    labels[0, 20:22, 20:22], labels[4, 20:22, 30:32] = 4, 4  # equally large in both
    tifffile.imwrite(tmp_path / "v.tif", labels, metadata={"axes": "ZYX"})
    found = read_examples(plugins, tmp_path / "v.tif", VOLUME)
    assert [box(e) for e in only(found)] == [(0, 20, 20, 2, 2), (2, 5, 5, 5, 4)]


def test_labels_that_come_with_the_data():
    labels = np.zeros((1, 40, 60), np.uint32)
    labels[0, 1:3, 1:3], labels[0, 5:7, 1:3] = (1 << 28) + 1, (3 << 28) + 1
    labels[0, 9:12, 1:3], labels[0, 20:, :] = (1 << 28) + 2, 0xFFFFFFFF
    classes = ("background", "z", "y", "x")
    one = Sample(name="a", image=np.zeros((1, 1, 40, 60)), labels=labels, classes=classes)
    found = examples_of_labels([one])
    assert found.classes == ("background", "z", "x")  # in their order; of y there is none
    assert [(box(e), e.kind) for e in only(found)] == [
        ((0, 1, 1, 2, 2), 1), ((0, 5, 1, 2, 2), 2), ((0, 9, 1, 3, 2), 1),
    ]  # fmt: skip
    assert found.images[0].sample.labels is None and not found.images[0].sample.classes
    empty = Sample(name="e", image=np.zeros((1, 1, 40, 60)), labels=labels * 0)
    with pytest.raises(DataError, match="no object to look for"):
        examples_of_labels([empty])

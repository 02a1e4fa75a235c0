"""Examples in ROIs of ImageJ, tables, layers of napari and label images."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from drawn_examples import MOVIE, ONE, VOLUME, box, only, sample
from roifile import ROI_TYPE, ImagejRoi

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.example_masks import ShownLabels
from cellseg.examples import examples_of_labels
from cellseg.plugins import Plugins
from cellseg.workflows.examples import read_examples


@pytest.fixture(scope="module")
def plugins():
    return Plugins(installed=())


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
        archive.writestr("__MACOSX/._0.roi", b"of macOS")
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


def test_regions_without_a_name_have_that_of_their_entry(plugins, tmp_path):
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("cells/yeast-12.ROI", roi().tobytes())
    assert read_examples(plugins, tmp_path / "e.zip", ONE).classes == ("background", "yeast")


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


def test_each_point_of_a_roi_has_its_own_position(plugins, tmp_path):
    dots = ImagejRoi.frompoints([[2, 30], [5, 31], [9, 32]])
    dots.roitype, dots.position = ROI_TYPE.POINT, 2
    dots.counters = np.zeros(3, np.uint8)
    dots.counter_positions = np.array([4, 0, 1], np.uint32)
    dots.tofile(tmp_path / "dots.roi")
    found = only(read_examples(plugins, tmp_path / "dots.roi", VOLUME))
    assert {one.point[1]: one.corner[0] for one in found} == {2.5: 3, 5.5: 1, 9.5: 0}


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


def test_examples_are_a_label_image_again():
    labels = np.random.default_rng(0).integers(0, 9, (3, 40, 60)).astype(np.uint8)
    labels[1:] = 0
    one = Sample(name="a", image=np.zeros((1, 3, 40, 60)), labels=labels)
    (image,) = examples_of_labels([one]).images
    again = ShownLabels(image.examples, (3, 40, 60))
    whole = again[0:3, 0:40, 0:60]
    pairs = np.unique(np.stack([labels.ravel(), whole.ravel()]), axis=1)
    assert pairs.shape[1] == 9 and again.shape == labels.shape and again.dtype == whole.dtype
    np.testing.assert_array_equal(again[0:2, 7:21, 30:60], whole[0:2, 7:21, 30:60])
    left = tuple(replace(e, positive=False, kind=0) for e in image.examples)
    assert set(np.unique(ShownLabels(left, (3, 40, 60))[0:3, 0:40, 0:60])) == {0, 0xFFFFFFFF}


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

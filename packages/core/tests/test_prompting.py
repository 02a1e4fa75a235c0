from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cellseg.data import Prompt
from cellseg.errors import DataError
from cellseg.prompting import Prompts, read_prompts

ALL = ((0, 0, 0), (1, 100, 100))


def table(folder: Path, text: str, name: str = "prompts.csv") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def features(folder: Path, data: Any, name: str = "prompts.geojson") -> Path:
    return table(folder, json.dumps(data), name)


def only(prompts: Prompts, name: str = "a") -> Prompt:
    (found,) = prompts.within(name, None, *ALL)
    return found


def point(x: float, y: float, **properties: Any) -> dict[str, Any]:
    geometry = {"type": "Point", "coordinates": [x, y]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def square(x: float, y: float, side: float = 10, **properties: Any) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_rows_are_objects_of_their_own(tmp_path: Path, separator: str) -> None:
    text = "y,x\n10,20\n30.5,40\n".replace(",", separator)
    prompts = read_prompts(table(tmp_path, "\ufeff" + text), ["a"])
    assert prompts.count == 2
    assert prompts.within("a", 0, *ALL) == (
        Prompt(points=((0.5, 10.5, 20.5),), positive=(True,)),
        Prompt(points=((0.5, 31.0, 40.5),), positive=(True,)),
    )
    assert prompts.within("b", 0, *ALL) == () == prompts.within("a", 1, *ALL)


def test_rows_of_one_object_are_put_together(tmp_path: Path) -> None:
    text = (
        "object,label,y,x,y0,x0,y1,x1\n"
        "cell,negative,1,2,,,,\n"
        "other,,50,50,,,,\n"
        "cell,1.0,3,4,,,,\n"
        "cell,,,,0,0,9,8\n"
    )
    prompts = read_prompts(table(tmp_path, text), ["a"])
    first, second = prompts.within("a", None, *ALL)
    assert first == Prompt(
        points=((0.5, 1.5, 2.5), (0.5, 3.5, 4.5)),
        positive=(False, True),
        box=((0.0, 0.5, 0.5), (1.0, 9.5, 8.5)),
        name="cell",
    )
    assert second.name == "other" and second.box is None


def test_a_row_may_have_a_point_and_a_box_and_planes(tmp_path: Path) -> None:
    text = "z,y,x,y0,x0,y1,x1,z0,z1\n3,5,6,1,9,8,2,,\n,,,1,2,8,9,2,4\n"
    prompts = read_prompts(table(tmp_path, text), ["a"])
    one, two = prompts.within("a", None, (0, 0, 0), (9, 99, 99))
    assert one.points == ((3.5, 5.5, 6.5),) and not two.points
    assert one.box == ((3.0, 1.5, 2.5), (4.0, 8.5, 9.5)), "corners in any order"
    assert two.box == ((2.0, 1.5, 2.5), (5.0, 8.5, 9.5)), "planes 2 to 4"
    prompts.check("a", (9, 99, 99))
    with pytest.raises(DataError, match=r"line 2: lies outside of a: z 3.5, y 5"):
        prompts.check("a", (1, 99, 99))


def test_layers_of_napari(tmp_path: Path) -> None:
    points = table(tmp_path, "index,axis-0,axis-1\n0.0,10.0,20.0\n1.0,30.5,40.25\n")
    found = read_prompts(points, ["a"]).within("a", None, *ALL)
    assert [one.points for one in found] == [((0.5, 10.5, 20.5),), ((0.5, 31.0, 40.75),)]
    shapes = table(
        tmp_path,
        "index,shape-type,vertex-index,axis-0,axis-1\n"
        "0,rectangle,0,5.0,10.0\n0,rectangle,1,15.0,10.0\n"
        "0,rectangle,2,15.0,30.0\n0,rectangle,3,5.0,30.0\n"
        "1,ellipse,0,40.0,45.0\n1,ellipse,1,60.0,45.0\n"
        "1,ellipse,2,60.0,55.0\n1,ellipse,3,40.0,55.0\n",
    )
    found = read_prompts(shapes, ["a"]).within("a", None, *ALL)
    assert [one.box for one in found] == [
        ((0.0, 5.5, 10.5), (1.0, 15.5, 30.5)),
        ((0.0, 40.5, 45.5), (1.0, 60.5, 55.5)),
    ]


def test_three_axes_of_napari_are_planes_or_frames(tmp_path: Path) -> None:
    file = table(tmp_path, "index,axis-0,axis-1,axis-2,label\n0.0,3.0,10.0,20.0,1.0\n")
    volume = read_prompts(file, ["a"])
    assert volume.within("a", None, (3, 0, 0), (4, 99, 99))[0].points == ((0.5, 10.5, 20.5),)
    movie = read_prompts(file, ["a"], movies=["a"])
    assert movie.within("a", 3, *ALL)[0].points == ((0.5, 10.5, 20.5),)
    assert movie.within("a", 0, *ALL) == ()
    movie.check("a", (1, 99, 99), range(4))
    with pytest.raises(DataError, match="in frame 3, but a has the frames 0 to 2"):
        movie.check("a", (1, 99, 99), range(3))
    shape = table(
        tmp_path,
        "index,shape-type,vertex-index,axis-0,axis-1,axis-2\n"
        "0,line,0,2.0,5.0,10.0\n0,line,1,2.0,15.0,30.0\n",
    )
    assert read_prompts(shape, ["a"], movies=["a"]).within("a", 2, *ALL)[0].box is not None
    (deep,) = read_prompts(shape, ["a"]).within("a", 0, (0, 0, 0), (5, 99, 99))
    assert deep.box == ((2.0, 5.5, 10.5), (3.0, 15.5, 30.5))
    four = table(tmp_path, "index,axis-0,axis-1,axis-2,axis-3\n0,7,3,10,20\n")
    (found,) = read_prompts(four, ["a"]).within("a", 7, (0, 0, 0), (5, 99, 99))
    assert found.points == ((3.5, 10.5, 20.5),)


def test_geojson_counts_from_corners(tmp_path: Path) -> None:
    data = {
        "type": "FeatureCollection",
        "features": [point(20, 10, name="n"), square(5, 30, side=10)],
    }
    prompts = read_prompts(features(tmp_path, data), ["a"])
    dot, box = prompts.within("a", None, *ALL)
    assert dot == Prompt(points=((0.5, 10.0, 20.0),), positive=(True,), name="n")
    assert box.box == ((0.0, 30.0, 5.0), (1.0, 40.0, 15.0)) and not box.points


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]},
        {"type": "LineString", "coordinates": [[1, 2], [3, 4]]},
        {"type": "MultiLineString", "coordinates": [[[1, 2], [2, 2]], [[3, 3], [3, 4]]]},
        {"type": "MultiPolygon", "coordinates": [[[[1, 2], [3, 2], [3, 4]]]]},
        {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Point", "coordinates": [2, 3]},
                {"type": "LineString", "coordinates": [[1, 2], [3, 4]]},
            ],
        },
    ],
    ids=lambda geometry: geometry["type"],
)
def test_a_feature_is_an_object(tmp_path: Path, geometry: dict[str, Any]) -> None:
    bare = only(read_prompts(features(tmp_path, geometry), ["a"]))
    listed = [{"type": "Feature", "geometry": geometry, "properties": None}]
    assert only(read_prompts(features(tmp_path, listed), ["a"])) == bare
    if geometry["type"] == "MultiPoint":
        assert bare.points == ((0.5, 2.0, 1.0), (0.5, 4.0, 3.0)) and bare.box is None
    else:
        assert bare.box == ((0.0, 2.0, 1.0), (1.0, 4.0, 3.0))
        assert len(bare.points) == (geometry["type"] == "GeometryCollection")


@pytest.mark.parametrize(
    "negative",
    [
        {"label": 0},
        {"label": "negative"},
        {"classification": {"name": "Ignore*", "color": [1, 2, 3]}},
        {"classification": {"names": ["Negative"]}},
    ],
    ids=str,
)
def test_negative_points_of_geojson(tmp_path: Path, negative: dict[str, Any]) -> None:
    data = [point(1, 2, object=7), point(3, 4, object=7, **negative)]
    found = only(read_prompts(features(tmp_path, data), ["a"]))
    assert found.positive == (True, False) and found.name == "7"
    with pytest.raises(DataError, match=r"feature 1: a box cannot be negative"):
        read_prompts(features(tmp_path, [square(1, 1, **negative)]), ["a"])


def test_planes_of_qupath(tmp_path: Path) -> None:
    there, first = point(1, 2), square(1, 2)
    there["geometry"]["plane"] = {"c": -1, "z": 5, "t": 2}
    prompts = read_prompts(features(tmp_path, [there, first]), ["a"])
    (found,) = prompts.within("a", 2, (5, 0, 0), (6, 9, 9))
    assert found.points == ((0.5, 2.0, 1.0),)
    (other,) = prompts.within("a", 0, (0, 0, 0), (9, 99, 99))
    assert other.box is not None and other.box[1][0] == 1.0, "left out means the first plane"
    prompts.check("a", (6, 99, 99), range(3))
    with pytest.raises(DataError, match="is no movie"):
        prompts.check("a", (6, 99, 99))
    with pytest.raises(DataError, match=r"frame 1 by its properties, but in 2"):
        there["properties"]["frame"] = 1
        read_prompts(features(tmp_path, [there]), ["a"])


def test_what_cellseg_writes_gives_boxes(tmp_path: Path) -> None:
    """Our own outlines and this reader agree on where pixels are."""
    import numpy as np

    from cellseg.outputs.geojson import outlines

    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 11:17] = 1
    geometry = {"type": "Polygon", "coordinates": outlines(mask)[0]}
    found = only(read_prompts(features(tmp_path, geometry), ["a"]))
    assert found.box == ((0.0, 4.0, 11.0), (1.0, 9.0, 17.0))


def test_images_are_found_by_name_or_stem(tmp_path: Path) -> None:
    names = ["t001", "B/03/0", "B/04/0", "plates/s1"]
    text = "image,y,x\nt001,1,1\nraw/t001.ome.tif,2,2\nB\\04\\0,3,3\ns1.png,4,4\n"
    prompts = read_prompts(table(tmp_path, text), names)
    assert [len(prompts.within(name, 0, *ALL)) for name in names] == [2, 0, 1, 1]
    for given, message in {
        "t0001": "no image 't0001' among those",
        "0": r"'0' could be B/03/0 or B/04/0",
        "": "line 2: does not say which of the 4 images",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            read_prompts(table(tmp_path, f"image,y,x\n{given},1,1\n"), names)
        assert error.value.hint and (given != "t0001" or "'t001'" in error.value.hint)


def test_a_folder_has_a_file_for_each_image(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    table(folder, "y,x\n1,1\n", "t001.csv")
    table(folder, "y,x\n5,5\n", "B/03/0.csv")
    features(folder, [point(2, 2)], "t001.geojson")
    table(folder, "about the prompts", "README.md")
    prompts = read_prompts(folder, ["t001", "t002", "B/03/0", "B/04/0"])
    assert prompts.count == 3
    assert len(prompts.within("t001", 0, *ALL)) == 2 and len(prompts.within("B/03/0", 0, *ALL)) == 1
    table(folder, "image,y,x\nt001,1,1\n", "t002.csv")
    with pytest.raises(DataError, match=r"is for 't001', but its file is named like t002"):
        read_prompts(folder, ["t001", "t002", "B/03/0"])
    with pytest.raises(DataError, match=r"no image 't002\.csv'"):
        read_prompts(folder, ["t001", "B/03/0"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files of prompts"):
        read_prompts(tmp_path / "empty", ["t001"])


def test_every_prompt_belongs_to_exactly_one_window(tmp_path: Path) -> None:
    rows = [f"{y},{x}" for y in (0, 31.5, 32, 63) for x in (0, 31, 31.5, 63)]
    boxes = [f"{y},{x},{y + 20},{x + 20}" for y in (0, 22, 40) for x in (21, 22, 23)]
    file = table(tmp_path, "y,x,y0,x0,y1,x1\n" + "".join(f"{r},,,,\n" for r in rows))
    file.write_text(file.read_text() + "".join(f",,{b}\n" for b in boxes))
    prompts = read_prompts(file, ["a"])
    windows = [((0, y, x), (1, y + 32, x + 32)) for y in (0, 32) for x in (0, 32)]
    found = [prompts.within("a", 0, *window) for window in windows]
    assert sum(map(len, found)) == prompts.count == 25
    for window in found:
        for one in window:
            for place in (*one.points, *(one.box or ())):
                assert all(0 <= p <= n for p, n in zip(place, (1, 32, 32), strict=True))
    assert prompts.within("a", 0, (0, 32, 0), (1, 64, 32))[0].points == ((0.5, 0.0, 0.5),)


def test_windows_clip_boxes_and_leave_out_far_points(tmp_path: Path) -> None:
    text = (
        "object,label,y,x,y0,x0,y1,x1\n"
        "o,1,10,10,5,5,50,50\no,0,20,60,,,,\no,0,12,12,,,,\n"
        "far,1,70,70,0,0,20,20\n"
    )
    prompts = read_prompts(table(tmp_path, text), ["a"])
    (found,) = prompts.within("a", 0, (0, 8, 8), (1, 40, 40))
    assert found.points == ((0.5, 2.5, 2.5), (0.5, 4.5, 4.5)) and found.positive == (True, False)
    assert found.box == ((0.0, 0.0, 0.0), (1.0, 32.0, 32.0))
    (far,) = prompts.within("a", 0, (0, 64, 64), (1, 96, 96))
    assert far.box is None and far.points == ((0.5, 6.5, 6.5),)


def test_prompts_travel_and_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = "object,y,x\n" + "".join(f"{n},{(n * 37) % 100},{(n * 11) % 100}\n" for n in range(50))
    prompts = read_prompts(table(tmp_path, text), ["a"])
    again = pickle.loads(pickle.dumps(prompts))
    assert again == prompts
    assert [one.name for one in again.within("a", 0, *ALL)] == [str(n) for n in range(50)]


def test_outside_of_the_image(tmp_path: Path) -> None:
    prompts = read_prompts(table(tmp_path, "y,x\n9,9\n9,50\n"), ["a"])
    prompts.check("a", (1, 10, 51))
    prompts.check("b", (1, 1, 1))
    with pytest.raises(DataError, match=r"prompts.csv, line 3: lies outside of a: .*x 50.5"):
        prompts.check("a", (1, 10, 50))
    with pytest.raises(DataError, match=r"a has 5 planes, but z is not given"):
        prompts.check("a", (5, 99, 99))
    with pytest.raises(DataError, match=r"a is a movie, but the frame is not given"):
        prompts.check("a", (1, 99, 99), range(3))
    beside = read_prompts(table(tmp_path, "y0,x0,y1,x1\n-30,5,8,9\n"), ["a"])
    with pytest.raises(DataError, match="lies outside of a"):
        beside.check("a", (1, 50, 50))
    over = read_prompts(table(tmp_path, "y0,x0,y1,x1\n-3,5,8,9\n"), ["a"])
    over.check("a", (1, 50, 50))
    assert only(over).box == ((0.0, 0.0, 5.5), (1.0, 8.5, 9.5))


def test_a_name_in_another_folder_is_another_image(tmp_path: Path) -> None:
    names = ["B/03/0", "C/03/0", "cell.v2"]
    text = "image,y,x\nplate.zarr/C/03/0,1,1\nraw/cell.v2.tif,2,2\n"
    prompts = read_prompts(table(tmp_path, text), names)
    assert [len(prompts.within(name, 0, *ALL)) for name in names] == [0, 1, 1]
    for given in ("D/03/0", "cell.v3", "raw/cell.v3"):
        with pytest.raises(DataError, match=f"no image '{given}'"):
            read_prompts(table(tmp_path, f"image,y,x\n{given},1,1\n"), ["B/03/0", "cell.v2"])

"""Objects linked over planes, filled and left out, from images to files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import digest, discs, plugins, read, same_objects

from cellseg.bundle import Bundle
from cellseg.errors import ConfigError, InterruptedRunError
from cellseg.events import Note
from cellseg.options import parse
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
FORMATS = ("tiff", "csv", "geojson", "ome-zarr")
SETTINGS = {"link_gap": 1, "min_area": 300, "fill_holes": 50, "format": ("tiff", "csv")}
ASKERS = ("_until_interrupted", "link_planes", "write_tiff")
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_predict_refine import SETTINGS, run
for stop in sys.argv[4:]:
    if not os.fork():
        left = iter([False] * int(stop))
        def last():
            return next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
        run(Path(sys.argv[2]), Path(sys.argv[3]) / f"stop{stop}", interrupted=last, **SETTINGS)
        os._exit(1)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def run(images, out, emit=lambda event: None, interrupted=lambda: False, options=None, **values):
    given = {"backend": "linked", "reader": "npy", "output": out, "format": FORMATS, **values}
    return predict(
        plugins(),
        images,
        parse(PredictSettings, given),
        options=options or {"levels": True},
        emit=emit,
        interrupted=interrupted,
    )


def volume():
    """Spheres, leaning cylinders, and two of other brightness that touch; each one object.

    Returns the image, ``(1, z, y, x)`` uint8, and the truth.
    """
    z, y, x = np.indices((12, 150, 170))
    image, truth = np.zeros(z.shape, np.uint8), np.zeros(z.shape, np.uint32)

    def add(mask, level):
        image[mask], truth[mask] = level, truth.max() + 1

    for cy, cx in ((30, 30), (64, 64), (128, 40), (100, 135)):  # across borders of tiles
        add(((z - 5.5) * 3) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < 18**2, 200)
    for cy, cx in ((30, 90), (128, 80)):
        add(((y - cy - z) ** 2 + (x - cx) ** 2 < 100) & (z > 1), 200)
    add((abs(y - 40) < 12) & (x >= 120) & (x < 140), 160)
    add((abs(y - 40) < 12) & (x >= 140) & (x < 160), 240)
    return image[None], truth


@pytest.fixture
def images(tmp_path):
    """That volume, one without anything, a plane of one tile, one of many, a movie of volumes."""
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "v.npy", volume()[0])
    np.save(folder / "empty.npy", np.zeros((1, 4, 90, 130), np.uint8))
    np.save(folder / "small.npy", discs((60, 70)))
    np.save(folder / "wide.npy", discs((170, 180), seed=1))
    moved = np.roll(volume()[0], 9, 3)[:, 3:9, :80, :90]
    for frame in range(2):
        np.save(folder / f"m#{frame:03d}.npy", moved[:, frame : frame + 5])
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("tile", [{}, {"tile_size": 48, "halo": 40}, {"tile_size": 1024}])
def test_a_volume_comes_out_whole_however_it_is_tiled(images, tmp_path, tile):
    summary = run(images, tmp_path / "out", **tile)
    labels, (_, truth) = read(tmp_path / "out" / "v.tif"), volume()
    assert same_objects(labels, truth)
    rows = table(tmp_path / "out" / "v.csv")
    sizes = np.bincount(labels.ravel())
    assert [int(row["area"]) for row in rows] == sizes[1:].tolist()
    for row in rows:
        where = np.argwhere(labels == int(row["id"]))
        assert [int(row[f"{axis}_min"]) for axis in "zyx"] == where.min(0).tolist()
        assert [int(row[f"{axis}_max"]) for axis in "zyx"] == (where.max(0) + 1).tolist()
        at_end = where[:, 0].min() == 0 or where[:, 0].max() == len(labels) - 1
        assert row["touches_border"] == str(at_end).lower(), "z is a border of a linked volume"
    features = json.loads((tmp_path / "out" / "v.geojson").read_text())["features"]
    shown = [(f["properties"]["name"], f["geometry"]["plane"]["z"]) for f in features]
    expected = {(str(i), z) for z in range(len(labels)) for i in np.unique(labels[z]) if i}
    assert len(shown) == len(expected) and set(shown) == expected
    for frame in range(2):
        movie = read(tmp_path / "out" / "m.tif")[frame]
        part = np.roll(truth, 9, 2)[3:9, :80, :90][frame : frame + 5]
        assert same_objects(movie, part)
    assert summary.objects == sum(len(table(path)) for path in (tmp_path / "out").glob("*.csv"))
    assert not read(tmp_path / "out" / "empty.tif").any()
    assert table(tmp_path / "out" / "empty.csv") == []


def test_without_linking_and_for_planes_nothing_changes(images, tmp_path):
    run(images, tmp_path / "linked")
    run(images, tmp_path / "not", link_slices=False)
    run(images, tmp_path / "flat", backend="flat")
    assert digest(tmp_path / "not") == digest(tmp_path / "flat")
    ours, theirs = digest(tmp_path / "linked"), digest(tmp_path / "flat")
    planes = {name for name in ours if name.startswith(("small", "wide"))}
    assert len(planes) > 12
    assert {name: ours[name] for name in planes} == {name: theirs[name] for name in planes}
    labels = read(tmp_path / "flat" / "v.tif")
    assert all(len(np.unique(labels[labels == i])) == 1 for i in range(1, 4))
    assert labels.max() > 8 * 5, "a number for each plane of each object"
    run(images, tmp_path / "asked", backend="flat", link_slices=True)
    assert digest(tmp_path / "asked") == ours


def test_processes_do_not_matter(images, tmp_path):
    settings = {"link_gap": 1, "min_area": 300, "fill_holes": 50, "keep_largest": 6}
    run(images, tmp_path / "one", **settings)
    run(images, tmp_path / "two", **settings, workers=2, batch_size=3)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_shards_do_not_matter(images, tmp_path):
    run(images, tmp_path / "one", border_margin=1)
    done = [run(images, tmp_path / "s", border_margin=1, shard=f"{k}/3") for k in (2, 3, 1)]
    assert [summary.complete for summary in done] == [False, False, True]
    assert digest(tmp_path / "one") == digest(tmp_path / "s")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_stopped_or_killed_anywhere_and_resumed(images, tmp_path, how):
    """Between tiles, between the planes that are linked, and between the blocks of an output."""
    if how == "killed" and not hasattr(os, "fork"):
        pytest.skip("needs os.fork and SIGKILL")
    images = images / "v.npy"
    asked: list[str] = []
    run(images, tmp_path / "one", interrupted=lambda: asked.append(asker()), **SETTINGS)
    expected = digest(tmp_path / "one")
    stops = [asked.index(name) + asked.count(name) // 2 for name in ASKERS]
    stops.append(asked.index("link_planes") + 1)
    outs = [tmp_path / f"stop{stop}" for stop in stops]
    if how == "killed":
        code = [sys.executable, "-c", KILLED, HERE, images, tmp_path, *map(str, stops)]
        subprocess.run(code, check=True)
    for stop, out in zip(stops, outs, strict=True):
        if how == "stopped":
            left = iter([False] * stop)
            with pytest.raises(InterruptedRunError):
                run(images, out, interrupted=lambda left=left: next(left, True), **SETTINGS)
        done = {n: d for n, d in digest(out).items() if ".part-" not in n}
        assert done.items() <= expected.items()
        assert len(done) < len(expected)
        run(images, out, resume=True, **SETTINGS)
        assert digest(out) == expected


def asker():
    """Who asks whether to stop."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_name in ASKERS:
            return frame.f_code.co_name
    return ""


def test_a_resume_must_link_the_same_way(images, tmp_path):
    left = iter([False] * 20)
    with pytest.raises(InterruptedRunError):
        run(images, tmp_path / "out", interrupted=lambda: next(left, True), link_overlap=0.3)
    for values, named in (
        ({}, "--link-overlap 0.3"),
        ({"link_overlap": 0.3, "min_area": 5}, "--min-area"),
        ({"link_overlap": 0.3, "link_slices": True}, "--link-slices"),
    ):
        with pytest.raises(ConfigError, match=named):
            run(images, tmp_path / "out", resume=True, **values)
    run(images, tmp_path / "out", resume=True, link_overlap=0.3)


def test_a_missing_plane_is_bridged_when_asked(tmp_path):
    image, truth = volume()
    image[:, 6] = 0
    np.save(tmp_path / "v.npy", image)
    whole = np.where(image[0] > 0, truth, 0)
    run(tmp_path / "v.npy", tmp_path / "not")
    assert read(tmp_path / "not" / "v.tif").max() == 2 * truth.max()
    run(tmp_path / "v.npy", tmp_path / "out", link_gap=1)
    assert same_objects(read(tmp_path / "out" / "v.tif"), whole)


def test_the_linked_are_measured_and_not_their_planes(images, tmp_path):
    """A sphere begins with a cap of few pixels."""
    run(images, tmp_path / "all")
    run(images, tmp_path / "out", min_area=1500)
    before, after = (read(tmp_path / name / "v.tif") for name in ("all", "out"))
    sizes = np.bincount(before.ravel())[1:]
    assert sizes.min() > 1500 and after.max() == len(sizes)
    caps = [np.count_nonzero(plane == i) for plane in before for i in np.unique(plane) if i]
    assert min(caps) < 700
    run(images, tmp_path / "unlinked", min_area=1500, link_slices=False)
    assert not read(tmp_path / "unlinked" / "v.tif").any()


def test_what_is_left_out_is_left_out_of_all_outputs(images, tmp_path):
    run(images, tmp_path / "all")
    summary = run(images, tmp_path / "out", border_margin=20, keep_largest=2)
    before, after = (read(tmp_path / name / "v.tif") for name in ("all", "out"))
    _, y, x = before.shape
    inside = [
        i
        for i in range(1, before.max() + 1)
        if not (
            (before[:, :20] == i).any()
            or (before[:, y - 20 :] == i).any()
            or (before[:, :, :20] == i).any()
            or (before[:, :, x - 20 :] == i).any()
        )
    ]
    sizes = np.bincount(before.ravel())
    kept = sorted(sorted(inside, key=lambda i: -sizes[i])[:2])
    assert 2 == len(kept) < len(inside) < before.max()
    expected = np.zeros_like(before)
    for new, old in enumerate(kept, 1):
        expected[before == old] = new
    np.testing.assert_array_equal(after, expected)
    assert [row["id"] for row in table(tmp_path / "out" / "v.csv")] == ["1", "2"]
    features = json.loads((tmp_path / "out" / "v.geojson").read_text())["features"]
    assert {f["properties"]["name"] for f in features} == {"1", "2"}
    assert summary.objects == sum(len(table(path)) for path in (tmp_path / "out").glob("*.csv"))


def test_a_border_is_that_of_the_image_and_not_of_a_tile(images, tmp_path):
    """Also where an image is one tile, and never goes through the work directory."""
    for name in ("small", "wide"):
        file = images / f"{name}.npy"
        image = np.load(file)
        image[0, 0, :9, 20:29] = 200
        np.save(file, image)
        run(file, tmp_path / "all" / name)
        run(file, tmp_path / "out" / name, border_margin=1)
        before, after = (read(tmp_path / way / name / f"{name}.tif") for way in ("all", "out"))
        assert not (after[0].any() or after[-1].any() or after[:, 0].any() or after[:, -1].any())
        assert after.max() == len(np.unique(after)) - 1 == before.max() - 1
        assert (after > 0).sum() == (before > 0).sum() - (before == before[0, 20]).sum()


def test_holes_are_filled_across_tiles(tmp_path):
    image = np.zeros((1, 2, 150, 150), np.uint8)
    image[:, :, 40:90, 40:90] = 200
    image[:, :, 58:70, 60:70] = 0  # where four tiles meet
    image[:, 1, 58:70, 60:64] = 200
    np.save(tmp_path / "v.npy", image)
    run(tmp_path / "v.npy", tmp_path / "out", fill_holes=119, halo=40)
    labels = read(tmp_path / "out" / "v.tif")
    assert (labels[0] > 0).sum() == 2500 - 120 and (labels[1] > 0).sum() == 2500
    run(tmp_path / "v.npy", tmp_path / "more", fill_holes=120, halo=40)
    labels = read(tmp_path / "more" / "v.tif")
    assert (labels > 0).sum() == 5000 and labels.max() == 1
    assert [row["area"] for row in table(tmp_path / "more" / "v.csv")] == ["5000"]


@pytest.mark.parametrize(
    ("tile", "filled"),
    [
        ({"tile_size": 1024}, True),
        ({"tile_size": 48, "halo": 60}, True),
        ({"tile_size": 48, "halo": 59}, False),
        ({"tile_size": 80, "halo": 24}, False),
        ({"tile_size": 64, "halo": 0}, False),
    ],
)
def test_a_hole_is_filled_whole_or_not_at_all(tmp_path, tile, filled):
    """Some of these tiles see the whole hole and others only a part of it."""
    image = np.zeros((1, 1, 300, 300), np.uint8)
    image[0, 0, 40:140, 40:140] = 200
    image[0, 0, 60:120, 60:120] = 0
    np.save(tmp_path / "a.npy", image)
    events = []
    run(tmp_path / "a.npy", tmp_path / "out", events.append, fill_holes=3700, **tile)
    hole = read(tmp_path / "out" / "a.tif")[60:120, 60:120] > 0
    assert hole.all() if filled else not hole.any()
    notes = [e.text for e in events if isinstance(e, Note) and "holes of more than" in e.text]
    seen = f"holes of more than {tile.get('halo')} x {tile.get('halo')} pixels"
    assert [seen in note for note in notes] == ([True] if tile.get("halo", 99) ** 2 < 3700 else [])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backend": "deep", "link_slices": True}, "--link-slices: the backend 'deep'"),
        ({"backend": "deep", "link_gap": 1}, "--link-gap does nothing"),
        ({"backend": "flat", "link_overlap": 0.5}, "--link-overlap does nothing"),
        ({"link_slices": False, "link_gap": 0}, "--link-gap does nothing"),
        ({"link_overlap": 0}, "--link-overlap"),
        ({"link_gap": -1}, "--link-gap"),
        ({"min_area": 0}, "--min-area"),
        ({"border_margin": 0}, "--border-margin"),
        ({"keep_largest": 0}, "--keep-largest"),
        ({"fill_holes": 0}, "--fill-holes"),
        ({"prompts": Path("p.csv")}, "--prompts: the backend 'linked'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(images, tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        run(images, tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


def test_linking_needs_a_volume_and_not_to_link_needs_none(images, tmp_path):
    run(images / "small.npy", tmp_path / "out", backend="deep", link_slices=False)
    run(images / "small.npy", tmp_path / "two")
    assert digest(tmp_path / "out") == digest(tmp_path / "two")
    for name, value in (("link_slices", True), ("link_overlap", 0.5), ("link_gap", 2)):
        said = f"--{name.replace('_', '-')} does nothing: none of the images has more than one"
        with pytest.raises(ConfigError, match=said) as error:
            run(images / "small.npy", tmp_path / "none", **{name: value})
        assert "--axes ZYX" in (error.value.hint or "")
    assert not (tmp_path / "none").exists()


def test_linking_is_said_and_planned(images, tmp_path):
    events = []
    run(images, tmp_path / "out", events.append, link_gap=2)
    said = [event.text for event in events if isinstance(event, Note)]
    assert any("3 volume(s)" in text and "0.25" in text and "2 plane(s)" in text for text in said)
    run(images, tmp_path / "not", events.clear() or events.append, link_slices=False)
    assert not any("IoU" in event.text for event in events if isinstance(event, Note))
    planned = run(images, tmp_path / "dry", dry_run=True)
    lines = "\n".join(planned.lines())
    assert "v: czyx 1 x 12 x 150 x 170 uint8" in lines and lines.count("planes linked") == 3
    linked = {image["name"]: image["linked"] for image in planned.to_dict()["planned"]}
    assert linked == {"v": True, "empty": True, "m": True, "small": False, "wide": False}
    large = run(images, tmp_path / "dry", dry_run=True, link_gap=9, fill_holes=9)
    assert large.memory > planned.memory
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(("polarity", "count"), [("dark", 1), ("bright", 0), ("as-is", 0)])
def test_polarity_of_published_weights(tmp_path, polarity, count):
    """A dark disc on a bright ground; normalised, the ground is above 0.5 unless inverted."""
    image = np.full((1, 1, 60, 60), 200, np.uint8)
    image[0, 0, 20:40, 20:40] = 10
    np.save(tmp_path / "a.npy", image)
    run(tmp_path / "a.npy", tmp_path / "out", polarity=polarity, border_margin=1)
    labels = read(tmp_path / "out" / "a.tif")
    assert labels.max() == count and labels[30, 30] == count


def test_a_model_has_its_own_polarity(images, tmp_path):
    (tmp_path / "model").mkdir()
    Bundle(backend="linked").save(tmp_path / "model")
    values = {"backend": None, "model": tmp_path / "model"}
    with pytest.raises(ConfigError, match="--polarity"):
        run(images, tmp_path / "out", polarity="dark", **values)
    assert not (tmp_path / "out").exists()
    run(images, tmp_path / "out", **values)

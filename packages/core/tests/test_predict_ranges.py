"""Only some images, planes and frames: what is left out is neither read nor segmented."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import engine_fakes
import h5py
import numpy as np
import pytest
from engine_fakes import blobs, digest, discs, read, same_objects

import cellseg as cs
from cellseg.engine.items import make_items
from cellseg.errors import ConfigError, InterruptedRunError
from cellseg.events import Note
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.specs import PredictorSpec
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_selection import selection_of
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
TILED = {"tile_size": 48, "halo": 20}


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    SEEN.clear()
    READ.clear()


SEEN: list[np.ndarray] = []
"""The images of the tiles that the predictor was given."""
READ: list[tuple[str, int]] = []
"""Images and planes that were read."""


class Watched:
    def __init__(self, sample):
        self.sample, self.shape, self.dtype = sample.name, sample.image.shape, sample.image.dtype
        self.image = sample.image

    def __getitem__(self, key):
        READ.extend((self.sample, z) for z in range(*key[1].indices(self.shape[1])))
        return self.image[key]


def open_watched(path, options, labelled):
    return [replace(s, image=Watched(s)) for s in engine_fakes.open_npy(path, options, labelled)]


def load_watched(job):
    predictor = engine_fakes.load_label(job)

    def segment(tiles):
        SEEN.extend(tile.image for tile in tiles)
        return predictor(tiles)

    return segment


@cs.hookimpl
def cellseg_datasets():
    for spec in engine_fakes.cellseg_datasets():
        yield replace(spec, name="watched", open=open_watched)


@cs.hookimpl
def cellseg_predictors():
    for spec in engine_fakes.cellseg_predictors():
        if spec.name == "flat":
            yield replace(spec, name="watching", load=load_watched)
        if spec.name == "likely":
            yield replace(spec, name="likely-planes", tasks=frozenset({"2d"}))


def plugins():
    found = Plugins(installed=())
    found.register(engine_fakes, "fakes")
    found.register(sys.modules[__name__], "watched")
    return found


def run(images, out, emit=lambda event: None, interrupted=lambda: False, **values):
    given = {"backend": "flat", "reader": "npy", "output": out, "format": ("tiff",), **values}
    settings = parse(PredictSettings, given)
    return predict(plugins(), images, settings, emit=emit, interrupted=interrupted)


def notes_of(images, out, **values):
    events = []
    run(images, out, emit=events.append, **values)
    return [event.text for event in events if isinstance(event, Note)]


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, blobs((6, 100, 110), seed=3, fill=0.2))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images and a movie of three frames: four positions."""
    path = tmp_path / "images"
    path.mkdir()
    for number, name in enumerate(("a", "b", "c")):
        np.save(path / f"{name}.npy", discs((70, 90), seed=number))
    for frame in range(3):
        np.save(path / f"m#{frame:03d}.npy", discs((100, 80), seed=5 + frame))
    return path


@pytest.mark.parametrize("tiles", [{}, TILED], ids=["whole planes", "tiles"])
def test_planes_come_out_as_in_a_run_over_all(volume, tmp_path, tiles):
    run(volume, tmp_path / "all", **tiles)
    summary = run(volume, tmp_path / "some", backend="watching", batch_z="2-3, 5", **tiles)
    whole, some = read(tmp_path / "all" / "v.tif"), read(tmp_path / "some" / "v.tif")
    assert some.shape == whole.shape
    assert not some[[0, 3, 5]].any()
    assert same_objects(some[[1, 2, 4]], whole[[1, 2, 4]])
    assert summary.objects == some.max() == len(np.unique(some)) - 1
    assert len(SEEN) == 3 * (9 if tiles else 1)


def test_all_planes_said_otherwise(volume, tmp_path):
    for name, text in (("none", None), ("all", "all"), ("each", "1-6")):
        run(volume, tmp_path / name, batch_z=text, batch_xy="1", batch_time="all")
    assert digest(tmp_path / "none") == digest(tmp_path / "all") == digest(tmp_path / "each")


def test_nothing_that_is_left_out_is_read(folder, volume, tmp_path):
    given = {"backend": "watching", "reader": "watched", **TILED}
    run(folder, tmp_path / "out", batch_xy="2, 4", batch_time="1", **given)
    assert {name for name, _ in READ} == {"b", "m#000"}
    assert digest(tmp_path / "out").keys() == {"b.tif", "m.tif"}
    movie = read(tmp_path / "out" / "m.tif")
    assert movie[0].any()
    assert not movie[1:].any()


def test_tiles_read_only_planes_that_are_asked_for(volume, tmp_path):
    """What a volume is normalised by is measured in all of it, as it is without a range."""
    given = {"backend": "watching", "reader": "watched"}
    run(volume, tmp_path / "out", batch_z="4", **given)
    assert [READ.count(("v", z)) for z in range(6)] == [1, 1, 1, 2, 1, 1]


def test_images_are_counted_in_the_order_of_the_list(folder, tmp_path):
    run(folder, tmp_path / "all")
    everything = digest(tmp_path / "all")
    for text, names in (("1", {"a.tif"}), ("2-3", {"b.tif", "c.tif"}), ("4", {"m.tif"})):
        summary = run(folder, tmp_path / text, batch_xy=text)
        assert digest(tmp_path / text) == {name: everything[name] for name in names}
        assert summary.images == len(names)


def test_frames_and_planes_of_movies_of_volumes(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for frame in range(3):
        np.save(folder / f"m#{frame:03d}.npy", blobs((3, 70, 80), seed=frame, fill=0.2))
    run(folder, tmp_path / "all", **TILED)
    run(folder, tmp_path / "some", batch_z="2", batch_time="1,3", format=("tiff", "csv"), **TILED)
    whole, some = read(tmp_path / "all" / "m.tif"), read(tmp_path / "some" / "m.tif")
    assert some.shape == (3, 3, 70, 80)
    for frame, plane in ((0, 1), (2, 1)):
        assert same_objects(some[frame, plane], whole[frame, plane])
        some[frame, plane] = 0
    assert not some.any()
    rows = (tmp_path / "some" / "m.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"0", "2"}


def test_workers_shards_and_interruptions_do_not_change_the_result(folder, tmp_path):
    given = {"batch_xy": "2-4", "batch_time": "1", **TILED}
    run(folder, tmp_path / "one", **given)
    expected = digest(tmp_path / "one")
    assert expected.keys() == {"b.tif", "c.tif", "m.tif"}
    run(folder, tmp_path / "two", workers=2, **given)
    assert digest(tmp_path / "two") == expected
    for part in (3, 1, 2):
        summary = run(folder, tmp_path / "shards", shard=f"{part}/3", **given)
        assert summary.complete == (part == 2)
    assert digest(tmp_path / "shards") == expected
    asked = []
    with pytest.raises(InterruptedRunError):
        run(
            folder, tmp_path / "cut", interrupted=lambda: asked.append(1) or len(asked) > 4, **given
        )
    assert digest(tmp_path / "cut") != expected
    for name, text in (("batch_xy", "2,4"), ("batch_xy", None), ("batch_time", None)):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {given[name]}, not"):
            run(folder, tmp_path / "cut", resume=True, **{**given, name: text})
    # The same images, written in another way.
    run(folder, tmp_path / "cut", resume=True, **{**given, "batch_xy": "4, 2, 3"})
    assert digest(tmp_path / "cut") == expected


def column(tmp_path):
    """One object through five planes."""
    image = np.zeros((1, 5, 90, 90), np.uint8)
    image[:, :, 20:80, 20:80] = 200
    np.save(tmp_path / "column.npy", image)
    return tmp_path / "column.npy"


@pytest.mark.parametrize(("gap", "objects"), [(0, 2), (1, 1)])
def test_linking_bridges_what_is_left_out_only_if_told_to(tmp_path, gap, objects):
    given = {"link_slices": True, "link_gap": gap, "batch_z": "1-2, 4-5", **TILED}
    assert run(column(tmp_path), tmp_path / "out", **given).objects == objects
    labels = read(tmp_path / "out" / "column.tif")
    assert not labels[2].any()
    assert labels[0].max() == labels[1].max() == 1
    assert labels[3].max() == labels[4].max() == objects


def test_a_single_plane_has_nothing_to_link(tmp_path):
    with pytest.raises(ConfigError, match="--link-slices does nothing: --batch-z"):
        run(column(tmp_path), tmp_path / "out", link_slices=True, batch_z="3")
    summary = run(column(tmp_path), tmp_path / "out", backend="linked", batch_z="3")
    assert summary.objects == 1


def test_other_formats_and_refinement(tmp_path):
    image = np.load(column(tmp_path))
    image[:, 1, 40:43, 40:43] = 0
    image[:, 1, 2:5, 2:5] = 200
    np.save(tmp_path / "column.npy", image)
    given = {"batch_z": "2", "fill_holes": 9, "min_area": 20, **TILED}
    formats = ("ome-zarr", "hdf5", "geojson", "tiff")
    summary = run(tmp_path / "column.npy", tmp_path / "out", format=formats, **given)
    assert summary.objects == 1
    expected = np.zeros((5, 90, 90), np.uint32)
    expected[1, 20:80, 20:80] = 1
    import zarr

    stored = zarr.open(tmp_path / "out" / "column.ome.zarr", mode="r")
    assert (np.squeeze(stored["labels/cells/0"][...]) == expected).all()
    with h5py.File(tmp_path / "out" / "column.h5") as file:
        assert (file["labels"][...] == expected).all()
    assert (read(tmp_path / "out" / "column.tif") == expected).all()
    assert (tmp_path / "out" / "column.geojson").read_text().count('"Feature"') == 1


def test_probabilities_are_zero_where_nothing_is_segmented(volume, tmp_path):
    given = {"backend": "likely-planes", "output_probs": True, **TILED}
    run(volume, tmp_path / "all", **given)
    run(volume, tmp_path / "some", batch_z="3-4", **given)
    whole, some = (
        read(tmp_path / name / "v_probabilities.tif").reshape(3, 6, 100, 110)
        if read(tmp_path / name / "v_probabilities.tif").shape[0] == 3
        else read(tmp_path / name / "v_probabilities.tif").swapaxes(0, 1)
        for name in ("all", "some")
    )
    assert (some[:, 2:4] == whole[:, 2:4]).all()
    assert some[:, 2:4].any()
    assert not some[:, [0, 1, 4, 5]].any()


def test_notes_say_what_is_left_out(folder, volume, tmp_path):
    notes = notes_of(folder, tmp_path / "out", batch_xy="1, 3-4", batch_time="1")
    assert "Images 1, 3-4 of 4 are segmented." in notes
    assert "m: frame 1 of 3 is segmented, the rest stays 0." in notes
    notes = notes_of(volume, tmp_path / "planes", batch_z="2-4")
    assert "v: planes 2-4 of 6 are segmented, the rest stays 0." in notes
    assert not any(" of 6" in note for note in notes_of(volume, tmp_path / "all", batch_z="1-6"))


def test_a_dry_run_counts_what_would_be_done(volume, folder, tmp_path):
    out = tmp_path / "out"
    everything = run(volume, out, dry_run=True, **TILED)
    some = run(volume, out, dry_run=True, batch_z="2-3", **TILED)
    assert (everything.planned[0].tiles, some.planned[0].tiles) == (54, 18)
    assert some.disk < everything.disk
    assert "planes 2-3 of 6" in some.lines()[0]
    assert some.to_dict()["planned"][0]["part"] == "planes 2-3 of 6"
    assert everything.to_dict()["planned"][0]["part"] == ""
    assert [p.name for p in run(folder, out, dry_run=True, batch_xy="2,4").planned] == ["b", "m"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_xy": "3-5"}, "--batch-xy '3-5': the input has 4 images"),
        ({"batch_z": "2"}, "--batch-z '2': a has 1 plane"),
        ({"batch_time": "2-3"}, "--batch-time '2-3': a has 1 frame"),
        ({"batch_xy": "4", "batch_time": "2-4"}, "--batch-time '2-4': m has 3 frames"),
        ({"batch_z": "2-"}, "--batch-z '2-': '2-' is no range"),
        ({"batch_xy": "current"}, "--batch-xy current: there are no examples or prompts"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(folder, tmp_path, given, said):
    with pytest.raises(ConfigError, match=said) as caught:
        run(folder, tmp_path / "out", **given)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_frames_of_the_images_that_are_asked_for(folder, tmp_path):
    run(folder, tmp_path / "out", batch_xy="4", batch_time="2-3")
    assert read(tmp_path / "out" / "m.tif").any((1, 2)).tolist() == [False, True, True]


def test_planes_of_a_model_of_volumes_cannot_be_chosen(volume, tmp_path):
    with pytest.raises(ConfigError, match=r"--batch-z.*'deep'"):
        run(volume, tmp_path / "out", backend="deep", batch_z="1-2")
    run(volume, tmp_path / "out", backend="deep", batch_z="all")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("image,frame,z,y,x\nv,,1,40,40\nv,,4,40,40\nm,1,,30,30\n")
    return path


@pytest.fixture
def shown(folder, volume):
    volume.rename(folder / "v.npy")
    return folder


def test_current_is_where_the_prompts_are(shown, prompts, tmp_path):
    given = {"backend": "prompted", "prompts": prompts}
    run(shown, tmp_path / "out", batch_xy="current", batch_time="all", **given)
    assert digest(tmp_path / "out").keys() == {"m.tif", "v.tif"}
    only = prompts.with_name("v.csv")
    only.write_text("z,y,x\n1,40,40\n4,40,40\n")
    given["prompts"] = only
    run(shown / "v.npy", tmp_path / "v", batch_z="current", **given)
    assert read(tmp_path / "v" / "v.tif").any((1, 2)).tolist() == [
        False, True, False, False, True, False
    ]  # fmt: skip
    movie = shown.parent / "movie"
    movie.mkdir()
    for frame in shown.glob("m#*"):
        frame.rename(movie / frame.name)
    only.write_text("frame,y,x\n1,30,30\n")
    run(movie, tmp_path / "m", batch_time="current", **given)
    assert read(tmp_path / "m" / "m.tif").any((1, 2)).tolist() == [False, True, False]


def test_prompts_in_what_is_left_out_are_told(shown, prompts, tmp_path):
    given = {"backend": "prompted", "prompts": prompts}
    notes = notes_of(shown, tmp_path / "out", batch_xy="4", **given)
    assert any("2 of 3 prompts do nothing" in note and "prompts.csv" in note for note in notes)
    with pytest.raises(ConfigError, match="--prompts: all of them lie in") as caught:
        run(shown, tmp_path / "none", batch_xy="1-2", **given)
    assert "current" in caught.value.hint


def test_current_counts_images_planes_and_frames_by_themselves(shown):
    for number, frame in enumerate(sorted(shown.glob("m#*"))):
        frame.rename(shown / f"m#{number + 7:03d}.npy")  # numbered from 7
    flat = plugins().get(PredictorSpec, "flat")
    items = make_items(
        engine_fakes.open_npy(shown, engine_fakes.NpyOptions(), False), flat.tiling, False
    )
    assert [item.name for item in items] == ["a", "b", "c", "m", "v"]

    def chosen(current, *names):
        settings = parse(PredictSettings, dict.fromkeys(names, "current"))
        return selection_of(settings, items, flat, False, current).identity

    here = {("m", 8, 0), ("v", 0, 4), ("another folder", 0, 1)}
    assert chosen(here, "batch_xy") == {"batch_xy": "4-5", "batch_z": None, "batch_time": None}
    assert chosen(here, "batch_z")["batch_z"] == "1-2, 5"
    assert chosen(here, "batch_time")["batch_time"] == "1-2"
    with pytest.raises(ConfigError, match="--batch-xy current: none of the images holds"):
        chosen({("another folder", 0, 1)}, "batch_xy")
    with pytest.raises(ConfigError, match="--batch-z current: there are no examples or prompts"):
        chosen(set(), "batch_z")


def test_numbers_in_a_config_file_are_ranges_too():
    assert parse(PredictSettings, {"batch_z": 3}).batch_z == "3"

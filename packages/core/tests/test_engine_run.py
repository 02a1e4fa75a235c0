"""Predictions end to end: any shape, resumed, sharded, spread over processes, or failing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import digest, read, same_objects, whole

import cellseg as cs
from cellseg.data import Tiling
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    PartialError,
    PluginError,
    StorageError,
    UsageError,
)
from cellseg.events import Failed, Note, Progress
from cellseg.options import parse
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import engine_fakes

    return engine_fakes


@pytest.fixture
def images(tmp_path, fakes):
    """Three images: one of one tile, one of many, and a movie of two frames."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    np.save(folder / "a.npy", fakes.discs((100, 90)))
    np.save(folder / "sub" / "b.npy", fakes.discs((300, 260), seed=1))
    for frame in range(2):
        np.save(folder / f"m#{frame:03d}.npy", fakes.discs((170, 180), seed=2 + frame))
    return folder


def run(images, out, emit=None, interrupted=lambda: False, options=None, **values):
    import engine_fakes

    given = {"backend": "flat", "reader": "npy", "output": out, **values}
    settings = parse(PredictSettings, given)
    events = []
    return (
        predict(
            engine_fakes.plugins(),
            images,
            settings,
            options=options or {},
            reader_options={},
            emit=emit or events.append,
            interrupted=interrupted,
        ),
        events,
    )


def steps(events):
    return [event.step for event in events if isinstance(event, Progress)]


def test_folder_of_images(images, tmp_path):
    out = tmp_path / "out"
    summary, events = run(images, out)
    files = ["a.csv", "a.tif", "m.csv", "m.tif", "sub/b.csv", "sub/b.tif"]
    assert sorted(digest(out)) == files
    assert summary.images == 3
    assert summary.complete
    assert len(summary.outputs) == 6
    assert sorted(p.name for p in (out / ".cellseg").iterdir() if p.suffix == ".json") == [
        "images.json",
        "request.json",
        "summary.json",
    ]
    assert not (out / ".cellseg" / "items").exists()
    b = np.load(images / "sub" / "b.npy")
    assert same_objects(read(out / "sub" / "b.tif"), whole(b)[0])
    movie = read(out / "m.tif")
    assert movie.shape == (2, 170, 180)
    assert movie.dtype == np.uint32
    for frame in range(2):
        expected = whole(np.load(images / f"m#{frame:03d}.npy"))[0]
        assert same_objects(movie[frame], expected)
        assert movie[frame].max() == expected.max()  # every frame is numbered by itself
    assert steps(events) == list(range(1, steps(events)[-1] + 1))
    assert {e.total for e in events if isinstance(e, Progress)} == {steps(events)[-1]}
    assert steps(events)[-1] > 20


def test_volume_in_3d_and_plane_by_plane(tmp_path, fakes):
    (tmp_path / "in").mkdir()
    image = fakes.blobs((30, 150, 170), seed=3, fill=0.2)
    np.save(tmp_path / "in" / "v.npy", image)
    run(tmp_path / "in", tmp_path / "deep", backend="deep", halo=32, halo_depth=14)
    deep = read(tmp_path / "deep" / "v.tif")
    assert deep.shape == (30, 150, 170)
    assert same_objects(deep, whole(image))
    run(tmp_path / "in", tmp_path / "flat", halo=32)
    flat = read(tmp_path / "flat" / "v.tif")
    total = 0
    for z in range(30):
        expected = whole(image[:, z : z + 1])[0]
        assert same_objects(flat[z], expected)
        total += int(expected.max())
    assert flat.max() == len(np.unique(flat)) - 1 == total


def test_nothing_found_is_all_zero(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "small.npy", np.zeros((1, 1, 50, 60), np.uint16))
    np.save(tmp_path / "in" / "large.npy", np.zeros((1, 1, 250, 260), np.uint16))
    formats = ("tiff", "hdf5", "geojson", "csv", "parquet", "ome-zarr")
    summary, _ = run(tmp_path / "in", tmp_path / "out", format=formats)
    assert summary.objects == 0
    for name, shape in (("small", (50, 60)), ("large", (250, 260))):
        labels = read(tmp_path / "out" / f"{name}.tif")
        assert labels.shape == shape
        assert labels.dtype == np.uint32
        assert not labels.any()
        assert (tmp_path / "out" / f"{name}.csv").read_text().count("\n") == 1
        assert json.loads((tmp_path / "out" / f"{name}.geojson").read_text())["features"] == []


@pytest.mark.parametrize(
    "values", [{"workers": 2}, {"batch_size": 3}, {"workers": 2, "batch_size": 2}]
)
def test_spread_out_gives_the_same_files(images, tmp_path, values):
    formats = ("tiff", "csv", "ome-zarr")
    run(images, tmp_path / "one", format=formats)
    summary, events = run(images, tmp_path / "two", format=formats, **values)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert summary.complete
    assert [e.step for e in events if isinstance(e, Progress)][-1] > 20


SHARD = """
import sys
sys.path.insert(0, sys.argv[1])
import engine_fakes
from pathlib import Path
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
settings = PredictSettings(
    backend="flat", reader="npy", output=Path(sys.argv[3]), shard=sys.argv[4],
    format=("tiff", "csv"),
)
summary = predict(
    engine_fakes.plugins(), Path(sys.argv[2]), settings,
    options={"sleep": 0.02}, reader_options={}, emit=lambda event: None,
)
print(summary.complete)
"""


def test_three_shards_as_processes(images, tmp_path):
    run(images, tmp_path / "one", options={"sleep": 0.02})
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARD, HERE, images, tmp_path / "three", f"{k}/3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in (1, 2, 3)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [p.returncode for p in started] == [0, 0, 0], said
    assert any("True" in text for text, _ in said)
    assert digest(tmp_path / "one") == digest(tmp_path / "three")
    summary, events = run(images, tmp_path / "three", options={"sleep": 0.02}, shard="2/3")
    assert summary.complete
    assert any(isinstance(e, Note) for e in events)


def test_shards_one_after_the_other(images, tmp_path):
    run(images, tmp_path / "one")
    done = [run(images, tmp_path / "s", shard=f"{k}/3")[0].complete for k in (2, 3, 1)]
    assert done == [False, False, True]
    assert digest(tmp_path / "one") == digest(tmp_path / "s")


def test_interrupted_and_resumed(images, tmp_path):
    run(images, tmp_path / "one")
    for stop in (4, 10, 23):  # the first three events describe the images
        out = tmp_path / f"stop{stop}"
        events = []
        with pytest.raises(InterruptedRunError) as caught:
            run(images, out, events.append, lambda at=stop, seen=events: len(seen) >= at)
        assert "--resume" in caught.value.hint
        assert not (out / ".cellseg" / "summary.json").exists()
        with pytest.raises(UsageError, match="unfinished"):
            run(images, out)
        again = []
        run(images, out, again.append, resume=True)
        assert steps(again)[0] == stop - 2
        assert digest(out) == digest(tmp_path / "one")


def test_keyboard_interrupt_keeps_the_tiles(images, tmp_path):
    def emit(event):
        if isinstance(event, Progress) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        run(images, tmp_path / "out", emit)
    _, events = run(images, tmp_path / "out", resume=True)
    assert steps(events)[0] == 6


def test_resume_with_other_settings_names_the_difference(images, tmp_path):
    seen = []
    with pytest.raises(InterruptedRunError):
        run(images, tmp_path / "out", seen.append, lambda: len(seen) > 3)
    with pytest.raises(ConfigError, match="--halo"):
        run(images, tmp_path / "out", resume=True, halo=10)
    with pytest.raises(ConfigError, match="sleep"):
        run(images, tmp_path / "out", resume=True, options={"sleep": 0.001})
    np.save(images / "z.npy", np.zeros((1, 1, 9, 9)))
    with pytest.raises(ConfigError, match="image"):
        run(images, tmp_path / "out", resume=True)
    (images / "z.npy").unlink()
    run(images, tmp_path / "out", resume=True, batch_size=2, retries=0)
    with pytest.raises(UsageError, match="no prediction to resume"):
        run(images, tmp_path / "fresh", resume=True)


def test_finished_and_resumed_does_nothing(images, tmp_path):
    first, _ = run(images, tmp_path / "out")
    before = digest(tmp_path / "out")
    again, events = run(images, tmp_path / "out", resume=True)
    assert (again.images, again.objects) == (first.images, first.objects)
    assert [e.text for e in events] == ["All of it is done already."]
    assert digest(tmp_path / "out") == before


def test_never_overwrites_unasked(images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.tif").write_text("mine")
    with pytest.raises(UsageError, match=r"a\.tif exists"):
        run(images, out)
    assert (out / "a.tif").read_text() == "mine"
    assert [p.name for p in out.iterdir()] == ["a.tif"]
    run(images, out, overwrite=True)
    assert read(out / "a.tif").shape == (100, 90)


def test_a_failed_tile_is_never_zeros(images, tmp_path):
    run(images, tmp_path / "one", options={"bad": ""})
    b = np.load(images / "sub" / "b.npy")
    bad = tmp_path / "bad.txt"
    # The first tile of b, as the predictor sees it.
    from cellseg.engine.plan import Plan

    plan = Plan.cut((1, 300, 260), Tiling((8, 64, 64), (8, 24, 24)), False)
    bad.write_text(str(int((b[0][plan.read_box(0).slices] > 0).sum())))
    out = tmp_path / "out"
    with pytest.raises(PartialError, match=r"sub/b\[z 0:1, y 0:64") as caught:
        events = []
        run(images, out, events.append, options={"bad": str(bad)}, batch_size=2)
    assert "exploded" in str(caught.value)
    assert "--resume" in caught.value.hint
    failed = [e for e in events if isinstance(e, Failed)]
    assert len(failed) == 1
    assert sorted(digest(out)) == ["a.csv", "a.tif", "m.csv", "m.tif"]
    bad.write_text("")
    again = []
    run(images, out, again.append, options={"bad": str(bad)}, resume=True)
    assert len([e for e in again if isinstance(e, Progress)]) == 1
    assert digest(out) == digest(tmp_path / "one")


def test_a_damaged_image_does_not_stop_the_others(images, tmp_path):
    (images / "bad.npy").touch()
    with pytest.raises(PartialError, match=r"bad\.npy"):
        run(images, tmp_path / "out")
    assert len(digest(tmp_path / "out")) == 6
    with pytest.raises(DataError, match=r"bad\.npy"):
        run(images / "bad.npy", tmp_path / "alone")


@pytest.mark.parametrize("fault", ["shape", "float", "negative", "count", "type"])
def test_a_predictor_that_breaks_its_contract(images, tmp_path, fault):
    with pytest.raises(PluginError, match="'flat'"):
        run(images, tmp_path / "out", options={"fault": fault})
    assert digest(tmp_path / "out") == {}


def test_what_goes_wrong_in_a_worker(images, tmp_path, fakes):
    with pytest.raises(PluginError, match="shape"):
        run(images, tmp_path / "out", options={"fault": "shape"}, workers=2)
    with pytest.raises(DeviceError, match=r"\d worker processes died"):
        run(images, tmp_path / "out2", options={"fault": "die"}, workers=2)

    class Local:
        @cs.hookimpl
        def cellseg_predictors(self):
            yield cs.PredictorSpec(name="local", summary="x", load=lambda job: job)

    plugins = fakes.plugins()
    plugins.register(Local(), "local")
    settings = PredictSettings(backend="local", reader="npy", output=tmp_path / "out3", workers=2)
    with pytest.raises(PluginError, match=r"'local'.*cannot be sent"):
        predict(plugins, images, settings, emit=lambda event: None)


def test_results_that_are_gone_are_not_called_done(images, tmp_path):
    run(images, tmp_path / "out")
    (tmp_path / "out" / "a.tif").unlink()
    with pytest.raises(UsageError, match=r"a\.tif was written"):
        run(images, tmp_path / "out", resume=True)


def test_out_of_memory_halves_the_tile_aloud(images, tmp_path):
    run(images, tmp_path / "one")
    _, events = run(images, tmp_path / "halved", options={"fits": 5000}, batch_size=3)
    assert any(isinstance(e, Note) and "halving" in e.text for e in events)
    for name in ("a.tif", "sub/b.tif", "m.tif"):
        a, b = read(tmp_path / "one" / name), read(tmp_path / "halved" / name)
        for one, two in zip(np.atleast_3d(a.T).T, np.atleast_3d(b.T).T, strict=True):
            assert same_objects(one, two)
    with pytest.raises(DeviceError, match="even with a tile"):
        run(images, tmp_path / "hopeless", options={"fits": 100})


def test_ids_of_any_size_and_scores(images, tmp_path):
    run(images, tmp_path / "dense", options={"scored": True})
    run(images, tmp_path / "sparse", options={"scored": True, "ids": "sparse"})
    run(images, tmp_path / "huge", options={"scored": True, "ids": "huge"})
    assert digest(tmp_path / "dense") == digest(tmp_path / "sparse") == digest(tmp_path / "huge")
    rows = (tmp_path / "dense" / "sub" / "b.csv").read_text().splitlines()
    assert rows[1].split(",")[-3:-1] == ["0.75", "1"]


def test_dry_run_writes_nothing(images, tmp_path):
    summary, events = run(images, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert events == []
    text = "\n".join(summary.lines())
    assert "sub/b: czyx 1 x 1 x 300 x 260 uint8, 25 tile(s) of up to 1 x 112 x 112" in text
    assert "m: tczyx 2 x 1 x 1 x 170 x 180" in text
    assert "b.tif" in text
    assert "MiB" in text
    assert summary.to_dict()["memory_bytes"] > 0


def test_invalid_requests_leave_nothing(images, tmp_path):
    out = tmp_path / "out"
    for values, error in (
        ({"backend": None}, UsageError),
        ({"shard": "4/3"}, UsageError),
        ({"output": tmp_path / "x.tif"}, UsageError),
        ({"output": None}, UsageError),
        ({"tile_depth": 4}, UsageError),
        ({"options": {"slep": 1}}, ConfigError),
        ({"model": tmp_path / "nowhere"}, DataError),
    ):
        with pytest.raises(error):
            run(images, values.pop("output", out), **values)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]


def test_a_folder_without_permission(images, tmp_path):
    out = tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(StorageError, match="out"):
        run(images, out)

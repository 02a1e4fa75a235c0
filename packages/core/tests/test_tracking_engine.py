"""Movies whose objects are followed: over tiles, planes, processes, kills and failures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import digest, read

from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    PartialError,
    PluginError,
    UsageError,
)
from cellseg.events import Failed, Note, Progress
from cellseg.options import parse
from cellseg.tracks import Lineage, Track
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
FRAMES = 24
PLACES = 4
"""Tiles of a frame."""


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    # Their own tests look at them; drawing one takes longer than all of a prediction.
    monkeypatch.setattr("cellseg.report.tracks.write_tracks_page", _page)
    import tracking_fakes

    return tracking_fakes


def _page(path, name, images, labels, lineage, spacing, minutes_per_frame=None):
    shown = [int(frame[:, :, :].max()) for frame in labels]
    assert len(images) == len(shown)
    path.write_text(json.dumps([name, shown, len(lineage.tracks)]))


@pytest.fixture
def movie(tmp_path, fakes):
    return fakes.write_movie(tmp_path / "movie", range(FRAMES))


def run(images, out, interrupted=lambda: False, options=None, **values):
    import tracking_fakes

    given = {"backend": "follow", "reader": "npy", "output": out, **values}
    events = []
    summary = predict(
        tracking_fakes.plugins(),
        images,
        parse(PredictSettings, given),
        options=options or {},
        reader_options={},
        emit=events.append,
        interrupted=interrupted,
    )
    return summary, events


def after(times):
    """What tells a prediction to stop after it was asked as often as this."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= times


def lineage_of(table: Path) -> Lineage:
    with table.open() as file:
        return Lineage.of(
            Track(*(int(row[name]) for name in ("id", "begin", "end", "parent")))
            for row in csv.DictReader(file)
        )


def truth(frames=range(FRAMES)):
    import tracking_fakes

    return np.stack([tracking_fakes.frame_of(frame) for frame in frames])


def true_tracks(names=None):
    import tracking_fakes

    return {
        (names or {}).get(c[0], c[0]): (c[1], c[2], (names or {}).get(c[3], c[3]))
        for c in tracking_fakes.CELLS
    }


def as_true(labels, lineage, true):
    """Check that ids and tracks are the true ones but for their names."""
    assert ((labels > 0) == (true > 0)).all()
    pairs = np.unique(np.stack([true[true > 0], labels[true > 0]]), axis=1)
    names = dict(pairs.T.tolist())
    assert len(names) == pairs.shape[1] == len(set(names.values())), pairs
    found = {t.id: (t.begin, t.end, t.parent) for t in lineage.tracks}
    assert found == true_tracks(names)


@pytest.mark.parametrize("tiling", [{}, {"tile_size": 4096}, {"tile_size": 48, "halo": 30}])
def test_objects_keep_their_ids_over_tiles_and_frames(movie, tmp_path, tiling):
    summary, events = run(movie, tmp_path / "out", **tiling)
    out = tmp_path / "out"
    as_true(read(out / "m.tif"), lineage_of(out / "m_tracks.csv"), truth())
    assert (summary.tracks, summary.divisions) == (6, 1)
    assert "6 tracks with 1 division(s)" in summary.lines()[0]
    names = {"m.tif", "m.csv", "m_tracks.csv", "m_tracks.html"}
    assert set(digest(out)) == names == {path.name for path in summary.outputs}
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == list(range(1, steps[-1] + 1))
    assert json.loads((out / "m_tracks.html").read_text())[2] == 6


def test_every_format_holds_the_ids_of_tracks(movie, tmp_path):
    import h5py
    import pyarrow.parquet
    import zarr

    formats = ("tiff", "hdf5", "ome-zarr", "geojson", "csv", "parquet", "ctc", "geff")
    out = tmp_path / "out"
    run(movie, out, format=formats, options={"scored": True})
    labels = read(out / "m.tif")
    with h5py.File(out / "m.h5") as file:
        np.testing.assert_array_equal(file["labels"][:], labels)
    stored = zarr.open_array(str(out / "m.ome.zarr" / "labels" / "cells" / "0"), mode="r")
    np.testing.assert_array_equal(stored[:], labels)
    rows = list(csv.DictReader((out / "m.csv").open()))
    table = pyarrow.parquet.read_table(out / "m.parquet").to_pydict()
    shown = [(frame, int(i)) for frame in range(FRAMES) for i in np.unique(labels[frame]) if i]
    assert [(int(row["frame"]), int(row["track"])) for row in rows] == shown
    assert list(zip(table["frame"], table["id"], strict=True)) == shown
    assert table["track"] == table["id"]
    for row, (frame, name) in zip(rows, shown, strict=True):
        y, x = np.nonzero(labels[frame] == name)
        assert int(row["area"]) == len(y)
        assert float(row["centroid_y"]) == pytest.approx(y.mean(), abs=1e-3)
        assert float(row["centroid_x"]) == pytest.approx(x.mean(), abs=1e-3)
        assert float(row["score"]) == 0.75
    features = json.loads((out / "m.geojson").read_text())["features"]
    named = {(f["geometry"]["plane"]["t"], int(f["properties"]["name"])) for f in features}
    assert named == set(shown)
    masks = np.stack([read(out / "m_RES" / f"mask{frame:03d}.tif") for frame in range(FRAMES)])
    as_true(masks, lineage_of(out / "m_tracks.csv"), truth())
    assert (out / "m.geff").is_dir()


def test_processes_give_the_same_files(movie, tmp_path):
    run(movie, tmp_path / "one")
    summary, events = run(movie, tmp_path / "two", workers=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert summary.complete
    assert [e.step for e in events if isinstance(e, Progress)][-1] == FRAMES * PLACES


def test_shards_are_of_places_and_give_the_same_files(movie, tmp_path):
    run(movie, tmp_path / "one")
    done, steps = [], []
    for part in (2, 1, 3):
        summary, events = run(movie, tmp_path / "three", shard=f"{part}/3")
        done.append(summary.complete)
        steps.append(sum(isinstance(e, Progress) for e in events))
    assert done == [False, False, True]
    assert steps == [FRAMES, 2 * FRAMES, FRAMES]
    assert digest(tmp_path / "one") == digest(tmp_path / "three")


@pytest.mark.parametrize("stop", [3, 15, 90])
def test_interrupted_in_mid_sequence_and_resumed(movie, tmp_path, stop):
    run(movie, tmp_path / "one")
    out, log = tmp_path / "out", tmp_path / "log"
    with pytest.raises(InterruptedRunError, match="Stopped"):
        run(movie, out, after(stop), options={"log": str(log)})
    folder = out / ".cellseg" / "items" / "000000"
    done = len(list(folder.glob("*.tile")))
    assert len(list(folder.glob("*.state"))) <= 1, "a lane that is done needs no state"
    before = len(log.read_text().split())
    assert before == done
    _, events = run(movie, out, resume=True, options={"log": str(log)})
    again = len(log.read_text().split()) - (PLACES * FRAMES - done) - before
    assert 0 <= again < 10, "it goes on from the latest state"
    assert digest(tmp_path / "one") == digest(out)
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == list(range(done + 1, PLACES * FRAMES + 1))


def test_a_damaged_state_or_record_is_made_again(movie, tmp_path):
    run(movie, tmp_path / "one")
    for kind in ("state", "tile"):
        out = tmp_path / kind
        with pytest.raises(InterruptedRunError):
            run(movie, out, after(20))
        folder = out / ".cellseg" / "items" / "000000"
        victim = sorted(folder.glob(f"*.{kind}"))[0]
        victim.write_bytes(victim.read_bytes()[:-40])
        run(movie, out, resume=True)
        assert digest(tmp_path / "one") == digest(out)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import tracking_fakes, cellseg.report.tracks
from pathlib import Path
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
cellseg.report.tracks.write_tracks_page = lambda path, *args, **named: path.write_text("page")
settings = PredictSettings(backend="follow", reader="npy", output=Path(sys.argv[3]), workers=2)
print("began", flush=True)
predict(
    tracking_fakes.plugins(), Path(sys.argv[2]), settings, options={"sleep": 0.02},
    reader_options={}, emit=lambda event: None,
)
"""


@pytest.mark.slow
def test_killed_and_resumed(movie, tmp_path):
    run(movie, tmp_path / "one", options={"sleep": 0.02})
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, HERE, movie, out])
    folder = out / ".cellseg" / "items" / "000000"
    while len(list(folder.glob("*.tile")) if folder.exists() else []) < 35:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (out / "m.tif").exists()
    time.sleep(0.2)  # its workers end with it
    run(movie, out, resume=True, options={"sleep": 0.02})
    assert digest(tmp_path / "one") == digest(out)


def test_a_frame_that_cannot_be_read_stops_its_places_alone(movie, tmp_path, fakes):
    fakes.write_movie(movie, range(5), name="other")
    (movie / "m#012.npy").write_bytes(b"")  # the fake reader knows no more of its shape
    image = np.zeros((1, 1, 40, 40), np.uint8)
    for file in movie.glob("m#*.npy"):
        if file.stat().st_size:
            np.save(file, image)
    with pytest.raises(PartialError, match=r"m#012.*is damaged") as caught:
        run(movie, tmp_path / "out")
    assert "1 tile(s) of 1 image(s) failed" in str(caught.value)
    assert (tmp_path / "out" / "other.tif").exists()
    assert not (tmp_path / "out" / "m.tif").exists()


def test_a_tracker_that_fails_is_tried_again_from_its_latest_state(movie, tmp_path):
    run(movie, tmp_path / "one", tile_size=4096, options={"bad": _bad(tmp_path, "")})
    mask = truth([17])[0] > 0
    bad = _bad(tmp_path, str(mask.sum()))
    log = tmp_path / "log"
    with pytest.raises(PartialError, match="the network exploded") as caught:
        run(movie, tmp_path / "out", tile_size=4096, options={"bad": bad, "log": str(log)})
    assert "m#017" in str(caught.value)
    steps = [int(n) for n in log.read_text().split()]
    assert steps == [*range(18), *range(10, 18)]
    _bad(tmp_path, "")
    _, events = run(
        movie, tmp_path / "out", tile_size=4096, resume=True,
        options={"bad": bad, "log": str(log)},
    )  # fmt: skip
    assert not any(isinstance(event, Failed) for event in events)
    assert digest(tmp_path / "one") == digest(tmp_path / "out")


def _bad(folder, text):
    (folder / "bad.txt").write_text(text)
    return str(folder / "bad.txt")


def test_nothing_readable_is_an_error_of_the_data(tmp_path):
    (tmp_path / "in").mkdir()
    for frame in range(3):
        (tmp_path / "in" / f"m#{frame}.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"bad.npy: is damaged"):
        run(tmp_path / "in", tmp_path / "out")


def test_planes_of_volumes_are_tracked_and_linked(tmp_path, fakes):
    folder = fakes.write_movie(tmp_path / "in", range(FRAMES), planes=2)
    out = tmp_path / "out"
    run(folder, out, link_slices=True)
    labels = read(out / "m.tif")
    assert labels.shape == (FRAMES, 2, fakes.HEIGHT, fakes.WIDTH)
    as_true(labels, lineage_of(out / "m_tracks.csv"), np.stack([truth()] * 2, axis=1))
    run(folder, tmp_path / "apart", tile_size=4096)
    apart = read(tmp_path / "apart" / "m.tif")
    assert len(set(np.unique(apart[:, 0])) & set(np.unique(apart[:, 1]))) == 1, "only background"
    assert len(lineage_of(tmp_path / "apart" / "m_tracks.csv").tracks) == 12
    run(folder, tmp_path / "one", tile_size=4096, batch_z="2")
    one = read(tmp_path / "one" / "m.tif")
    assert not one[:, 0].any()
    as_true(one[:, 1], lineage_of(tmp_path / "one" / "m_tracks.csv"), truth())


def test_some_frames(movie, tmp_path):
    out = tmp_path / "out"
    run(movie, out, batch_time="6-16")
    labels = read(out / "m.tif")
    assert not labels[:5].any()
    assert not labels[16:].any()
    tracks = lineage_of(out / "m_tracks.csv").tracks
    assert {(t.begin, t.end, bool(t.parent)) for t in tracks} == {
        (5, 15, False), (5, 9, False), (10, 15, True)
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no gaps between the frames"):
        run(movie, tmp_path / "gaps", batch_time="1-3, 5-7")


def test_objects_that_are_left_out_leave_their_tracks(movie, tmp_path):
    run(movie, tmp_path / "out", min_area=100)
    tracks = lineage_of(tmp_path / "out" / "m_tracks.csv").tracks
    assert not any(t.parent for t in tracks), "the daughters are too small"
    assert len(tracks) == 4


def test_lost_and_found(tmp_path, fakes):
    """An object that a frame does not show has its id again after it."""
    folder = fakes.write_movie(tmp_path / "in", range(12))
    empty = np.zeros_like(np.load(folder / "m#005.npy"))
    np.save(folder / "m#005.npy", empty)
    np.save(folder / "m#000.npy", empty)
    out = tmp_path / "out"
    run(folder, out)
    labels = read(out / "m.tif")
    assert not labels[[0, 5]].any()
    true = truth(range(12))
    for frame in (4, 6):
        pairs = np.stack([true[frame][true[frame] > 0], labels[frame][true[frame] > 0]])
        names = dict(np.unique(pairs, axis=1).T.tolist())
        if frame == 4:
            before = names
        else:
            assert {name: names[name] for name in before} == before


def test_an_empty_movie(tmp_path):
    (tmp_path / "in").mkdir()
    for frame in range(13):
        np.save(tmp_path / "in" / f"m#{frame:02d}.npy", np.zeros((1, 1, 100, 200), np.uint8))
    formats = ("tiff", "csv", "parquet", "geojson", "hdf5", "ome-zarr", "ctc", "geff")
    summary, _ = run(tmp_path / "in", tmp_path / "out", format=formats)
    assert (summary.objects, summary.tracks) == (0, 0)
    assert not read(tmp_path / "out" / "m.tif").any()
    assert (tmp_path / "out" / "m_tracks.csv").read_text() == "id,begin,end,parent\n"


def test_stills_beside_movies_are_segmented(movie, tmp_path, fakes):
    np.save(movie / "still.npy", np.load(movie / "m#003.npy"))
    summary, events = run(movie, tmp_path / "out", batch_size=2)
    assert summary.images == 2
    names = set(digest(tmp_path / "out"))
    assert names == {"m.tif", "m.csv", "m_tracks.csv", "m_tracks.html", "still.tif", "still.csv"}
    assert read(tmp_path / "out" / "still.tif").max() == 3
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("over the frames of 1 movie(s)" in note for note in notes)


def test_without_tracking_each_frame_is_numbered_by_itself(movie, tmp_path):
    summary, _ = run(movie, tmp_path / "out", track=False)
    assert summary.tracks is None
    assert set(digest(tmp_path / "out")) == {"m.tif", "m.csv"}
    labels = read(tmp_path / "out" / "m.tif")
    assert [frame.max() for frame in labels] == [len(np.unique(f)) - 1 for f in truth()]
    assert "track" not in (tmp_path / "out" / "m.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("values", "match", "hint"),
    [
        ({"backend": "still", "track": True}, "segments each frame by itself", "cellseg track"),
        ({"output_probs": True}, "gives no probabilities", "--no-track"),
        ({"batch_size": 2}, "followed one by one", "--no-track"),
        ({"prompts": "PROMPTS"}, "found and followed", "--no-track"),
        ({"track": False, "format": ("ctc",)}, "segmented frame by frame", "cellseg track"),
    ],
)
def test_settings_that_do_not_go_together(movie, tmp_path, values, match, hint):
    if "prompts" in values:
        values = {"prompts": tmp_path / "p.csv"}
        values["prompts"].write_text("image,frame,object,y,x\nm,0,1,10,10\n")
    with pytest.raises(ConfigError, match=match) as caught:
        run(movie, tmp_path / "out", **values)
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_tracking_stills_is_an_error(tmp_path, movie):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.load(movie / "m#000.npy"))
    with pytest.raises(ConfigError, match="none of the images is a movie"):
        run(tmp_path / "in", tmp_path / "out", track=True)
    with pytest.raises(ConfigError, match="a is no movie"):
        run(tmp_path / "in", tmp_path / "out", format=("tiff", "geff"))


def test_what_is_there_is_not_overwritten(movie, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m_tracks.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"m_tracks.csv exists already"):
        run(movie, tmp_path / "out")
    run(movie, tmp_path / "out", overwrite=True)
    summary, _ = run(movie, tmp_path / "out", resume=True)
    assert (summary.tracks, summary.divisions) == (6, 1)
    (tmp_path / "out" / "m_tracks.html").unlink()
    with pytest.raises(UsageError, match=r"m_tracks.html was written, but is gone"):
        run(movie, tmp_path / "out", resume=True)


def test_a_dry_run_says_that_it_tracks(movie, tmp_path):
    summary, _ = run(movie, tmp_path / "out", dry_run=True)
    assert "tracked" in summary.lines()[0]
    assert summary.to_dict()["planned"][0]["tracked"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("shape", "labels of shape"),
        ("negative", "labels that are negative"),
        ("float", "labels of type float64, not integers"),
        ("type", "a ndarray, not a Tracked"),
        ("parent", "the mother of"),
        ("stranger", "does not show it"),
        ("state", "a state whose 'known' is list, no array"),
    ],
)
def test_broken_trackers_are_named(movie, tmp_path, fault, match):
    with pytest.raises(PluginError, match=f"tracker of the backend 'follow'.*{match}"):
        run(movie, tmp_path / "out", tile_size=4096, options={"fault": fault})


def test_out_of_memory_is_no_failed_tile(movie, tmp_path):
    with pytest.raises(DeviceError, match="tracking a tile of 1 x 130 x 150") as caught:
        run(movie, tmp_path / "out", tile_size=4096, options={"fits": 1000})
    assert "--tile-size" in caught.value.hint

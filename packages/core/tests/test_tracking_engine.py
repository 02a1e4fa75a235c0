"""Movies whose objects are followed: over tiles, planes, processes, kills and failures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import digest, read
from tracking_fakes import FRAMES, PLACES, after, as_true, lineage_of, run, truth

from cellseg.data import Tiling
from cellseg.engine.plan import Plan
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    PartialError,
    PluginError,
)
from cellseg.events import Failed, Progress

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import tracking_fakes

    # Their own tests look at them; drawing one takes longer than all of a prediction.
    monkeypatch.setattr("cellseg.report.tracks.write_tracks_page", tracking_fakes.drawn)

    return tracking_fakes


@pytest.fixture
def movie(tmp_path, fakes):
    return fakes.write_movie(tmp_path / "movie", range(FRAMES))


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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_record_damaged_in_mid_sequence_when_all_are_there(movie, tmp_path, workers):
    run(movie, tmp_path / "one")
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        run(movie, out, after(PLACES * FRAMES + 9))
    records = sorted((out / ".cellseg" / "items" / "000000").glob("*.tile"))
    assert len(records) == PLACES * FRAMES
    victim = records[5 * PLACES + 1]
    victim.write_bytes(victim.read_bytes()[:-40])
    _, events = run(movie, out, resume=True, workers=workers)
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == list(range(PLACES * FRAMES - 18, PLACES * FRAMES + 1)), "all that follow it"
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
    assert "1 image(s) failed and are not written, 1 are" in str(caught.value)
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


def test_a_tracker_that_fails_in_another_process(movie, tmp_path, fakes):
    """Only its place is left to do, and goes on from the state that some process has kept."""
    bad = _bad(tmp_path, "")
    run(movie, tmp_path / "one", options={"bad": bad})
    plan = Plan.cut((1, fakes.HEIGHT, fakes.WIDTH), Tiling((1, 80, 80), (0, 24, 24)), False)
    seen = [truth([17])[:, *plan.read_box(i).slices[1:]] for i in range(PLACES)]
    counts = [int((one > 0).sum()) for one in seen]
    _bad(tmp_path, str(next(n for n in counts if counts.count(n) == 1)))
    with pytest.raises(PartialError, match=r"1 image\(s\) failed.*exploded"):
        run(movie, tmp_path / "out", workers=2, options={"bad": bad})
    records = tmp_path / "out" / ".cellseg" / "items" / "000000"
    assert len(list(records.glob("*.tile"))) == PLACES * FRAMES - 7
    _bad(tmp_path, "")
    log = tmp_path / "log"
    with pytest.raises(ConfigError, match="began with"):
        run(movie, tmp_path / "out", resume=True, options={"bad": bad, "log": str(log)})
    run(movie, tmp_path / "out", resume=True, workers=2, options={"bad": bad})
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

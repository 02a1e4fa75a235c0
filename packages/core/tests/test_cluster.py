"""Predictions on clusters: workers die, join late, or see other files; the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cluster_fakes
import numpy as np
import pytest
from cluster_fakes import logged, run, until
from engine_fakes import digest, discs, read, same_objects, whole

from cellseg.engine import cluster, cluster_worker
from cellseg.engine.cluster_worker import Joined, Sent, versions
from cellseg.engine.state import WorkDir
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    PartialError,
)
from cellseg.events import Failed, Note, Progress
from cellseg.options import parse
from cellseg.outputs.formats import output_inside
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
WORKER = """
import asyncio, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import cc3d, cluster_fakes, distributed, cellseg.engine.cluster_plugin, cellseg.outputs.table
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
async def work():
    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False}
    async with distributed.Worker(sys.argv[1], **options) as worker:
        await worker.finished()
asyncio.run(work())
"""


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import cluster_fakes

    return cluster_fakes


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tiled image, and several small fields."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "large.npy", discs((300, 260)))
    for number in range(4):
        np.save(folder / f"field{number}.npy", discs((90, 80 + number), seed=number + 1))
    return folder


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run(images, out)
    return digest(out)


@pytest.fixture(scope="module")
def threads():
    """A cluster with one worker in this process, which has several threads."""
    with cluster_fakes.in_this_process(threads=3) as started:
        yield started


def test_one_worker_is_killed_and_one_joins_late(images, alone, tmp_path, monkeypatch):
    import distributed

    monkeypatch.setenv("CELLSEG_MIRROR", "/a/mirror")
    log, hold = tmp_path / "log", tmp_path / "hold"
    hold.touch()
    gates = [tmp_path / f"gate{number}" for number in range(3)]
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as started:
        address = started.scheduler_address
        workers = [
            subprocess.Popen([sys.executable, "-c", WORKER, address, HERE, gate]) for gate in gates
        ]
        pids = [str(process.pid) for process in workers]
        notes = []

        def play():
            until(lambda: notes)
            for number in (0, 1):
                gates[number].touch()
            until(lambda: all(sum(p == pid for p, *_ in logged(log)) > 1 for pid in pids[:2]))
            gates[2].touch()  # the first two are in the middle of a tile
            until(lambda: pids[2] in [pid for pid, *_ in logged(log)])
            workers[0].kill()
            hold.unlink()

        def emit(event):
            if isinstance(event, Note) and "no workers now" in event.text:
                notes.append(event.text)

        player = threading.Thread(target=play)
        player.start()
        options = {"log": str(log), "hold": str(hold)}
        try:
            summary, _ = run(images, tmp_path / "out", emit, options=options, scheduler=address)
        finally:
            hold.unlink(missing_ok=True)
            player.join()
            for process in workers:
                process.kill()
                process.wait()
    assert digest(tmp_path / "out") == alone
    assert summary.complete
    assert notes == [f"{address} has no workers now; waiting until some join."]
    lines = logged(log)
    lost = [size for pid, size, *_ in lines if pid == pids[0]][-1]
    assert lost in [size for pid, size, *_ in lines if pid != pids[0]], "done by another"
    assert {device for _, _, device, _ in lines} == {"cpu"}
    assert {mirror for *_, mirror in lines} == {"/a/mirror"}
    labels = read(tmp_path / "out" / "large.tif")
    assert len(np.unique(labels)) - 1 == labels.max() == whole(discs((300, 260)))[0].max()
    assert not (tmp_path / "out" / ".cellseg" / "workers").exists()


@pytest.mark.slow
def test_tiles_that_kill_their_process(tmp_path):
    """One is done in halves, one fails; those that wait beside them are none the worse."""
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "good.npy", discs((200, 140)))
    deadly = []
    shapes = {"killer": (120, 80), "large": (96, 100), "small": (50, 50)}
    for seed, (name, shape) in enumerate(shapes.items(), 1):
        image = discs(shape, seed=seed)
        np.save(folder / f"{name}.npy", image)
        deadly.append(int((image > 0).sum()))
    run(folder, tmp_path / "one", tile_size=128)
    out, events = tmp_path / "out", []
    halves = (slice(0, 75), slice(45, 120))  # of "killer", which kill too
    image = np.load(folder / "killer.npy")[0, 0]
    deadly += [int((image[half] > 0).sum()) for half in halves]
    options = {"deadly": ",".join(map(str, deadly))}
    with pytest.raises(
        PartialError, match=r"killer: a worker process died of it 3 times"
    ) as caught:
        run(folder, out, events.append, options=options, workers=2, tile_size=128, batch_size=2)
    assert set(caught.value.failed) == {"killer", "small"}
    assert "died of it 2 times" in caught.value.failed["small"], "it is too small for halves"
    texts = [event.text for event in events if isinstance(event, Note)]
    assert any("large: 2 worker processes died of it" in text for text in texts)
    assert len([event for event in events if isinstance(event, Failed)]) == 2
    assert not any("once more." in text and "failed tile" in text for text in texts)
    done = digest(out)
    assert done["good.tif"] == digest(tmp_path / "one")["good.tif"]
    assert same_objects(read(out / "large.tif"), read(tmp_path / "one" / "large.tif"))


def test_a_cluster_that_is_lost(images, alone, tmp_path):
    import distributed

    started = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address=None, memory_limit=0,
    )  # fmt: skip
    ends = []

    def emit(event):
        if isinstance(event, Progress) and event.step == 3 and not ends:
            ends.append(threading.Thread(target=started.close))
            ends[0].start()

    try:
        with pytest.raises(DeviceError, match="is gone") as caught:
            run(
                images, tmp_path / "out", emit, options={"sleep": 0.05},
                scheduler=started.scheduler_address,
            )  # fmt: skip
    finally:
        started.close()
        ends[0].join()
    assert "--resume" in caught.value.hint
    _, events = run(images, tmp_path / "out", options={"sleep": 0.05}, resume=True)
    assert next(event.step for event in events if isinstance(event, Progress)) > 3
    assert digest(tmp_path / "out") == alone


def test_a_cluster_that_is_lost_when_all_tiles_are_done(images, alone, tmp_path):
    import distributed

    started = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address=None, memory_limit=0,
    )  # fmt: skip

    def emit(event):
        if isinstance(event, Progress) and event.step == event.total:
            started.close()

    try:
        summary, _ = run(images, tmp_path / "out", emit, scheduler=started.scheduler_address)
    finally:
        started.close()
    assert summary.complete
    assert digest(tmp_path / "out") == alone


def test_several_predictions_on_one_cluster(images, alone, tmp_path, threads):
    """At the same time, and one after the other; what they loaded is freed."""
    results = {}

    def one(name):
        results[name] = run(images, tmp_path / name, scheduler=threads)[0]

    both = [threading.Thread(target=one, args=(name,)) for name in ("a", "b")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    one("c")
    for name in ("a", "b", "c"):
        assert digest(tmp_path / name) == alone
        assert results[name].complete
    assert not cluster_worker._joined and not cluster_worker._sent


def test_interrupted_on_a_cluster_and_resumed(images, alone, tmp_path, threads):
    seen = []
    with pytest.raises(InterruptedRunError):
        run(
            images, tmp_path / "out", seen.append, lambda: len(seen) > 9,
            options={"sleep": 0.02}, scheduler=threads,
        )  # fmt: skip
    steps = [event.step for event in seen if isinstance(event, Progress)]
    _, events = run(
        images, tmp_path / "out", options={"sleep": 0.02}, resume=True, scheduler=threads
    )
    again = [event.step for event in events if isinstance(event, Progress)]
    assert again[0] >= steps[-1] + 1, "what was reported is not done again"
    assert len(again) > 10
    assert digest(tmp_path / "out") == alone


def test_interrupted_while_there_are_no_workers(images, tmp_path):
    """As when the jobs are still in the queue: nothing is under way that could be waited for."""
    import distributed

    notes = []

    def emit(event):
        if isinstance(event, Note) and "no workers now" in event.text:
            notes.append(event.text)

    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
        ) as started,
        pytest.raises(InterruptedRunError),
    ):
        run(
            images, tmp_path / "out", emit, lambda: bool(notes),
            scheduler=started.scheduler_address,
        )  # fmt: skip


def test_listings_that_lag_behind(images, alone, tmp_path, threads, monkeypatch):
    """As on a network drive, where a folder does not show at once what others have written."""
    monkeypatch.setattr(WorkDir, "_numbered", lambda self, item, suffix: set())
    finished = WorkDir.finished
    monkeypatch.setattr(
        WorkDir, "finished", lambda self: {i: v for i, v in finished(self).items() if i != 1}
    )
    summary, _ = run(images, tmp_path / "out", scheduler=threads)
    assert summary.complete
    assert digest(tmp_path / "out") == alone


def test_what_is_sent_holds_in_any_folder():
    inside = cluster._absolute_output(output_inside(Path("plate.zarr/A/1/0"), "cells"))
    assert inside.path.is_absolute()
    assert inside.container == Path("plate.zarr/A/1/0").absolute()


def test_a_movie_that_is_tracked_on_a_cluster(tmp_path, threads, monkeypatch):
    import tracking_fakes

    import cellseg.report.tracks

    monkeypatch.setattr(
        cellseg.report.tracks, "write_tracks_page", lambda path, *args, **named: path.touch()
    )
    movie = tracking_fakes.write_movie(tmp_path / "in", range(23))
    tracking_fakes.run(movie, tmp_path / "one")
    tracking_fakes.run(movie, tmp_path / "two", scheduler=threads)
    assert digest(tmp_path / "two") == digest(tmp_path / "one")


def test_nobody_answers(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT", 0.3)
    with pytest.raises(DeviceError, match=r"No scheduler answers at tcp://127.0.0.1:1\.") as caught:
        run(images, tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert "dask scheduler" in caught.value.hint
    with pytest.raises(ConfigError, match="is no address"):
        run(images, tmp_path / "out", scheduler="nonsense://x")
    with pytest.raises(ConfigError, match="knows no key and certificate"):
        run(images, tmp_path / "out", scheduler="tls://127.0.0.1:1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scheduler": "tcp://x:1", "slurm": "a100"}, "exclude each other"),
        ({"scheduler": "tcp://x:1", "workers": 2}, "--workers does nothing"),
    ],
)
def test_settings_that_exclude_each_other(values, said):
    with pytest.raises(ConfigError, match=said):
        parse(PredictSettings, values)


def sent(folder, **values):
    known = {"versions": versions(), "folder": folder, "environment": {}, "recipe": b""}
    return Sent("name", **{**known, **values})


def test_a_worker_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_worker, "_PATIENCE", 0.0)
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} .*has cellseg-core .*and this"):
        Joined(sent(tmp_path, versions={**versions(), "cellseg-core": "0.0.1"}))
    with pytest.raises(DataError, match="does not see the folder") as caught:
        Joined(sent(tmp_path / "out" / "workers" / "name"))
    assert "all machines share" in caught.value.hint
    (tmp_path / "name").write_text("another")
    with pytest.raises(DataError, match="does not see the folder"):
        Joined(sent(tmp_path))


def test_images_that_a_worker_does_not_see(images, tmp_path, threads, monkeypatch):
    opened = cluster_worker._opened

    def elsewhere(sent):
        images.rename(tmp_path / "moved")
        try:
            return opened(sent)
        finally:
            (tmp_path / "moved").rename(images)

    monkeypatch.setattr(cluster_worker, "_opened", elsewhere)
    with pytest.raises(DataError, match=r"worker at tcp.*does not see the images at") as caught:
        run(images, tmp_path / "out", scheduler=threads)
    assert "all machines share" in caught.value.hint


@pytest.mark.slow
def test_a_killed_process_leaves_no_workers(images, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path\nfrom cluster_fakes import run\n"
        f"run(Path({str(images)!r}), Path({str(tmp_path / 'out')!r}), workers=2, options="
        f"{{'log': {str(tmp_path / 'log')!r}, 'hold': {str(tmp_path / 'hold')!r}}})\n"
    )
    (tmp_path / "hold").touch()
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: len({pid for pid, *_ in logged(tmp_path / "log")}) == 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    gone = {int(pid) for pid, *_ in logged(tmp_path / "log")}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in gone))

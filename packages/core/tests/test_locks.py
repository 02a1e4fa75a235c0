"""One process at a time: who comes second is told, and a dead process keeps nobody out."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engine_fakes
import numpy as np
import pytest
import tifffile

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.errors import CellsegError, DataError, StorageError
from cellseg.events import Event, Note
from cellseg.files import locked
from cellseg.locks import LOCK, beside, holders, refuse_busy, sole
from cellseg.machine import me
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg.synthetic import write_dataset
from cellseg.workflows.augment import augment
from cellseg.workflows.cross_validate import cross_validate
from cellseg.workflows.export import export
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.track import track
from cellseg.workflows.track_settings import TrackSettings
from cellseg.workflows.train import resume, train
from cellseg.workflows.train_settings import TrainSettings

HERE = Path(__file__).parent
needs_signals = pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
HOLDER = """
import sys, time
from pathlib import Path
from cellseg.files import locked
with locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as got:
    print(got, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(lock: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def test_only_one_holds_a_lock_or_all_share_it(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with locked(lock) as first, locked(lock) as second, locked(lock, shared=True) as third:
        assert (first, second, third) == (True, False, False)
        assert [one["pid"] for one in holders(lock)] == [os.getpid()]
    assert not lock.exists()
    with locked(lock, shared=True) as first, locked(lock, shared=True) as second:
        with locked(lock) as third:
            assert (first, second, third) == (True, True, False)
            assert len(holders(lock)) == 2
    assert not lock.exists()
    with locked(lock) as again:
        assert again


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    order: list[str] = []

    def second() -> None:
        with locked(lock, wait=True) as got:
            order.append(f"second {got}")

    with locked(lock):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second True"]
    assert not lock.exists()


def test_many_that_wait_take_turns(tmp_path: Path) -> None:
    """The file is removed and made again all the time; never do two hold it."""
    lock, inside, most = tmp_path / "a.lock", [0], [0]

    def work() -> None:
        for _ in range(50):
            with locked(lock, wait=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not lock.exists()


@needs_signals
def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with held(lock) as process:
        with locked(lock) as got:
            assert not got
        with pytest.raises(StorageError, match=rf"process {process.pid} .since 2") as error:
            refuse_busy(tmp_path, lock)
        assert "Wait until it ends" in str(error.value.hint)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.exists() and not holders(lock)
        with locked(lock) as got:
            assert got
            assert [one["pid"] for one in holders(lock)] == [os.getpid()]
    assert not lock.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_holds_no_lock_of_its_parent(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from cellseg.files import locked
lock = Path({str(tmp_path / "a.lock")!r})
read, write = os.pipe()
with locked(lock):
    child = os.fork()
    if not child:
        os.read(read, 1)
        os._exit(0)
with locked(lock) as got:
    print(got)
os.write(write, b"x")
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_folders_that_are_made_for_a_lock_are_removed_after_a_failure(tmp_path: Path) -> None:
    lock = tmp_path / "a" / "b" / LOCK
    with pytest.raises(ZeroDivisionError), sole(lock.parent, lock):
        assert lock.exists()
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), sole(lock.parent, lock):
        (tmp_path / "a" / "kept").write_text("")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


@needs_signals
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_of(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    events: list[Event] = []
    with sole(tmp_path / "run", tmp_path / "run" / LOCK, emit=events.append):
        pass
    assert len(events) == 1 and isinstance(events[0], Note)
    assert "no locks" in events[0].text and str(tmp_path / "run") in events[0].text


def test_the_holder_of_another_computer_is_named(tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    with locked(lock):
        line = {**me(), "machine": "node7 boot pid:[1]", "pid": 42, "since": "2026-01-02T03:04:05Z"}
        lock.write_text(json.dumps(line) + "\n")
        with pytest.raises(StorageError, match=r"process 42 on node7 .since 202"):
            refuse_busy(tmp_path, lock)


def refused(lock: Path, work: Any, *words: str, how: bool = False) -> None:
    """Somebody else is there: the work is refused, and does nothing."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    before = sorted(lock.parent.rglob("*"))
    with locked(lock, shared=how):
        with pytest.raises(CellsegError) as error:
            work()
        assert isinstance(error.value, StorageError), error.value
        for word in (str(os.getpid()), *words):
            assert word in f"{error.value} {error.value.hint}"
    assert sorted(lock.parent.rglob("*")) == before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locks") / "data"
    write_dataset(folder, 5, size=64)
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> RunDir:
    settings = TrainSettings.model_validate({"epochs": 1})
    return train(Plugins(), "otsu", data, data.parent / "run", settings=settings)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", engine_fakes.discs((120, 90)))
    np.save(folder / "b.npy", engine_fakes.discs((40, 40), seed=1))
    return folder


def segment(images: Path, out: Path, **values: Any) -> Any:
    settings = PredictSettings(backend="flat", reader="npy", output=out, **values)
    return predict(
        engine_fakes.plugins(),
        images,
        settings,
        options={},
        reader_options={},
        emit=lambda event: None,
    )


def test_a_run_that_trains_is_not_resumed_and_not_started_again(data: Path, run: RunDir) -> None:
    refused(run.lock, lambda: resume(Plugins(), run.path, epochs=3), "stop it")
    refused(run.lock, lambda: train(Plugins(), "otsu", data, run.path), "elsewhere")
    with pytest.raises(DataError, match="holds a run"):
        train(Plugins(), "otsu", data, run.path)


def test_a_run_that_just_begins_is_not_started_again(data: Path, tmp_path: Path) -> None:
    lock = RunDir(tmp_path / "run").lock
    refused(lock, lambda: train(Plugins(), "otsu", data, tmp_path / "run"), str(tmp_path / "run"))


def test_a_model_can_be_used_while_its_run_trains_longer(run: RunDir, tmp_path: Path) -> None:
    """It is whole, or not there: never the old description of new weights."""
    seen = []

    def look(event: Event) -> None:
        if isinstance(event, Note) or seen:
            return
        seen.append((run.model / BUNDLE_FILE).exists())
        with pytest.raises(DataError, match="has not finished"):
            export(Plugins(), run.path, "zip", tmp_path / "during.zip")

    resume(Plugins(), run.path, epochs=2, emit=look)
    assert seen == [False]
    export(Plugins(), run.path, "zip", tmp_path / "after.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after.zip"]


def test_a_longer_training_that_was_killed_is_not_finished(data: Path, tmp_path: Path) -> None:
    settings = TrainSettings.model_validate({"epochs": 1})
    run = train(Plugins(), "otsu", data, tmp_path / "run", settings=settings)
    steps = max(e.step for e in run.events() if hasattr(e, "step"))

    def die(event: Event) -> None:
        if getattr(event, "step", 0) == steps + 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        resume(Plugins(), run.path, epochs=3, emit=die)
    resume(Plugins(), run.path)
    assert max(e.step for e in run.events() if hasattr(e, "step")) == 3 * steps
    assert (run.model / BUNDLE_FILE).exists()


def test_two_predictions_into_one_folder(images: Path, tmp_path: Path) -> None:
    lock = tmp_path / "out" / ".cellseg" / LOCK
    for values in ({}, {"overwrite": True}, {"shard": "1/2"}):
        refused(lock, lambda values=values: segment(images, tmp_path / "out", **values), "out")
    refused(lock, lambda: segment(images, tmp_path / "out"), how=True)
    with locked(lock, shared=True):  # shares work side by side
        segment(images, tmp_path / "out", shard="1/2")
        refused(lock, lambda: segment(images, tmp_path / "out", resume=True), how=True)
        segment(images, tmp_path / "out", shard="2/2")
    assert not list((tmp_path / "out").rglob("*.lock")) and not lock.exists()


def test_what_is_finished_can_be_looked_at_where_nobody_may_write(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment(images, out)
    with locked(out / ".cellseg" / "other"):  # nothing that concerns it
        (out / ".cellseg").chmod(0o500)
        try:
            assert segment(images, out, resume=True).complete
        finally:
            (out / ".cellseg").chmod(0o700)


def test_the_other_jobs(data: Path, run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    target = tmp_path / "model.zip"
    refused(beside(target), lambda: export(Plugins(), run.path, "zip", target), "model.zip")
    refused(beside(out), lambda: augment(Plugins(), data, out), "out")
    refused(out / LOCK, lambda: cross_validate(Plugins(), "otsu", data, out), "out")
    movie = tmp_path / "movie.tif"
    tifffile.imwrite(movie, np.ones((2, 8, 8), np.uint16), metadata={"axes": "TYX"})
    settings = TrackSettings(output=out)
    refused(out / LOCK, lambda: track(Plugins(), movie, settings), "out")


@needs_signals
def test_a_training_and_a_prediction_in_other_processes(
    data: Path, images: Path, tmp_path: Path
) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
import engine_fakes
from pathlib import Path
from cellseg.events import Progress
from cellseg.plugins import Plugins
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import train
def told(event):
    if isinstance(event, Progress):
        print("began", flush=True)
        time.sleep(60)
job, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if job == "train":
    train(Plugins(), "otsu", source, out, emit=told)
settings = PredictSettings(backend="flat", reader="npy", output=out)
predict(engine_fakes.plugins(), source, settings, options={{}}, reader_options={{}}, emit=told)
"""
    for job, source, second in (
        ("train", data, lambda out: train(Plugins(), "otsu", data, out)),
        ("predict", images, lambda out: segment(images, out, resume=True)),
    ):
        out = tmp_path / job
        process = subprocess.Popen(
            [sys.executable, "-c", code, job, str(source), str(out)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == "began\n"
            with pytest.raises(StorageError, match=f"{out}: process {process.pid} "):
                second(out)
        finally:
            process.kill()
            process.communicate()
        if job == "train":
            assert resume(Plugins(), out, epochs=1).model.exists()
        else:
            assert segment(images, out, resume=True).complete
        assert not list(out.rglob(LOCK))

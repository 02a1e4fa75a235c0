"""What kills and full disks once broke: each at the moment that did it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cellseg.errors import DataError, StorageError
from cellseg.events import Checkpointed, Event, Progress
from cellseg.files import (
    discard,
    locked,
    remove_leftovers,
    replacing,
    storage_errors,
    write_atomic,
)
from cellseg.locks import LOCK, sole
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg.synthetic import write_dataset
from cellseg.tuning.trials import Trial, ranked
from cellseg.workflows.train import resume, train
from cellseg.workflows.train_settings import TrainSettings
from cellseg.workflows.tune_request import TuneDir


class Killed(BaseException):
    """Nobody catches it; what a ``finally`` does, a kill would not, so look for that as well."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "data"
    write_dataset(folder, 5, size=64)
    return folder


def settings(epochs: int = 1) -> TrainSettings:
    return TrainSettings.model_validate({"epochs": epochs})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_kill_between_the_model_and_the_report(data: Path, tmp_path: Path) -> None:
    """The run is finished, and resuming it brings what is missing."""
    run = train(Plugins(), "otsu", data, tmp_path / "run", settings=settings())
    undisturbed = names(run.path)
    run.report.unlink()
    (run.path / ".part-12-report.html").write_text("<html>")
    run.lock.write_text("")
    resume(Plugins(), run.path)
    assert names(run.path) == undisturbed
    assert run.report.read_text().rstrip().endswith("</html>")


def test_a_kill_before_the_run_began_leaves_a_folder_to_begin_in(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    whole = train(Plugins(), "otsu", data, tmp_path / "whole", settings=settings())
    for folder in ("checkpoint", "model", "previews"):
        (out / folder).mkdir(parents=True)
    shutil.copy(whole.config, out)
    (out / ".part-12-splits.json").write_text("{")
    with pytest.raises(DataError, match="not empty"):
        train(Plugins(), "otsu", data, out, settings=settings())
    (out / LOCK).write_text("")
    train(Plugins(), "otsu", data, out, settings=settings())
    assert names(out) == names(whole.path)


def test_files_of_the_user_are_never_taken_for_those_of_a_kill(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / LOCK).write_text("")
    (out / "notes.txt").write_text("mine")
    (out / "config.yaml").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        train(Plugins(), "otsu", data, out, settings=settings())
    (out / "notes.txt").unlink()
    (out / "model").mkdir()
    (out / "model" / "mine").write_text("")
    with pytest.raises(DataError, match="not empty"):
        train(Plugins(), "otsu", data, out, settings=settings())
    assert (out / "config.yaml").read_text() == "mine"


def test_a_search_that_was_killed_as_it_began(tmp_path: Path) -> None:
    folder = TuneDir(tmp_path)
    (tmp_path / "splits.json").write_text("{}")
    (tmp_path / ".part-12-tune.json").write_text("{")
    with pytest.raises(DataError, match="not empty"):
        folder.check_free()
    folder.lock.write_text("")
    folder.check_free()
    (tmp_path / "mine").write_text("")
    with pytest.raises(DataError, match="not empty"):
        folder.check_free()


def test_half_a_line_of_the_history_is_cut_off(data: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record(Progress(1, 2))
    whole = run.log.read_bytes()
    for left in (b'{"at": "2026-0', b'{"event": "Progress", "step": 7}', b"\xff" * 100_000):
        run.log.write_bytes(whole + left)
        run.record(Checkpointed(1))
        lines = run.log.read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["Progress", "Checkpointed"]
    run.log.write_bytes(b"half")
    run.record(Checkpointed(1))
    assert run.events() == [Checkpointed(1)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
def test_a_line_for_which_there_is_no_room_is_not_there(tmp_path: Path) -> None:
    import resource

    run = RunDir(tmp_path)
    run.record(Progress(1, 2))
    before = run.log.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"events\.jsonl: cannot be written: it is larger"):
            run.record(Progress(2, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.log.read_bytes() == before
    run.record(Progress(2, 2))
    assert [event.step for event in run.events()] == [1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EIO, "the disk reports an error"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EFBIG, "it is larger than the file system"),
    ],
)
def test_what_disks_say(number: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"out: cannot be written: {said}") as error:
        with storage_errors(tmp_path / "out"):
            raise OSError(number, os.strerror(number))
    assert error.value.exit_code == 7


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)

    put(".old-12-a", "old")  # killed before the new one had its name
    put(".part-12-a", "new")
    put("b", "new")  # and killed after that
    put(".old-12-b", "old")
    put(".old-12-other", "not asked for")
    put(".part-12-.part-12-b", "half, of a writer that replaces by itself")
    remove_leftovers(tmp_path, {"a", "b"})
    assert names(tmp_path) == [".old-12-other", "a", "b"]
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert (tmp_path / "b" / "file").read_text() == "new"


def test_a_folder_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").write_text("")
    rename = Path.rename

    def full(self: Path, to: Path) -> Path:
        if self.name.startswith(".part-"):
            raise OSError(errno.ENOSPC, "full")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match="disk is full"), replacing(target) as temporary:
        temporary.mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a", "a/old"]


def test_what_other_threads_still_write_is_removed_too(tmp_path: Path) -> None:
    """Writers of Zarr go on for a moment after one of them has failed."""
    folder, ended = tmp_path / "half", threading.Event()

    def write() -> None:
        for number in range(40):
            place = folder / str(number % 4)
            place.mkdir(parents=True, exist_ok=True)
            try:
                (place / str(number)).write_text("")
            except FileNotFoundError:
                continue
            time.sleep(0.005)
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not folder.exists():
        time.sleep(0.001)
    discard(folder)
    thread.join()
    assert ended.is_set() and not folder.exists()


@pytest.mark.skipif(os.name == "nt", reason="a folder cannot be waited for")
def test_what_a_resume_needs_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def rename(self: Path, to: Path) -> Path:
        done.append(f"name {to.name}")
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomic(tmp_path / "run.json", "{}", durable=True)
    assert done == [f"sync .part-{os.getpid()}-run.json", "name run.json", f"sync {tmp_path.name}"]
    done.clear()
    write_atomic(tmp_path / "page.html", "")
    assert done == [f"sync .part-{os.getpid()}-page.html", "name page.html"]


def test_the_best_trial_does_not_depend_on_which_were_stopped() -> None:
    def trial(number: int, point: int, score: float) -> Trial:
        options: dict[str, Any] = {"x": point}
        return Trial(number=number, state="complete", options=options, score=score, point=point)

    undisturbed = [trial(0, 0, 0.4), trial(1, 1, 0.4), trial(2, 2, 0.3)]
    resumed = [trial(1, 1, 0.4), trial(2, 2, 0.3), trial(3, 0, 0.4)]
    for maximise in (True, False):
        ranks = [
            [one.options["x"] for one in ranked(trials, maximise)]
            for trials in (undisturbed, resumed)
        ]
        assert ranks[0] == ranks[1]


def test_a_full_disk_leaves_no_half_checkpoint(data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cellseg.torch.checkpoints import Checkpoints, Position

    class Fabric:
        is_global_zero = True

        def save(self, path: Path, state: dict[str, Any]) -> None:
            if state["fails"]:
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "full")
            torch.save({"position": state["position"]}, path)

        def barrier(self) -> None:
            pass

    checkpoints = Checkpoints(tmp_path, Fabric())
    checkpoints.save({"fails": False}, Position(step=2))
    with pytest.raises(StorageError, match="disk is full"):
        checkpoints.save({"fails": True}, Position(step=4))
    assert names(tmp_path) == ["step-00000002-epoch-0000.ckpt"]


def test_stopping_at_every_step_ends_the_same(data: Path, tmp_path: Path) -> None:
    """An exception at any event; what is on disk goes on to the undisturbed end."""
    seen: list[Event] = []
    whole = train(
        Plugins(), "otsu", data, tmp_path / "whole", settings=settings(2), emit=seen.append
    )
    for moment in range(len(seen)):
        left = [moment]

        def strike(event: Event, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        out = tmp_path / f"run{moment}"
        with pytest.raises(Killed):
            train(Plugins(), "otsu", data, out, settings=settings(2), emit=strike)
        run = RunDir(out)
        if (out / "run.json").exists():
            resume(Plugins(), out)
        else:
            train(Plugins(), "otsu", data, out, settings=settings(2))
        for file in ("model/threshold.json", "model/bundle.json", "splits.json"):
            assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()
        assert [e for e in run.events() if isinstance(e, Progress)] == [
            e for e in seen if isinstance(e, Progress)
        ]
        assert names(out) == names(whole.path)


def test_a_kill_before_the_tiles_are_forgotten(tmp_path: Path) -> None:
    import engine_fakes
    import numpy as np

    from cellseg.workflows.predict import predict
    from cellseg.workflows.predict_settings import PredictSettings

    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", engine_fakes.discs((60, 50)))
    out = tmp_path / "out"

    def go(resume: bool) -> None:
        predict(
            engine_fakes.plugins(),
            tmp_path / "images",
            PredictSettings(backend="flat", reader="npy", output=out, resume=resume),
            emit=lambda event: None,
        )

    go(False)
    undisturbed = sorted(out.rglob("*"))
    left = out / ".cellseg" / "items" / "000000"
    left.mkdir(parents=True)
    (left / "00000000.tile").write_bytes(b"")
    (out / ".cellseg" / LOCK).write_text("")
    go(True)
    assert sorted(out.rglob("*")) == undisturbed


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system follows links")
def test_a_lock_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    (tmp_path / "run").mkdir()
    for lead in (kept, tmp_path / "nowhere" / "x"):
        link = tmp_path / "run" / LOCK
        link.symlink_to(lead)
        with pytest.raises(StorageError, match="symbolic link"), sole(link.parent, link):
            pass
        link.unlink()
    history = RunDir(tmp_path / "run")
    history.log.symlink_to(kept)
    with pytest.raises(StorageError, match="symbolic link"):
        history.record(Progress(1, 2))
    assert kept.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    place = Path("run")
    with pytest.raises(StorageError, match="run: cannot be made"), sole(place, place / LOCK):
        pass


def test_somebody_who_is_there_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    lock, ready, let_go = tmp_path / LOCK, threading.Event(), threading.Event()

    def hold() -> None:
        with locked(lock):
            ready.set()
            let_go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait(30)
    with pytest.raises(StorageError), sole(tmp_path, lock, shared=True):
        pass
    threading.Timer(0.2, let_go.set).start()
    with sole(tmp_path, lock, shared=True, patience=30):
        assert let_go.is_set()
    thread.join()

"""A command as a job: its threads, its failures, and how it goes on after it was stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cellseg.clusters.command import CommandFailedError, Job, Restart, again, shown
from cellseg.workflows.submit import restart_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")

PROGRAM = """
import os, pathlib, signal, sys, time
command, run, steps, seconds = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), .02
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
if command == "fail":
    print("reading", file=sys.stderr)
    print("Error: it is broken", file=sys.stderr)
    sys.exit(4)
if command == "train":
    run.mkdir()
    (run / "run.json").write_text("{}")
(run / "commands").open("a").write(command + " " + os.environ.get("OMP_NUM_THREADS", "") + "\\n")
state = run / "state"
for step in range(int(state.read_text()) if state.exists() else 0, steps):
    time.sleep(seconds)
    with (run / "steps").open("a") as file:
        file.write(f"{step}\\n")
    (run / "part").write_text(str(step + 1))
    (run / "part").replace(state)
    if stop:
        sys.exit(130)
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    """A program that counts, and goes on counting."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return (sys.executable, "-S", str(file))


@pytest.fixture
def job(program: tuple[str, ...], tmp_path: Path) -> Job:
    """It counts to 20."""
    run = tmp_path / "run"
    return Job(
        program=program,
        command=("train", str(run), "20"),
        folder=tmp_path,
        state=tmp_path / "job.json",
        restart=Restart(run / "run.json", ("resume", str(run), "20")),
        variables={"OMP_NUM_THREADS": "3"},
        grace=20,
    )


def steps(tmp_path: Path) -> list[int]:
    return [int(line) for line in (tmp_path / "run" / "steps").read_text().split()]


def commands(tmp_path: Path) -> list[str]:
    return (tmp_path / "run" / "commands").read_text().splitlines()


def once_started(tmp_path: Path, number: int) -> threading.Thread:
    """Send this process a signal once the job counts."""

    def send() -> None:
        end = time.monotonic() + 20
        while not (tmp_path / "run" / "steps").exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def _others() -> None:
    """Other test modules keep processes of their own."""
    _before.clear()
    _before.update(psutil.Process().children(recursive=True))


_before: set[psutil.Process] = set()


def children() -> set[psutil.Process]:
    """The processes that a test started."""
    return set(psutil.Process().children(recursive=True)) - _before


def test_a_job_runs_its_command(job: Job, tmp_path: Path) -> None:
    assert job() == 0
    assert steps(tmp_path) == list(range(20))
    assert commands(tmp_path) == ["train 3"]


def test_a_failure_says_the_last_lines(job: Job, capfd: Any) -> None:
    with pytest.raises(CommandFailedError, match="exit code 4") as error:
        replace(job, command=("fail", "x", "1"), restart=None)()
    assert "Error: it is broken" in str(error.value) and error.value.code == 4
    assert "reading\nError: it is broken" in capfd.readouterr().err, "the log has all lines"
    assert job.known()["code"] == 4


def test_sigterm_goes_to_the_command(job: Job, tmp_path: Path) -> None:
    sender = once_started(tmp_path, signal.SIGTERM)
    with pytest.raises(CommandFailedError, match="exit code 130"):
        job()
    sender.join()
    assert 0 < len(steps(tmp_path)) < 20
    assert not children()


def test_at_the_time_limit_the_state_is_saved_and_the_next_go_goes_on(
    job: Job, tmp_path: Path
) -> None:
    class QueuedAgainError(Exception):
        pass

    def handler(*_: object) -> None:  # as submitit does it
        assert job.checkpoint().function == job
        raise QueuedAgainError

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        sender = once_started(tmp_path, signal.SIGUSR2)
        with pytest.raises(QueuedAgainError):
            job()
        sender.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert 0 < len(steps(tmp_path)) < 20
    assert not children()
    assert job() == 0
    assert steps(tmp_path) == list(range(20)), "each step once"
    assert commands(tmp_path) == ["train 3", "resume 3"]
    assert job() == 0
    assert len(commands(tmp_path)) == 2, "a job that is done does nothing more"


def test_a_job_that_is_not_to_be_queued_again_fails_at_its_limit(job: Job, tmp_path: Path) -> None:
    job = replace(job, requeue=False)
    before = signal.signal(signal.SIGUSR2, lambda *_: job.checkpoint())
    try:
        sender = once_started(tmp_path, signal.SIGUSR2)
        with pytest.raises(CommandFailedError, match="exit code 130"):
            job()
        sender.join()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_clusters_signal_does_not_kill_the_command(job: Job, tmp_path: Path) -> None:
    """SLURM may send it to all processes of a job."""

    def to_child(*_: object) -> None:
        for child in children():
            child.send_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR1, to_child)
    try:
        sender = once_started(tmp_path, signal.SIGUSR1)
        assert job() == 0
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_after_a_hard_kill_it_goes_on(job: Job, tmp_path: Path) -> None:
    kill = threading.Thread(target=_kill_children, args=(tmp_path,))
    kill.start()
    with pytest.raises(CommandFailedError, match="signal 9"):
        job()
    kill.join()
    job.state.write_text(json.dumps({"begun": None}))  # all there is when the node itself fails
    assert job() == 0
    assert sorted(set(steps(tmp_path))) == list(range(20))
    assert commands(tmp_path) == ["train 3", "resume 3"]


def _kill_children(tmp_path: Path) -> None:
    end = time.monotonic() + 20
    while not (tmp_path / "run" / "steps").exists() and time.monotonic() < end:
        time.sleep(0.01)
    for child in children():
        child.kill()


def test_again_is_the_same_command_before_it_began(tmp_path: Path) -> None:
    sign = tmp_path / "request.json"
    restart = Restart(sign, ("predict", "--resume", "a"))
    command = ("predict", "a")
    assert again(command, restart, {}) == command
    sign.write_text("an earlier one")
    assert again(command, restart, {}) == command, "this job has not begun"
    found = sign.stat()
    earlier = {"begun": [found.st_ino, found.st_mtime_ns, found.st_size]}
    assert again(command, restart, earlier) == command, "what is there is of an earlier one"
    sign.unlink()
    sign.write_text("one of this job")
    assert again(command, restart, earlier) == restart.command
    assert again(command, None, {"begun": None}) == command


@pytest.mark.parametrize(
    ("command", "values", "sign", "then"),
    [
        ("train data -o run --json", {}, "run/run.json", "resume run --json"),
        ("tune data -o run --trials 3", {}, "run/tune.json", "resume run"),
        (
            "cross-validate data -o run",
            {},
            "run/cross_validation.json",
            "cross-validate --resume data -o run",
        ),
        (
            "predict images -o run",
            {"work": "run/.cellseg"},
            "run/.cellseg/request.json",
            "predict --resume images -o run",
        ),
        (
            "embed images -o run",
            {"work": "run/.cellseg-embed"},
            "run/.cellseg-embed/request.json",
            "embed --resume images -o run",
        ),
        ("predict images -o run", {"work": "run/.cellseg", "shard": True}, None, None),
        ("predict images -o run", {"work": "run/.cellseg", "resume": True}, None, None),
        ("cross-validate data -o run", {"resume": True}, None, None),
        ("resume run", {}, None, None),
        ("export run -o run", {}, None, None),
        ("track labels -o run", {}, None, None),
    ],
)
def test_how_commands_go_on(
    command: str, values: dict[str, Any], sign: str | None, then: str | None
) -> None:
    work = values.pop("work", None)
    found = restart_of(
        command.split(), output=Path("run"), work=Path(work) if work else None, **values
    )
    if sign is None or then is None:
        assert found is None
    else:
        assert found == Restart(Path(sign).absolute(), tuple(then.split()))


def test_passwords_are_not_shown() -> None:
    command = ["tune", "my data", "--storage", "postgresql+psycopg://me:secret@server/optuna"]
    assert shown(command) == "tune 'my data' --storage 'postgresql+psycopg://me:***@server/optuna'"
    assert shown(["predict", "s3://bucket/a:b@c"]) == "predict s3://bucket/a:b@c"

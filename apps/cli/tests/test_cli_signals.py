"""Ctrl-C and SIGTERM while a training runs, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows"),
    pytest.mark.slow,
]


@pytest.fixture
def start(data, faulty, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    def start(*words: str) -> subprocess.Popen[str]:
        """A training of many slow steps, after its first."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cellseg_cli.main", "train", str(data)),
                *("-o", str(tmp_path / "run"), "--backend", "faulty", "--epochs", "2000"),
                *("--seconds", "0.02", "--verbose", *words),
            ],
            env={**os.environ, "PYTHONPATH": str(faulty), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(60, process.kill)
        timer.daemon = True
        timer.start()
        assert process.stderr is not None
        for line in process.stderr:
            if "step 2/" in line:
                return process
        pytest.fail("the training did not start")

    return start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_the_state(number, start, cellseg, tmp_path) -> None:
    process = start("--json")
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Stopping after this step" in err and "cellseg resume" in err
    assert json.loads(out)["error"]["type"] == "InterruptedRunError"
    run = tmp_path / "run"
    done = int((run / "checkpoint" / "state").read_text())
    resumed = cellseg("resume", run, "--epochs", done + 2, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["steps"] == done + 2


def test_the_second_signal_stops_at_once(start, tmp_path) -> None:
    process = start("--deaf")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    for line in process.stderr:
        if "Stopping after this step" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == -signal.SIGINT
    assert not list(Path(tmp_path / "run" / "model").iterdir())


def test_a_terminal_that_is_closed_asks_as_well(start, tmp_path) -> None:
    process = start("--json")
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["type"] == "InterruptedRunError"
    assert (tmp_path / "run" / "checkpoint" / "state").exists()


def test_what_has_no_state_is_interrupted() -> None:
    code = """
import os, signal, sys
from cellseg_cli.signals import interruptible, stoppable
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
with interruptible():
    with stoppable() as stopped:
        os.kill(os.getpid(), signal.SIGHUP)
        print(stopped(), end=" ")
    for number in (signal.SIGTERM, signal.SIGHUP):
        try:
            os.kill(os.getpid(), number)
            print("went on", end=" ")
        except KeyboardInterrupt:
            print("interrupted", end=" ")
print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before)
"""
    for words, expected in (
        ([], "True interrupted interrupted True\n"),
        (["nohup"], "False interrupted went on True\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout == expected

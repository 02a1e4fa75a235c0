"""What the tests of the command line share: the command itself, data, and made-up backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cellseg_cli.main import main

FAULTY = '''
"""A backend that fails as asked, for the tests."""

import time

import cellseg as cs


class FaultyOptions(cs.Options):
    error: str = ""
    """Class of the error to raise."""
    seconds: float = 0.0
    """How long a step takes."""
    deaf: bool = False
    """Do not listen to signals."""
    weights: tuple[float, float] = (0.5, 1.0)
    """Two numbers."""
    names: tuple[str, ...] = ("a", "b")
    """Any number of words."""
    mode: str | None = None
    """A word with [brackets]."""


def train(job, emit):
    if job.options.error:
        builtin = {"RuntimeError": RuntimeError, "MemoryError": MemoryError,
                   "KeyboardInterrupt": KeyboardInterrupt}
        raise (builtin.get(job.options.error) or getattr(cs, job.options.error))("on purpose")
    state = job.checkpoint / "state"
    done = int(state.read_text()) if state.exists() else 0
    for step in range(done + 1, job.epochs + 1):
        time.sleep(job.options.seconds)
        emit(cs.Progress(step, job.epochs, {"loss": 1 / step, "bad": float("nan")}))
        if job.interrupted() and not job.options.deaf:
            state.write_text(str(step))
            emit(cs.Checkpointed(step))
            raise cs.InterruptedRunError("Stopped.", hint="Go on with cellseg resume.")
    emit(cs.Validated(job.epochs, {"f1": 0.5, "bad": float("nan")}, best=True))
    (job.model / "weights").write_text("1")
    return cs.Trained()


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(name="faulty", summary="Fails", options=FaultyOptions, train=train)
'''


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Cellseg = Callable[..., Result]


@pytest.fixture
def cellseg(capsys: pytest.CaptureFixture[str]) -> Cellseg:
    """Run the command line in this process."""

    def run(*words: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(int(exit.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with labels, in a folder."""
    from cellseg.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, count=3, size=64, seed=0)
    return folder


Install = Callable[..., Path]


@pytest.fixture(name="install", scope="session")
def _install() -> Install:
    """Write a module, and what pip would write about its entry point."""

    def install(site: Path, name: str, module: str, text: str, package: str = "") -> Path:
        package = package or f"cellseg-{name}"
        info = site / f"{package.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[cellseg]\n{name} = {module}\n")
        (site / f"{module}.py").write_text(text)
        return site

    return install


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> Path:
    """Install the backend ``faulty``; the folder, for subprocesses."""
    folder = install(tmp_path / "site", "faulty", "faulty_backend", FAULTY)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    """Install the backend ``broken``, which cannot be imported."""
    text = "import a_module_that_is_not_there\n"
    monkeypatch.syspath_prepend(install(tmp_path / "broken", "broken", "broken_backend", text))

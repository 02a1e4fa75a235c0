"""A process that takes trials from a search until none is left."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cellseg.errors import CellsegError, InterruptedRunError
from cellseg.files import write_atomic
from cellseg.tuning.claim import Claim
from cellseg.tuning.study import Address, Study
from cellseg.tuning.trials import folder_of, ranked

FIRST_FAILURES = 3
"""So many failures, with no success before them, end a search: it will not get better."""
_SECONDS = 0.5
"""Between two looks at what the others do."""


class Report(Protocol):
    """What an objective says and asks while it works."""

    number: int
    """Of the trial."""
    worker: int
    """Of the process among those of its computer, from 0."""

    def step(self, step: int) -> None:
        """So much is done; counts up, also over a resume."""

    def validated(self, step: int, value: float) -> None:
        """How good it is so far, higher is better; at the same steps in each trial."""

    def measured(self, scores: Mapping[str, float]) -> None:
        """Keep scores beside the one that is searched for."""

    def stopped(self) -> bool:
        """Whether to stop, with the state saved, by raising ``InterruptedRunError``."""

    def called_off(self) -> bool:
        """The same, but not because the trial is worse than others: for what comes last."""


class Objective(Protocol):
    """What is searched: can be sent to another process if there are several workers."""

    def __call__(self, options: Mapping[str, Any], folder: Path, report: Report) -> float:
        """The score of some options.

        Args:
            options: a value for each option that is searched, as JSON has them.
            folder: for whatever it writes. What is in it already is of the same trial, which was
                stopped: go on with it.
            report: what to tell and ask.
        """


class Allow(Protocol):
    """Which points can be tried."""

    def __call__(self, options: Mapping[str, Any]) -> str:
        """Why not; empty where nothing is wrong."""


def anything(options: Mapping[str, Any]) -> str:
    """All points can be tried."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a worker needs; can be sent to another process if the objective can."""

    address: Address
    folder: Path
    """The output folder of the search."""
    objective: Objective
    allow: Allow = anything
    keep: int | None = 1
    """How many of the best trials keep the folders in ``heavy``; None means all."""
    heavy: tuple[str, ...] = ("model", "checkpoint")


class Spreading(Protocol):
    """An event that stops several processes."""

    def is_set(self) -> bool:
        """Whether to stop."""


def work(work: Work, interrupted: Callable[[], bool], worker: int = 0) -> None:
    """Try what waits until nothing does, waiting for others that may give trials back.

    Args:
        work: the search.
        interrupted: asked often; True means to stop and give back what is under way.
        worker: the number of this process among those of its computer.
    """
    study = Study(work.address, worker)
    while not interrupted() and not hopeless(study):
        study.reclaim()
        claim = study.claim(worker)
        if claim is not None:
            with claim:
                _try(work, claim, interrupted)
        elif study.busy():
            time.sleep(_SECONDS)
        else:
            return


def hopeless(study: Study) -> bool:
    """Whether nothing but failures happened, and enough of them."""
    states = [trial.state for trial in study.trials()]
    return states.count("failed") >= FIRST_FAILURES and not {"complete", "pruned"} & {*states}


def start(sent: bytes, stop: Spreading, worker: int, workers: int) -> None:
    """Runs as a process of its own."""
    # Libraries read it when they are imported, and would all take all processors.
    share = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    import pickle

    from cellseg.machine import end_with_parent

    # Ctrl-C goes to all processes of a terminal; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    work(pickle.loads(sent), stop.is_set, worker)


def _try(work: Work, claim: Claim, interrupted: Callable[[], bool]) -> None:
    """One trial, to its end or to where it is stopped."""
    point = claim.point()
    twin = claim.twin(point)
    refused = work.allow(point)
    if twin is not None or refused:
        why = f"The same point as trial {twin}." if twin is not None else f"Not allowed: {refused}"
        claim.skip(why, lambda other: not work.allow(other), twin)
        return
    name = folder_of(claim.notes) or f"trials/{claim.number:04d}"
    claim.note("folder", name)
    folder = work.folder / name
    report = _Report(claim, interrupted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        score = float(work.objective(point, folder, report))
        if not math.isfinite(score):
            raise ValueError(f"The score is {score}: nothing could be measured.")
    except InterruptedRunError as error:
        _stopped(claim, report, error)
    except Exception as error:
        message = (
            str(error) if isinstance(error, CellsegError) else f"{type(error).__name__}: {error}"
        )
        _write_error(folder)
        claim.fail(" ".join(message.split()))
    else:
        claim.complete(score)
    _tidy(work, claim)


def _stopped(claim: Claim, report: _Report, error: InterruptedRunError) -> None:
    if report.asked:
        claim.give_back("the search was stopped")
    elif report.worse:
        claim.prune()
    elif not claim.lost:
        claim.fail(str(error))


def _write_error(folder: Path) -> None:
    """What went wrong in full, for whoever looks; a disk that is full need not hold it."""
    with contextlib.suppress(CellsegError, OSError):
        write_atomic(folder / "error.txt", traceback.format_exc())


def _tidy(work: Work, claim: Claim) -> None:
    """Remove what is large of the trials that ended here and are not among the best."""
    if work.keep is None:
        return
    trials = claim.study.trials()
    best = {one.number for one in ranked(trials, work.address.maximise)[: work.keep]}
    for trial in trials:
        if trial.state in ("complete", "pruned") and trial.number not in best and trial.folder:
            for heavy in work.heavy:
                shutil.rmtree(work.folder / trial.folder / heavy, ignore_errors=True)


class _Report:
    """How an objective talks to its trial."""

    def __init__(self, claim: Claim, interrupted: Callable[[], bool]) -> None:
        self.number, self.worker = claim.number, claim.worker
        self.worse = self.asked = False
        self._claim, self._interrupted = claim, interrupted

    def step(self, step: int) -> None:
        self._claim.steps = max(self._claim.steps, step)

    def validated(self, step: int, value: float) -> None:
        self.worse = self._claim.report(step, value) or self.worse

    def measured(self, scores: Mapping[str, float]) -> None:
        self._claim.note("scores", {name: float(value) for name, value in scores.items()})

    def stopped(self) -> bool:
        return self.called_off() or self.worse

    def called_off(self) -> bool:
        self.asked = self.asked or self._interrupted()
        return self.asked or self._claim.lost

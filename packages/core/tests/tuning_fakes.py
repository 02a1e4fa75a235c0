"""Objectives of searches that take no time, and a search to be killed.

Run as a script, it searches.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.errors import DataError, InterruptedRunError
from cellseg.events import Event
from cellseg.tuning.options import SearchOptions
from cellseg.tuning.search import Tuned, address_of, begin, points_of, result, search
from cellseg.tuning.space import Space
from cellseg.tuning.study import Study
from cellseg.tuning.worker import Report, Work, anything

SPACE = Space.of({"x": {"low": 0.0, "high": 8.0}, "kind": ["a", "b"], "n": {"low": 1, "high": 9}})


@dataclass(frozen=True)
class Parabola:
    """Highest at x = 3 with kind a; counts the steps that it does in its folder."""

    steps: int = 0
    seconds: float = 0.0
    fails_from: float = 9.0
    """From which x on it raises."""

    def __call__(self, options: Mapping[str, Any], folder: Path, report: Report) -> float:
        with (folder / "began").open("a") as file:
            file.write(f"{os.getpid()}\n")
        score = float(-((options["x"] - 3) ** 2) + (options["kind"] == "a"))
        if options["x"] >= self.fails_from:
            raise DataError(f"x is {options['x']:.3g}")
        counter = folder / "steps"
        done = int(counter.read_text() or 0) if counter.exists() else 0
        for step in range(done + 1, self.steps + 1):
            time.sleep(self.seconds)
            report.step(step)
            report.validated(step, score)
            counter.write_text(str(step))
            if report.stopped():
                raise InterruptedRunError("Stopped; the state is saved.")
        report.measured({"score": score})
        (folder / "model").mkdir(exist_ok=True)
        return score


class DiesOnce:
    """Kills its process in the first trial."""

    def __call__(self, options: Mapping[str, Any], folder: Path, report: Report) -> float:
        there = folder.parent / "died"
        if not there.exists():
            there.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return float(options["x"])


class Deadly:
    """Kills its process at one of three points."""

    def __call__(self, options: Mapping[str, Any], folder: Path, report: Report) -> float:
        if options["x"] == max(point["x"] for point in SPACE.drawn(3, 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return float(options["x"])


def run(
    folder: Path,
    objective: Any = Parabola(),
    *,
    space: Space = SPACE,
    seed: int = 0,
    emit: Callable[[Event], None] = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
    allow: Any = anything,
    maximise: bool = True,
    retry: bool = False,
    **options: Any,
) -> Tuned:
    """A search in ``folder``, begun or gone on with."""
    how = SearchOptions.model_validate(options)
    folder.mkdir(exist_ok=True)
    address = address_of(folder, space, how, seed, maximise)
    points, _ = points_of(space, how, seed, allow)
    begin(address, {"request": "the same"}, points)
    if retry:
        Study(address).retry()
    keep = None if how.keep_trials else how.keep_models
    job = Work(address=address, folder=folder, objective=objective, keep=keep, allow=allow)
    search(job, how.workers, emit, interrupted)
    return result(Study(address))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Parabola(steps=3, seconds=0.2), trials=12, workers=2)

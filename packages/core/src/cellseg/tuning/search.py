"""A search from its first trial to its last, on this computer."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError, DataError, DeviceError, InterruptedRunError, PluginError
from cellseg.events import Emit, Failed, Note, Progress
from cellseg.tuning.options import DEFAULT_TRIALS, SearchOptions
from cellseg.tuning.space import Point, Space
from cellseg.tuning.study import Address, Study
from cellseg.tuning.trials import Trial, ranked, write_table
from cellseg.tuning.worker import Work, hopeless, start, work

DATABASE = "study.db"
TABLE = "trials.csv"
DEFAULT_NAME = "search"
_SECONDS = 0.5
_PATIENCE = 60
"""Seconds that another computer may take to write down the trials of a search that it began."""


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    options: Point
    """The best ones; empty where no trial was scored."""
    score: float | None
    """Theirs; it is what they were chosen by, so it is optimistic."""
    trials: tuple[Trial, ...]
    """All trials that were not replaced, by number."""
    importance: dict[str, float] = field(default_factory=dict)
    """How much of the differences between scores goes with each option; empty where too few trials
    were scored to say."""
    replaced: int = 0
    """How many were stopped, lost or repetitions, so that others stand in for them."""
    test: Mapping[str, Any] | None = None
    """What the best model scores on images that took no part: ``images``, how many,
    ``score``, the one that was searched for, and all ``scores``; or ``error``, why it could not be
    judged on them. None where it was not."""

    @property
    def best(self) -> Trial | None:
        """The best trial."""
        return next(
            (t for t in self.trials if t.score is not None and t.options == self.options), None
        )

    def count(self, state: str) -> int:
        """How many trials are in a state."""
        return sum(trial.state == state for trial in self.trials)


def address_of(
    folder: Path, space: Space, options: SearchOptions, seed: int, maximise: bool
) -> Address:
    """Where a search is kept, and how it goes about."""
    return Address(
        url=options.storage or f"sqlite:///{(folder / DATABASE).absolute()}",
        name=options.study or (folder.absolute().name if options.storage else DEFAULT_NAME),
        space=space,
        maximise=maximise,
        sampler=options.sampler,
        seed=seed,
        prune=options.pruned,
    )


def points_of(
    space: Space, options: SearchOptions, seed: int, allow: Callable[[Point], str]
) -> tuple[list[Point | None], list[str]]:
    """What the trials of a search try, None for what the sampler will find; and remarks.

    Raises:
        ConfigError: there is nothing to try.
    """
    wanted = options.trials or DEFAULT_TRIALS
    refused: dict[str, int] = {}

    def allowed(point: Point) -> bool:
        why = allow(point)
        if why:
            refused[why] = refused.get(why, 0) + 1
        return not why

    points: list[Point | None]
    if options.sampler == "grid":
        points = [point for point in space.grid() if allowed(point)]
    else:
        points = list(space.drawn(wanted, seed, allowed))
    notes = [
        f"{n} combination(s) that are not allowed are left out: {why}" for why, n in refused.items()
    ]
    if not points:
        raise ConfigError(f"None of the combinations is allowed. {' '.join(refused)}")
    if options.sampler != "grid" and len(points) < wanted:
        notes.append(f"There are only {len(points)} points to try, not {wanted}.")
    if options.sampler == "tpe":
        points = [None] * len(points)
    return points, notes


def begin(address: Address, notes: dict[str, Any], points: list[Point | None]) -> bool:
    """Write a search down; False where it was there, and is the same.

    Raises:
        DataError: another search has that name.
    """
    study = Study.create(address, notes)
    if study is not None:
        study.enlist(points)
        return True
    there = Study(address)
    waited = 0.0
    # Whoever makes a search writes the notes first, and then its trials.
    while not notes.keys() <= there.notes.keys() and not there.frozen() and waited < _PATIENCE:
        time.sleep(_SECONDS)
        waited += _SECONDS
    if {name: there.notes.get(name) for name in notes} != notes:
        raise DataError(
            f"The database already has another search called {address.name!r}.",
            hint="Choose another name: --study NAME",
        )
    while "enlisted" not in there.notes:
        if waited > _PATIENCE:
            there.enlist(points)  # whoever began it is gone
        time.sleep(_SECONDS)
        waited += _SECONDS
    return False


def search(
    job: Work, workers: int, emit: Emit, interrupted: Callable[[], bool], hint: str | None = None
) -> None:
    """Try all trials of a search that was begun, with others that do.

    Args:
        job: the search.
        workers: how many trials at once on this computer.
        emit: gets a Note for each trial that begins or ends, a Failed for each that fails, and a
            Progress.
        interrupted: asked often; True stops the search, with all that is under way given back.
        hint: how to go on with a search that was stopped.

    Raises:
        InterruptedRunError: it was stopped; the same search can be gone on with.
        PluginError: the objective cannot be sent to another process.
        DeviceError: a process died before it took a trial.
        DataError: nothing but failures happened.
    """
    study = Study(job.address)
    watch = _Watch(study, emit, job.folder)
    try:
        if workers == 1:
            _alone(job, watch, interrupted)
        else:
            _spread(job, workers, watch, interrupted)
    finally:
        watch.look()
    if any(trial.state in ("waiting", "running") for trial in watch.trials):
        if not hopeless(study):
            done = sum(trial.finished for trial in watch.trials)
            raise InterruptedRunError(
                f"Stopped after {done} of {watch.total} trials; the state is saved in "
                f"{job.folder}.",
                hint=hint,
            )
    failed = [trial for trial in watch.trials if trial.state == "failed"]
    if failed and hopeless(study):
        raise DataError(
            f"All of the first {len(failed)} trials failed. Trial {failed[-1].number}: "
            f"{failed[-1].message}",
            hint=f"All about it: {job.folder / failed[-1].folder}",
        )


def result(study: Study) -> Tuned:
    """What a search has found so far."""
    every = study.trials()
    kept = tuple(trial for trial in every if trial.state != "replaced")
    best = next(iter(ranked(kept, study.address.maximise)), None)
    return Tuned(
        options=best.options if best else {},
        score=best.score if best else None,
        trials=kept,
        importance=study.importance(),
        replaced=len(every) - len(kept),
    )


def _alone(job: Work, watch: _Watch, interrupted: Callable[[], bool]) -> None:
    def asked() -> bool:
        watch.look(seldom=True)
        return interrupted()

    work(job, asked)


def _spread(job: Work, workers: int, watch: _Watch, interrupted: Callable[[], bool]) -> None:
    try:
        sent = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PluginError(
            f"What is searched cannot be sent to another process: {error}",
            hint="Functions must stand at the top of a module; or use --workers 1.",
        ) from error
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = min(workers, max(1, watch.waiting()))

    def begun(number: int) -> Any:
        process = context.Process(target=start, args=(sent, stop, number, workers))
        process.start()
        return process

    running = {number: begun(number) for number in range(workers)}
    try:
        while running:
            if interrupted():
                stop.set()
            watch.look()
            for number, process in list(running.items()):
                process.join(_SECONDS / len(running))
                if process.exitcode is None:
                    continue
                del running[number]
                if process.exitcode and not stop.is_set():
                    watch.study.reclaim()
                    if not watch.study.claimed_by(process.pid or 0):
                        raise DeviceError(
                            "A worker process ended before it took a trial "
                            f"(exit code {process.exitcode}).",
                            hint="What it printed says why; or use --workers 1.",
                        )
                    running[number] = begun(number)
    finally:
        stop.set()
        for process in running.values():
            process.join()


class _Watch:
    """Tells what happens to the trials, whoever runs them."""

    def __init__(self, study: Study, emit: Emit, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.trials: list[Trial] = []
        self.total = 0
        self._emit = emit
        self._told: dict[int, str] = {}
        self._next = 0.0
        self._best: float | None = None
        for trial in study.trials():
            self._told[trial.number] = trial.state
            if trial.score is not None:
                self._is_best(trial.score)

    def waiting(self) -> int:
        """How many trials nobody has taken."""
        return sum(trial.state in ("waiting", "running") for trial in self.study.trials())

    def look(self, seldom: bool = False) -> None:
        """Tell what is new."""
        now = time.monotonic()
        if seldom and now < self._next:
            return
        self._next = now + _SECONDS
        every = self.study.trials()
        self.trials = [trial for trial in every if trial.state != "replaced"]
        self.total = len(self.trials)
        news = [trial for trial in every if self._told.get(trial.number) != trial.state]
        for trial in news:
            if trial.state == "running" and len(trial.options) < len(self.study.space.parameters):
                continue  # it has not said yet what it tries
            self._told[trial.number] = trial.state
            self._tell(trial)
        if any(trial.finished for trial in news):
            done = sum(trial.finished for trial in self.trials)
            self._emit(Progress(done, self.total))
            write_table(self.trials, self.study.space, self.folder / TABLE)

    def _tell(self, trial: Trial) -> None:
        name = f"Trial {trial.number}"
        if trial.state == "running":
            self._emit(Note(f"{name}: {said(trial.options)}"))
        elif trial.state == "failed":
            self._emit(Failed(name, trial.message))
        elif trial.state == "pruned":
            self._emit(Note(f"{name}: stopped early, worse than half of the others"))
        elif trial.state == "replaced":
            self._emit(Note(f"{name}: {trial.message}"))
        elif trial.score is not None:
            best = " (best so far)" if self._is_best(trial.score) else ""
            self._emit(Note(f"{name}: scores {trial.score:.4g}{best}"))

    def _is_best(self, score: float) -> bool:
        sign = 1 if self.study.address.maximise else -1
        best = self._best is None or sign * score > sign * self._best
        if best:
            self._best = score
        return best


def said(options: Point) -> str:
    """Options in one line."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in options.items()
    )

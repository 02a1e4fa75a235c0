"""Search for the options that score best: many trainings, one judge, the same images for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.errors import CellsegError, ConfigError, DataError, InterruptedRunError
from cellseg.events import Emit, Note
from cellseg.files import locked, remove, remove_leftovers
from cellseg.locks import WAIT, refuse_busy, sole
from cellseg.plugins import Plugins
from cellseg.splits import Splits
from cellseg.tuning.library import database_errors, lasting, load, masked
from cellseg.tuning.search import Tuned as Tuned
from cellseg.tuning.search import address_of, begin, points_of, search
from cellseg.tuning.searched import Group, refusal
from cellseg.tuning.space import Point, Space
from cellseg.tuning.study import Address, Study
from cellseg.tuning.worker import Objective, Work, anything
from cellseg.workflows.train_settings import TrainSettings
from cellseg.workflows.tune_objective import TrainAndJudge
from cellseg.workflows.tune_plan import (
    core_version,
    given_of,
    groups_again,
    objective_of,
    planned,
)
from cellseg.workflows.tune_request import TuneDir, TuneRequest
from cellseg.workflows.tune_results import finish, maximises
from cellseg.workflows.tune_settings import TuneSettings

_PATIENCE = 10.0
"""Seconds for which another process may tidy up the folder as it joins or leaves."""


def tune(
    plugins: Plugins,
    backend: str,
    data: Path | None,
    out: Path,
    *,
    space: Space | Mapping[str, object],
    settings: TuneSettings | None = None,
    training: TrainSettings | None = None,
    reader_options: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
    objective: Objective | None = None,
    seed: int | None = None,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Start a search in the new directory ``out``; everything is checked before it exists.

        tune(Plugins(), "microsam", data, out, space={"learning_rate": [1e-5, 1e-4]})

    Args:
        plugins: where to find the backend and the reader.
        backend: name of a trainer; with ``objective`` only a word for the report.
        data: images with labels, as some reader understands them; None with ``objective``.
        out: the directory to make.
        space: what to search: text as on the command line, lists of values, or
            ``{"low": 1e-5, "high": 1e-3, "log": True}``, by name. Options of prediction begin with
            ``predict.``.
        settings: how to search.
        training: core's options of the trainings, those that are fixed.
        reader_options: fixed options of the reader, by name.
        options: fixed options of the backend, by name, or by the backend's other names for any.
        objective: what to search instead of trainings. A function of the options, a folder and a
            ``cellseg.tuning.worker.Report`` that gives a score, higher is better; it must stand at
            the top of a module if there are several workers. The names in ``space`` are then its
            own, and ``metric`` does nothing.
        seed: of the points that are drawn, with ``objective``; else that of ``training`` is.
        emit: gets notes, a Progress after each trial, and a Failed for each that fails.
        interrupted: asked often; True stops the search with its state saved.

    Returns:
        What was found; failed trials are in it, with what went wrong.

    Raises:
        ConfigError: what is searched, or fixed, makes no sense.
        DataError: ``out`` holds something, the data cannot be used, or nothing but failures
            happened.
        PluginError: Optuna is not installed.
        InterruptedRunError: it was stopped; ``resume_tune`` goes on with it.
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    how = settings or TuneSettings()
    join = f"Join it: cellseg resume {out}; or choose another --output."
    if TuneDir(out).file.exists():
        refuse_busy(out, TuneDir(out).lock, join)
    TuneDir(out).check_free()
    if how.storage is not None and how.study is None:  # it must outlast the folder's name
        how = how.model_copy(update={"study": out.absolute().name})
    if how.storage is not None:
        how = how.model_copy(update={"storage": lasting(how.storage)})
    if objective is not None:
        if "metric" in how.model_fields_set:
            raise ConfigError("metric does nothing with an objective, which gives the score.")
        request = TuneRequest(
            backend=backend,
            space=space if isinstance(space, Space) else Space.of(space),
            search=given_of(how),
            seed=seed or 0,
            cellseg_version=core_version(),
        )
        plan = Plan(plugins, out, request, objective)
    else:
        if data is None:
            raise ConfigError("There is no data to train on.")
        if seed is not None:
            raise ConfigError("seed goes with an objective; trainings have their own.")
        checked = planned(
            plugins,
            backend,
            data,
            out,
            space,
            how,
            training or TrainSettings(),
            reader_options or {},
            options or {},
        )
        plan = Plan(
            plugins, out, checked.request, checked.objective, checked.groups, checked.splits
        )
    points, notes = plan.points()
    load()
    with sole(out, TuneDir(out).lock, hint=join, emit=emit):
        began = plan.begin(points)
    if not began:
        notes = [f"Joins the search {plan.address.name!r}, which is in the database already."]
    for note in notes:
        emit(Note(note))
    return plan.go(emit, interrupted)


def resume_tune(
    plugins: Plugins,
    out: Path,
    *,
    objective: Objective | None = None,
    workers: int | None = None,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Go on with a search that was stopped or killed, or join one that runs elsewhere.

    Trials that were under way go on from their checkpoints; those that failed are tried again.

    Args:
        plugins: where to find the backend and the reader.
        out: the directory of the search.
        objective: the same as it began with, if it did with one.
        workers: how many trials at once, if other than before.
        emit: as ``tune``.
        interrupted: as ``tune``.

    Raises:
        CellsegError: as ``tune``.
    """
    request = TuneDir(out).request()
    if request.function and objective is None:
        raise ConfigError(
            f"{out} is a search of a Python function.",
            hint="Go on with it in Python: resume_tune(plugins, out, objective=...)",
        )
    if workers is not None:
        request = request.model_copy(update={"search": {**request.search, "workers": workers}})
    if objective is None:
        objective = objective_of(plugins, TuneDir(out), request)
    plan = Plan(plugins, out, request, objective, groups_again(plugins, request))
    points, _ = plan.points()
    with database_errors(plan.address.url):
        _refuse_lost(plan.address, out)
        begin(plan.address, plan.notes, points)
        study = Study(plan.address)
        study.reclaim()
        retried = study.retry()
    if retried:
        emit(Note(f"{retried} failed trial(s) are tried again."))
    return plan.go(emit, interrupted)


def _refuse_lost(address: Address, out: Path) -> None:
    """Refuse to begin anew in the folders of trials whose database is gone."""
    if any(out.glob("trials/*")) and not Study.exists(address):
        raise DataError(
            f"{masked(address.url)} has no search called {address.name!r}, but {out} holds trials "
            "of it.",
            hint="Bring the database back, or start a new search in another --output.",
        )


@dataclass(frozen=True)
class Plan:
    """A search that is checked."""

    plugins: Plugins
    out: Path
    request: TuneRequest
    objective: Objective
    groups: Sequence[Group] = ()
    splits: Splits | None = None

    @property
    def maximise(self) -> bool:
        """Whether higher scores are better."""
        return self.request.function or maximises(self.request.how.metric)

    def allow(self, options: Mapping[str, Any]) -> str:
        """Why some options cannot be tried together; empty where they can."""
        return refusal(options, self.groups)

    def points(self) -> tuple[list[Point | None], list[str]]:
        """What the trials try; the same each time."""
        request = self.request
        return points_of(request.space, request.how, request.seed, self.allow)

    @property
    def address(self) -> Address:
        """Where the search is kept."""
        request = self.request
        return address_of(self.out, request.space, request.how, request.seed, self.maximise)

    @property
    def notes(self) -> dict[str, Any]:
        """What tells the search from others in the same database."""
        return {"request": self.request.digest()}

    def begin(self, points: list[Point | None]) -> bool:
        """Write everything down; False where the database has the search already.

        Raises:
            CellsegError: as ``tune``; nothing is left then.
        """
        folder = TuneDir(self.out)
        folder.check_free()  # again: another process may have begun
        remove_leftovers(self.out)
        try:
            if self.splits is not None:
                self.splits.save(folder.splits)
            folder.save(self.request)
            with database_errors(self.address.url):
                return begin(self.address, self.notes, points)
        except CellsegError:  # such as a database that cannot be reached
            for made in self.out.iterdir():
                if made != folder.lock:
                    remove(made)
            raise

    def go(self, emit: Emit, interrupted: Callable[[], bool]) -> Tuned:
        """Try the points, and write down what was found.

        Raises:
            CellsegError: as ``tune``.
        """
        lock = TuneDir(self.out).lock
        with locked(lock) as alone:
            if alone:
                remove_leftovers(self.out)
        # Several processes may search in one folder; nobody may begin another search there.
        with sole(self.out, lock, shared=True, hint=WAIT, patience=_PATIENCE, emit=emit):
            with database_errors(self.address.url):
                return self._go(emit, interrupted)

    def _go(self, emit: Emit, interrupted: Callable[[], bool]) -> Tuned:
        request, how, folder = self.request, self.request.how, TuneDir(self.out)
        study = Study(self.address)
        if not request.function:
            self._train_once(emit, interrupted)
        work = Work(
            address=self.address,
            folder=self.out,
            objective=self.objective,
            keep=None if how.keep_trials else how.keep_models,
            allow=anything if request.function else _Allowed(tuple(self.groups)),
        )
        hint = f"Go on with: cellseg resume {self.out}"
        if request.function:
            hint = "Go on with: resume_tune(...)"
        try:
            search(work, how.workers, emit, interrupted, hint)
        finally:
            found = finish(self.plugins, folder, request, study, self.objective, emit, interrupted)
        return found

    def _train_once(self, emit: Emit, interrupted: Callable[[], bool]) -> None:
        """Train the model that all trials share, where only options of prediction are searched."""
        objective = self.objective
        if not isinstance(objective, TrainAndJudge) or objective.trained is None:
            return
        if (objective.trained / "model" / BUNDLE_FILE).exists():
            return
        emit(Note("Only options of prediction are searched: one model is trained for all trials."))
        try:
            objective.run({}, objective.trained, _Once(interrupted))
        except InterruptedRunError as error:
            raise InterruptedRunError(
                str(error), hint=f"Go on with: cellseg resume {self.out}"
            ) from None


@dataclass(frozen=True)
class _Allowed:
    """``Allow`` for other processes."""

    groups: tuple[Group, ...]

    def __call__(self, options: Mapping[str, Any]) -> str:
        return refusal(options, self.groups)


@dataclass
class _Once:
    """A ``Report`` of a training that is no trial."""

    asked: Callable[[], bool]
    number: int = 0
    worker: int = 0

    def step(self, step: int) -> None:
        """Nobody counts."""

    def validated(self, step: int, value: float) -> None:
        """Nobody compares."""

    def measured(self, scores: Mapping[str, float]) -> None:
        """Nobody keeps them."""

    def stopped(self) -> bool:
        """Whether the user wants to stop."""
        return self.asked()

    def called_off(self) -> bool:
        """The same."""
        return self.asked()

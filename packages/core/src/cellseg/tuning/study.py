"""A search in a database that several processes and computers share.

All trials of a search are there from its beginning, waiting: with their points where these are
drawn in advance, else empty. A process that takes one makes it a running one, in one step. A trial
that is stopped, lost or a repetition fails, with a note, and another one waits in its stead; so as
many finish as were asked for, and none twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellseg.errors import DataError
from cellseg.machine import is_dead, me
from cellseg.tuning.claim import Claim, stands_in, successor_notes
from cellseg.tuning.library import GRACE, load, open_storage
from cellseg.tuning.space import Point, Space
from cellseg.tuning.trials import Trial, known, trial_of

_TWICE = "two processes gave the same trial back"


@dataclass(frozen=True)
class Address:
    """Which search: enough for another process to open it."""

    url: str
    name: str
    space: Space
    maximise: bool = True
    sampler: str = "random"
    seed: int = 0
    prune: bool = False


class Study:
    """A search that is open.

    Args:
        address: which; it must exist.
        worker: the number of this process among those of its computer, for the sampler's seed.

    Raises:
        DataError: the database has no search of that name.
        CellsegError: the database cannot be opened.
    """

    def __init__(self, address: Address, worker: int = 0) -> None:
        self.optuna = load()
        self.address, self.space = address, address.space
        self.storage = self.optuna.storages.get_storage(open_storage(address.url))
        pruners = self.optuna.pruners
        pruner = pruners.MedianPruner(n_min_trials=3) if address.prune else pruners.NopPruner()
        try:
            begun = self._begun(self.storage.get_study_id_from_name(address.name))
            self.optuna_study = self.optuna.load_study(
                study_name=address.name,
                storage=self.storage,
                sampler=self._sampler(1000 * address.seed + worker + 7919 * begun),
                pruner=pruner,
            )
        except KeyError:
            raise DataError(
                f"The database has no search called {address.name!r}.",
                hint="It was removed, or it is another database. Start a new search.",
            ) from None
        self._first_seen: dict[int, float] = {}

    @classmethod
    def create(cls, address: Address, notes: Mapping[str, object]) -> Study | None:
        """Make a search without trials; None where there is one of that name already."""
        optuna = load()
        storage = open_storage(address.url)
        directions = optuna.study.StudyDirection
        direction = directions.MAXIMIZE if address.maximise else directions.MINIMIZE
        try:
            number = storage.create_new_study([direction], address.name)
        except optuna.exceptions.DuplicatedStudyError:
            return None
        for name, value in notes.items():
            storage.set_study_user_attr(number, name, value)
        return cls(address)

    @staticmethod
    def exists(address: Address) -> bool:
        """Whether the database has a search of that name."""
        try:
            open_storage(address.url).get_study_id_from_name(address.name)
        except KeyError:
            return False
        return True

    @property
    def notes(self) -> dict[str, Any]:
        """What is written down about the whole search."""
        return dict(self.optuna_study.user_attrs)

    def note(self, name: str, value: object) -> None:
        """Write something down about the whole search."""
        self.optuna_study.set_user_attr(name, value)

    def enlist(self, points: Sequence[Point | None]) -> None:
        """Add the trials of a search, in their order; those that are there already are not added.

        Args:
            points: None for what the sampler finds when the trial begins.
        """
        there = {frozen.user_attrs.get("point") for frozen in self._frozen()}
        for number, point in enumerate(points):
            if number not in there:
                fixed = self.space.stored(point) if point is not None else {}
                self.optuna_study.enqueue_trial(fixed, user_attrs={"point": number})
        self.note("enlisted", True)

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        every = self._frozen()
        followed = {frozen.user_attrs.get("resumes") for frozen in every}
        return [trial_of(one, self.space, one.number in followed) for one in every]

    def importance(self) -> dict[str, float]:
        """How much of the differences between scores goes with each option; the sum is 1.

        PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv:2304.10255). Empty where no two complete
        trials differ.
        """
        if len({trial.score for trial in self.trials() if trial.score is not None}) < 2:
            return {}  # which the evaluator would call equally important
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
        try:
            found = self.optuna.importance.get_param_importances(
                self.optuna_study, evaluator=evaluator
            )
        except (ValueError, RuntimeError):  # too few trials
            return {}
        return {name: float(value) for name, value in found.items()}

    def claim(self, worker: int = 0) -> Claim | None:
        """Take the first trial that waits; None where none does."""
        states = self.optuna.trial.TrialState
        for frozen in self._frozen((states.WAITING,)):
            try:
                if not self.storage.set_trial_state_values(frozen._trial_id, states.RUNNING):
                    continue
            except self.optuna.exceptions.UpdateFinishedTrialError:
                continue
            self.storage.set_trial_user_attr(frozen._trial_id, "process", me())
            self.storage.record_heartbeat(frozen._trial_id)
            claim = Claim(self, frozen._trial_id, frozen.number, dict(frozen.user_attrs), worker)
            if not self._twice(frozen):
                return claim
            claim.drop(_TWICE)
        return None

    def reclaim(self) -> list[int]:
        """Let the trials of processes that are dead or silent wait again; their numbers."""
        states = self.optuna.trial.TrialState
        silent = set(self.storage._get_stale_trial_ids(self.optuna_study._study_id))
        lost = []
        for frozen in self._frozen((states.RUNNING,)):
            process = frozen.user_attrs.get("process")
            nameless = process is None and self._seen_for(frozen.number) > GRACE
            if frozen._trial_id in silent or nameless or is_dead(process):
                claim = Claim(self, frozen._trial_id, frozen.number, dict(frozen.user_attrs))
                if self._twice(frozen):
                    claim.drop(_TWICE)
                else:
                    claim.give_back("its process died or fell silent", died=True)
                lost.append(frozen.number)
        return lost

    def retry(self) -> int:
        """Let failed trials wait again; how many."""
        failed = [trial for trial in self.trials() if trial.state == "failed"]
        by_number = {frozen.number: frozen for frozen in self._frozen()}
        for trial in failed:
            frozen = by_number[trial.number]
            notes = successor_notes(frozen.number, frozen.user_attrs)
            self.optuna_study.enqueue_trial(known(frozen), user_attrs=notes)
        return len(failed)

    def claimed_by(self, pid: int) -> bool:
        """Whether a process of this machine has taken a trial."""
        mine = {**me(), "pid": pid, "born": None}
        processes = (frozen.user_attrs.get("process") for frozen in self._frozen())
        return any(p is not None and {**p, "born": None} == mine for p in processes)

    def busy(self) -> bool:
        """Whether a trial is still running somewhere."""
        return bool(self._frozen((self.optuna.trial.TrialState.RUNNING,)))

    def frozen(self) -> list[Any]:
        """All trials as Optuna has them, by number."""
        return self._frozen()

    def _twice(self, frozen: Any) -> bool:
        """Whether a trial goes on with one that an earlier trial already goes on with."""
        resumed = frozen.user_attrs.get("resumes")
        earlier = (each for each in self._frozen() if each.number < frozen.number)
        return resumed is not None and any(stands_in(each, resumed) for each in earlier)

    def _sampler(self, seed: int) -> Any:
        samplers = self.optuna.samplers
        if self.address.sampler != "tpe":  # the points are drawn already
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _begun(self, study: int) -> int:
        """How many trials have begun: a search that goes on must not draw its first ones again."""
        states = [frozen.state.name for frozen in self.storage.get_all_trials(study, False)]
        return len(states) - states.count("WAITING")

    def _seen_for(self, number: int) -> float:
        now = time.monotonic()
        return now - self._first_seen.setdefault(number, now)

    def _frozen(self, states: tuple[Any, ...] | None = None) -> list[Any]:
        found = self.storage.get_all_trials(
            self.optuna_study._study_id, deepcopy=False, states=states
        )
        return sorted(found, key=lambda frozen: frozen.number)

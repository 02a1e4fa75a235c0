"""A trial that this process has taken."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from cellseg.machine import me
from cellseg.tuning.library import GRACE, HEARTBEAT
from cellseg.tuning.space import MOST_POINTS, Parameter, Point, identity
from cellseg.tuning.trials import known

if TYPE_CHECKING:
    from cellseg.tuning.study import Study

_MOST_DEATHS = 3
"""Processes that a trial may cost without a step of progress."""
_MOST_REPEATS = 10
"""Suggestions in a row that cannot be used, before a finite space is looked through for others."""
_MOST_REFUSED = 200
"""The same for a space without end, before the trial is given up."""


def successor_notes(number: int, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of the trial that goes on with another one."""
    kept = {name: notes[name] for name in ("point", "folder") if name in notes}
    return kept | {"resumes": number, "begun_at": notes.get("steps", notes.get("begun_at", 0))}


def stands_in(frozen: Any, number: int) -> bool:
    """Whether a trial is in the place of the one of that number."""
    return number in (frozen.user_attrs.get("resumes"), frozen.user_attrs.get("instead"))


class Claim(AbstractContextManager["Claim"]):
    """A trial that this process has taken. As a context, it gives signs of life.

    Args:
        study: the search.
        trial_id: of the trial, in the database.
        number: of the trial, in the search.
        notes: what is written down about it.
        worker: the number of this process among those of its computer.
    """

    def __init__(
        self, study: Study, trial_id: int, number: int, notes: Mapping[str, Any], worker: int = 0
    ) -> None:
        self.study, self.number, self.notes, self.worker = study, number, notes, worker
        self.steps = int(notes.get("begun_at", 0))
        self.lost = False
        """Whether somebody else goes on with it, because this process was silent too long."""
        self._id = trial_id
        self._trial: Any = None
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        """Itself."""
        self._pulse.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give no more signs of life."""
        self._ended.set()
        self._pulse.join()

    def point(self) -> Point:
        """What to try: as drawn in advance, or else as the sampler finds now."""
        study = self.study
        self._trial = study.optuna.trial.Trial(study.optuna_study, self._id)
        for one in study.space.parameters:
            self._suggest(one)
        return study.space.restored(self._trial.params)

    def twin(self, point: Point) -> int | None:
        """The number of an earlier trial of the same point."""
        if "resumes" in self.notes:
            return None
        wanted, names = identity(point), {one.name for one in self.study.space.parameters}
        waited = time.monotonic() + GRACE
        while True:
            earlier = [f for f in self.study.frozen() if f.number < self.number]
            open_still = [
                f for f in earlier if f.state.name == "RUNNING" and not names <= f.params.keys()
            ]
            if not open_still or time.monotonic() > waited:
                break
            time.sleep(0.05)  # it is about to say what it tries
        for frozen in earlier:
            unused = frozen.user_attrs.get("unused")
            if not unused and identity(self.study.space.restored(known(frozen))) == wanted:
                return int(frozen.number)
        return None

    def report(self, step: int, value: float) -> bool:
        """Say how good the trial is after a step; whether it is worse than most others then."""
        if not math.isfinite(value):
            return False
        value = value if self.study.address.maximise else -value
        self._trial.report(value, step)
        return bool(self._trial.should_prune())

    def note(self, name: str, value: object) -> None:
        """Write something down about the trial, unless somebody else has ended it."""
        try:
            self.study.storage.set_trial_user_attr(self._id, name, value)
        except self.study.optuna.exceptions.UpdateFinishedTrialError:
            self.lost = True

    def complete(self, score: float) -> bool:
        """End with a score; False where the trial is no longer this process's."""
        return self._end("COMPLETE", [float(score)])

    def prune(self) -> bool:
        """End early."""
        values = self.study.storage.get_trial(self._id).intermediate_values
        return self._end("PRUNED", [values[max(values)]] if values else None)

    def fail(self, message: str) -> bool:
        """End without a score."""
        self.note("error", message)
        return self._end("FAIL", None)

    def give_back(self, why: str, died: bool = False) -> None:
        """Let another process go on with it."""
        frozen = self.study.storage.get_trial(self._id)
        notes = frozen.user_attrs
        progressed = int(notes.get("steps", 0)) > int(notes.get("begun_at", 0))
        deaths = (0 if progressed else int(notes.get("deaths", 0))) + died
        if deaths >= _MOST_DEATHS:
            self.fail(
                f"Its process died {deaths} times without a step in between, most likely because "
                "the memory is used up."
            )
            return
        if not any(stands_in(f, self.number) for f in self.study.frozen()):
            params = known(frozen)
            params = params if len(params) == len(self.study.space.parameters) else {}
            following = successor_notes(self.number, notes) | {"deaths": deaths}
            self.study.optuna_study.enqueue_trial(params, user_attrs=following)
        self.note("replaced", f"{why[0].upper()}{why[1:]}; it goes on as another trial.")
        self._end("FAIL", None)

    def drop(self, why: str) -> None:
        """Do not try it, and nothing in its stead."""
        self.note("unused", True)
        self.note("replaced", why)
        self._end("FAIL", None)

    def skip(self, why: str, allowed: Callable[[Point], bool], twin: int | None = None) -> bool:
        """Try another point in its stead; False where there is none left.

        Args:
            why: what is wrong with this one.
            allowed: whether a point may be tried.
            twin: the trial that it repeats.
        """
        repeats = int(self.notes.get("repeats", 0)) + 1
        found: Point | None = {}
        if repeats >= _MOST_REPEATS:
            found = self._unused(allowed)
            if found is None and self.study.space.size is None and repeats < _MOST_REFUSED:
                found = {}
        if found is not None:
            fixed = self.study.space.stored(found) if found else {}
            notes = {"repeats": repeats, "point": self.notes.get("point"), "instead": self.number}
            self.study.optuna_study.enqueue_trial(fixed, user_attrs=notes)
        if twin is not None:
            self.note("duplicate_of", twin)
        self.drop(why)
        return found is not None

    def _unused(self, allowed: Callable[[Point], bool]) -> Point | None:
        space = self.study.space
        if space.size is None or space.size > MOST_POINTS:
            return None
        every = self.study.frozen()
        tried = {identity(space.restored(known(frozen))) for frozen in every}
        left = [point for point in space.all_points() if identity(point) not in tried]
        random.Random(self.number).shuffle(left)
        return next((point for point in left if allowed(point)), None)

    def _suggest(self, one: Parameter) -> None:
        trial = self._trial
        if one.choices:
            trial.suggest_categorical(one.name, [one.key(value) for value in one.choices])
        elif one.whole:
            trial.suggest_int(one.name, one.low, one.high, step=one.step or 1, log=one.log)
        else:
            trial.suggest_float(one.name, one.low, one.high, step=one.step, log=one.log)

    def _end(self, state: str, values: list[float] | None) -> bool:
        states = self.study.optuna.trial.TrialState
        try:
            self.study.storage.set_trial_state_values(self._id, states[state], values)
        except self.study.optuna.exceptions.UpdateFinishedTrialError:
            self.lost = True
            return False
        return True

    def _beat(self) -> None:
        told = self.steps
        while not self._ended.wait(HEARTBEAT):
            # Another computer ends the trial if the database stays away for long.
            with contextlib.suppress(self.study.optuna.exceptions.StorageInternalError):
                frozen = self.study.storage.get_trial(self._id)
                if frozen.state.name != "RUNNING" or frozen.user_attrs.get("process") != me():
                    self.lost = True
                    return
                self.study.storage.record_heartbeat(self._id)
                if self.steps != told:
                    told = self.steps
                    self.note("steps", told)

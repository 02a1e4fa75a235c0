"""What is known of the trials of a search."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.texts import CsvWriter
from cellseg.tuning.space import Point, Space

_FOLDER = re.compile(r"trials/\d{1,12}", re.ASCII)

State: TypeAlias = Literal["waiting", "running", "complete", "pruned", "failed", "replaced"]
"""``replaced``: stopped, lost, or a repetition of another; a trial with a higher number stands in
for it, unless there are no more points."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point that is tried."""

    number: int
    state: State
    options: Point
    """What is tried; empty until a trial that is not drawn in advance begins."""
    score: float | None = None
    """Of a complete trial."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """All that was measured."""
    reported: Mapping[int, float] = field(default_factory=dict)
    """What validation said after each epoch."""
    message: str = ""
    """Why it failed or was replaced."""
    folder: str = ""
    """Where it ran, in the output folder of whoever ran it."""
    resumes: int | None = None
    """The trial that this one goes on with."""
    point: int | None = None
    """Which of the points that were asked for, from 0; it stays when another trial goes on."""
    where: str = ""
    """The name of the computer."""
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it came to an end by itself."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def seconds(self) -> float | None:
        """How long its last process took."""
        if self.started is None or self.ended is None or not self.finished:
            return None
        return (self.ended - self.started).total_seconds()


def trial_of(frozen: Any, space: Space, followed: bool = False) -> Trial:
    """A trial of Optuna in our words; ``followed`` where another one goes on with it."""
    notes = frozen.user_attrs
    state = frozen.state.name.lower()
    named: dict[str, State] = {
        "waiting": "waiting",
        "running": "running",
        "complete": "complete",
        "pruned": "pruned",
        "fail": "replaced" if followed or notes.get("replaced") else "failed",
    }
    process = notes.get("process")
    return Trial(
        number=frozen.number,
        state=named[state],
        options=space.restored(known(frozen)),
        score=frozen.value if state == "complete" else None,
        scores=notes.get("scores", {}),
        reported=dict(frozen.intermediate_values),
        message=str(notes.get("replaced") or notes.get("error") or ""),
        folder=folder_of(notes),
        resumes=notes.get("resumes"),
        point=notes.get("point"),
        where=str(process["machine"]).split(" ")[0] if process else "",
        started=frozen.datetime_start,
        ended=frozen.datetime_complete,
    )


def folder_of(notes: Mapping[str, Any]) -> str:
    """Where a trial runs, in the output folder of whoever runs it; empty where that is not known.

    Raises:
        DataError: it is elsewhere. A database may be somebody else's, and folders are removed.
    """
    name = str(notes.get("folder") or "")
    if name and not _FOLDER.fullmatch(name):
        raise DataError(
            f"The database says that a trial runs in {name[:80]!r}, which is no folder of a trial.",
            hint="It is damaged, or was changed. Start a new search.",
        )
    return name


def known(frozen: Any) -> dict[str, Any]:
    """What a trial of Optuna tries, also before it has begun: as it was drawn in advance."""
    return {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}


def ranked(trials: Iterable[Trial], maximise: bool) -> list[Trial]:
    """The complete trials, best first; of equal scores the earlier point, whatever was stopped."""
    scored = [trial for trial in trials if trial.score is not None]
    sign = -1 if maximise else 1

    def rank(trial: Trial) -> tuple[float, int, int]:
        point = trial.number if trial.point is None else trial.point
        return sign * (trial.score or 0.0), point, trial.number

    return sorted(scored, key=rank)


def write_table(trials: Sequence[Trial], space: Space, target: Path) -> None:
    """Write ``trials.csv``: one line for each trial that was not replaced, by number.

    Raises:
        StorageError: it cannot be written.
    """
    names = [one.name for one in space.parameters]
    measured = sorted({name for trial in trials for name in trial.scores})
    buffer = io.StringIO()
    writer = CsvWriter(buffer)
    writer.writerow(["trial", "state", "score", *names, "seconds", "folder", "message", *measured])
    for trial in trials:
        if trial.state == "replaced":
            continue
        values = [_cell(trial.options.get(name, "")) for name in names]
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        score = "" if trial.score is None else trial.score
        row = [trial.number, trial.state, score, *values, seconds, trial.folder, trial.message]
        writer.writerow([*row, *(trial.scores.get(name, "") for name in measured)])
    write_atomic(target, buffer.getvalue())


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)

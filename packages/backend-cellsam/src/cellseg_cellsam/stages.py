"""Two trainings, one after the other, that are one run.

checkpoint/
    stages.json               how many epochs stage 1 has; a run that is prolonged keeps it
    stage1/                   what ``cellseg.torch.training`` keeps of stage 1
    stage1/model/             the model as stage 1 left it, as ``stored`` writes one
    stage1.json               what else stage 1 found; it is there when stage 1 is done
    stage2/                   what is kept of stage 2
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cellseg import TrainJob
from cellseg.errors import ConfigError, DataError
from cellseg.events import Checkpointed, Event, Progress, Validated
from cellseg.files import write_atomic
from cellseg_cellsam.options import CellSamOptions

Name = Literal["stage1", "stage2"]


def shares_of(job: TrainJob[CellSamOptions]) -> tuple[int, int]:
    """The epochs of stage 1 and of stage 2. The first call of a run decides, and writes it down; a
    run that is prolonged later prolongs its last stage.

    Raises:
        ConfigError: the options ask for more epochs than there are, or there are fewer than stage 1
            has already.
        DataError: what was written is damaged.
    """
    if job.options.stage != "both" or not job.epochs:
        return job.options.shares(job.epochs)
    file = job.checkpoint / "stages.json"
    if not file.exists():
        first, second = job.options.shares(job.epochs)
        write_atomic(file, json.dumps({"stage1_epochs": first}) + "\n")
        return first, second
    written: object = _read(file).get("stage1_epochs")
    if not isinstance(written, int):
        raise DataError(f"{file} does not say how many epochs stage 1 has.", hint=_AGAIN)
    first = written
    if job.epochs < first:
        raise ConfigError(
            f"--epochs {job.epochs}: stage 1 of this run has {first}.",
            hint=f"Give at least {first}, or leave it out.",
        )
    return first, job.epochs - first


def job_of(
    job: TrainJob[CellSamOptions], name: Name, epochs: int, patience: int
) -> TrainJob[CellSamOptions]:
    """The job of one stage, with folders of its own for what it keeps and draws."""
    return replace(
        job,
        epochs=epochs,
        checkpoint=job.checkpoint / name,
        previews=job.previews / name,
        options=job.options.model_copy(update={"early_stopping": patience}),
    )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What stage 1 leaves to stage 2 beside the model."""

    steps: int
    epochs: int
    learnt: tuple[str, ...]
    """Names of the tensors of the model that it changed."""
    calibrated: Mapping[str, Any]
    """Options of prediction that suit the model as it left it."""

    def save(self, checkpoint: Path) -> None:
        """Write ``stage1.json``."""
        write_atomic(checkpoint / _FINISHED, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, checkpoint: Path) -> Finished | None:
        """Read what ``save`` wrote; None where stage 1 is not done.

        Raises:
            DataError: the file is damaged.
        """
        file = checkpoint / _FINISHED
        if not file.exists():
            return None
        values = _read(file)
        try:
            return cls(
                steps=int(values["steps"]),
                epochs=int(values["epochs"]),
                learnt=tuple(values["learnt"]),
                calibrated=dict(values["calibrated"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} is damaged: {error}", hint=_AGAIN) from error


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """Makes of what a stage reports what the run reports.

    Steps and epochs go on after those of the stage before, and metrics say which stage they are of:
    ``train/stage1/loss``, ``val/stage2/score``, ``stage2/learning_rate``.
    """

    name: Name
    steps: int = 0
    """Before it."""
    epochs: int = 0
    later: int = 0
    """Steps after it."""

    def __call__(self, event: Event) -> Event:
        """An event of the stage, or of what else reports, as one of the run."""
        if isinstance(event, Checkpointed):
            return Checkpointed(self.steps + event.step)
        if not isinstance(event, Progress | Validated):
            return event
        numbered = replace(
            event,
            step=self.steps + event.step,
            metrics={self._named(metric): value for metric, value in event.metrics.items()},
            epoch=None if event.epoch is None else self.epochs + event.epoch,
        )
        if isinstance(numbered, Validated):
            return replace(numbered, monitor=numbered.monitor and self._named(numbered.monitor))
        if numbered.total is None:
            return numbered
        return replace(numbered, total=self.steps + numbered.total + self.later)

    def _named(self, metric: str) -> str:
        kind, _, rest = metric.partition("/")
        return f"{kind}/{self.name}/{rest}" if rest else f"{self.name}/{kind}"


_FINISHED = "stage1.json"
_AGAIN = "Start a new run."


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint=_AGAIN) from error
    if not isinstance(values, dict):
        raise DataError(f"{file} is damaged.", hint=_AGAIN)
    return values

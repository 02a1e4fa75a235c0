"""What a trainer, the prediction engine or an exporter reports while it runs: emit, never print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """A step (of training) or an item (a tile of a prediction) is done.

    ``step`` counts from 1 and only grows, also across a resume.
    """

    step: int
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    epoch: int | None = None
    """Counts from 1; None where there are no epochs."""


@dataclass(frozen=True, slots=True)
class Validated:
    """A validation pass is done."""

    step: int
    metrics: Mapping[str, float]
    best: bool = False
    """True when these are the best weights so far."""
    epoch: int | None = None
    monitor: str = ""
    """The metric that says so, where there is one: higher is better."""


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """``TrainJob.checkpoint`` now holds a state that training can resume from."""

    step: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """Training goes on after ``step``; what was reported beyond it did not last."""

    step: int
    epochs: int | None = None
    """How many epochs the run now has in all; None means as before."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An item (a tile, an image) could not be done. The work goes on; the exit code tells."""

    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should read, in one line."""

    text: str


Event: TypeAlias = Progress | Validated | Checkpointed | Resumed | Failed | Note
Emit: TypeAlias = Callable[[Event], None]

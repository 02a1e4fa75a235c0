"""What ``cellseg.torch.training.fit`` trains, and how it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch  # noqa: TID253

from cellseg.events import Event

Relabel: TypeAlias = Callable[[Event], Event]
"""Puts what a training reports into the words of a longer one that it is a part of."""


class Learner(Protocol):
    """What a backend's ``torch.nn.Module`` needs in addition to be trained by ``fit``."""

    monitor: str
    """The metric that says which weights are best: higher is better. A learner whose parts learn at
    rates of their own also has ``rates``, a sequence of ``optimisation.Rate``."""

    def training_step(self, batch: Any) -> Mapping[str, torch.Tensor]:
        """Scalars of one batch, ``loss`` among them; the others are reported, as ``train/...``.
        The names are the same in every step: a term that a batch does not have is 0."""

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """Metrics of one batch as fractions, ``{"f1": (2 * tp, 2 * tp + fp + fn)}``: numerators
        and denominators are summed over all batches before they are divided."""

    def write_previews(self, directory: Path, epoch: int) -> None:
        """Draw what the last validation saw, and none before it; called after those that
        ``preview_every`` asks for."""


def as_it_is(event: Event) -> Event:
    """For a training that is all there is."""
    return event

"""When to stop a training that brings nothing new."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from cellseg.errors import ConfigError

Mode: TypeAlias = Literal["max", "min"]


class EarlyStopping:
    """Counts evaluations without a better score.

    With several metrics it waits as long as any of them gets better. A score that is NaN is not
    better than anything.

    Args:
        patience: stop after this many evaluations in a row without a better score.
        min_delta: a score must be better by more than this.
        mode: whether more or less is better; a mapping says it for each of several metrics.
        patience_share: wait at least this share of the evaluations up to the best one: 0.5 gives a
            training that was still learning at the hundredth fifty more. 0 waits ``patience`` only.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self,
        patience: int = 15,
        min_delta: float = 0.0,
        mode: Mode | Mapping[str, Mode] = "max",
        *,
        patience_share: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ConfigError(f"patience {patience}: expected 1 or more.")
        if not (min_delta >= 0 and patience_share >= 0):
            raise ConfigError("min_delta and patience_share must not be negative.")
        single = isinstance(mode, str)
        self._modes: dict[str, str] = {"": str(mode)} if single else dict(mode)  # type: ignore[arg-type]
        wrong = [each for each in self._modes.values() if each not in ("max", "min")]
        if wrong or not self._modes:
            raise ConfigError(f"mode {mode!r}: expected 'max' or 'min', or one for each metric.")
        self.patience, self.min_delta, self.patience_share = patience, min_delta, patience_share
        self._single = single
        self._best: dict[str, float] = {}
        self.count = 0
        """Evaluations so far."""
        self.best_at = 0
        """The number of the evaluation, from 1, that was last better; 0 before there is one."""

    @property
    def stale(self) -> int:
        """Evaluations since the last that was better."""
        return self.count - self.best_at

    @property
    def best(self) -> float | dict[str, float] | None:
        """The best score; of several metrics, that of each. None before there is one."""
        if not self._best:
            return None
        return self._best[""] if self._single else dict(self._best)

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.stale >= max(self.patience, self.patience_share * self.best_at)

    def step(self, score: float | Mapping[str, float]) -> bool:
        """Take the score of an evaluation.

        Args:
            score: a number; where ``mode`` is a mapping, one for each of its metrics.

        Returns:
            Whether to stop.

        Raises:
            ConfigError: the metrics are not those of ``mode``.
        """
        scores = dict(score) if isinstance(score, Mapping) else {"": score}
        if set(scores) != set(self._modes):
            wanted = "a number" if self._single else ", ".join(self._modes)
            got = ", ".join(scores) if isinstance(score, Mapping) else "a number"
            raise ConfigError(f"EarlyStopping wants {wanted}, and got {got}.")
        self.count += 1
        better = [name for name, value in scores.items() if self._is_better(name, float(value))]
        for name in better:
            self._best[name] = float(scores[name])
        if better:
            self.best_at = self.count
        return self.should_stop

    def state_dict(self) -> dict[str, Any]:
        """What another one needs to go on from here; plain numbers by name."""
        return {"best": dict(self._best), "count": self.count, "best_at": self.best_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._best = {name: float(value) for name, value in state["best"].items()}
        self.count, self.best_at = int(state["count"]), int(state["best_at"])

    def _is_better(self, name: str, value: float) -> bool:
        if math.isnan(value):
            return False
        if name not in self._best:
            return True
        gain = value - self._best[name]
        return (gain if self._modes[name] == "max" else -gain) > self.min_delta

"""Numbers by epoch, kept in a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cellseg.errors import ConfigError, DataError
from cellseg.files import write_atomic

FILE = "metrics.json"


class Best(NamedTuple):
    """The best value of a metric."""

    epoch: int
    value: float


class MetricsTracker:
    """Remembers metrics, and writes them to a file when told to.

    A tracker goes on from the file that is there: a training that was resumed has one history.

    Args:
        save_dir: the folder of the file; made when it is first written.
        name: of the file.

    Raises:
        DataError: the file that is there holds no metrics.
    """

    def __init__(self, save_dir: str | Path, name: str = FILE) -> None:
        self.path = Path(save_dir) / name
        self._rows = _read(self.path) if self.path.exists() else {}

    def update(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Remember metrics of an epoch; those of one name and epoch are replaced.

        Args:
            metrics: numbers by name; NaN and infinity are kept, and written as null.
            epoch: from 0 or 1 on, as the caller counts.

        Raises:
            ConfigError: the epoch is negative, or a metric is no number.
        """
        if epoch < 0:
            raise ConfigError(f"epoch {epoch}: epochs count from 0 or 1.")
        found = {}
        for name, value in metrics.items():
            try:
                found[name] = float(value)
            except (TypeError, ValueError):
                raise ConfigError(f"The metric {name!r} is no number: {value!r}.") from None
        self._rows.setdefault(int(epoch), {}).update(found)

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """For each metric its epochs and values, in the order of the epochs."""
        found: dict[str, list[tuple[int, float]]] = {}
        for epoch, row in sorted(self._rows.items()):
            for name, value in row.items():
                found.setdefault(name, []).append((epoch, value))
        return found

    def best(self, name: str, mode: Literal["max", "min"] = "max") -> Best:
        """The best value of a metric, and the epoch that first had it.

        Args:
            name: of the metric.
            mode: whether more or less is better.

        Raises:
            ConfigError: there is no such metric, or all its values are NaN.
        """
        measured = [(e, v) for e, v in self.history.get(name, []) if not math.isnan(v)]
        if not measured:
            known = ", ".join(sorted(self.history)) or "none"
            raise ConfigError(f"There is no value of the metric {name!r}.", hint=f"Known: {known}.")
        chosen = max if mode == "max" else min
        value = chosen(v for _, v in measured)
        return Best(next(epoch for epoch, v in measured if v == value), value)

    def save_metrics(self) -> Path:
        """Write ``{"epochs": [{"epoch": 1, "loss": 0.5, ...}, ...]}``, whole or not at all.

        Returns:
            The file.

        Raises:
            StorageError: it cannot be written.
        """
        rows = [
            {"epoch": epoch} | {n: v if math.isfinite(v) else None for n, v in row.items()}
            for epoch, row in sorted(self._rows.items())
        ]
        write_atomic(self.path, json.dumps({"epochs": rows}, indent=2) + "\n")
        return self.path


def _read(path: Path) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        for row in content["epochs"]:
            values = {n: math.nan if v is None else float(v) for n, v in row.items()}
            rows[int(values.pop("epoch"))] = values
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: holds no metrics of a MetricsTracker.",
            hint="Remove it, or choose another save_dir.",
        ) from error
    return rows

"""The metrics of the stages by epoch, from what a run remembers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from cellseg.events import Event, Progress, Validated
from cellseg.files import write_atomic
from cellseg.runs import RunDir

STAGES = ("stage1", "stage2")
"""What the names of the metrics of a stage have after ``train/`` or ``val/``."""


def by_epoch(events: Iterable[Event], stage: str) -> list[dict[str, Any]]:
    """The metrics of each epoch of a stage.

    Args:
        events: of a run.
        stage: ``stage1`` or ``stage2``.

    Returns:
        For each epoch its number from 1 on, ``train/...`` (means over its steps) and, where it was
        validated, ``val/...``.
    """
    steps: dict[int, dict[str, list[float]]] = {}
    validated: dict[int, dict[str, float]] = {}
    for event in events:
        if not isinstance(event, Progress | Validated) or event.epoch is None:
            continue
        of_stage = {
            name.replace(f"{stage}/", "", 1): value
            for name, value in event.metrics.items()
            if f"/{stage}/" in name or name.startswith(f"{stage}/")
        }
        if isinstance(event, Validated):
            validated.setdefault(event.epoch, {}).update(of_stage)
            continue
        for name, value in of_stage.items():
            steps.setdefault(event.epoch, {}).setdefault(name, []).append(value)
    first = min(steps, default=1)
    return [
        {
            "epoch": epoch - first + 1,
            **{name: _plain(fmean(values)) for name, values in row.items()},
            **{name: _plain(value) for name, value in validated.get(epoch, {}).items()},
        }
        for epoch, row in sorted(steps.items())
    ]


def write_stage_metrics(runs: Mapping[str, RunDir], folder: Path) -> None:
    """Write ``stage1_metrics.json`` and ``stage2_metrics.json``: for each fold, its epochs.

    Args:
        runs: by the name of the fold.
        folder: of the files.

    Raises:
        StorageError: they cannot be written.
    """
    events = {name: run.events() for name, run in runs.items()}
    for stage in STAGES:
        content = {name: {"epochs": by_epoch(each, stage)} for name, each in events.items()}
        text = json.dumps(content, indent=2) + "\n"
        write_atomic(folder / f"{stage}_metrics.json", text)


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

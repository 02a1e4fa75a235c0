"""The report of a cross-validation: scores by fold and over the folds, images, comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.metrics import THRESHOLDS, mean_ap_name
from cellseg.report.curves import Tick
from cellseg.report.page import versions, write_page

if TYPE_CHECKING:
    from cellseg.workflows.cross_validate_results import CrossValidation, FoldScores
    from cellseg.workflows.judge import Judged

_MOST_ROWS = 2000
_PLOTTED = ("f1@0.50", mean_ap_name(THRESHOLDS))
_COLUMNS = ("n_true", "n_pred", *_PLOTTED, "precision@0.50", "recall@0.50", "ctc_seg")
_TOO_WIDE = "pq@0.50"
"""What the table of folds has no room for; it is among the comparisons and in the files."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 260, 44, 14, 14, 40
_TRAINED, _BEFORE = 0, 1
"""Colours of the style sheet."""


@dataclass(frozen=True, slots=True)
class Dots:
    """A score of each image, by fold, as plain geometry; the template draws it as inline SVG."""

    title: str
    folds: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    """Of the vertical axis."""
    points: tuple[tuple[float, float, int, str], ...]
    """``(x, y, colour, what it says)`` of each image."""
    bars: tuple[tuple[float, float, float, int, str], ...]
    """``(from x, to x, y, colour, what it says)`` of each fold."""
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    source: str
    fold: int
    scores: Mapping[str, float]
    before: Mapping[str, float] | None

    @property
    def empty(self) -> bool:
        return not self.scores["n_true"] and not self.scores["n_pred"]


def write_cross_validation_report(found: CrossValidation, request: Mapping[str, Any]) -> Path:
    """Write ``report.html`` of a cross-validation: one HTML file that loads nothing else.

    Args:
        found: the scores.
        request: what was asked for, for the table of options.

    Returns:
        The page.

    Raises:
        StorageError: it cannot be written.
    """
    from cellseg.workflows.cross_validate_results import MAIN, p_text

    options = {
        "backend": found.backend,
        "data": found.data,
        "folds": len(found.folds),
        **request["settings"],
        "reader": request["reader"],
        **request["options"],
    }
    rows = _rows(found.folds)
    before = found.before
    page = {
        "name": found.folder.path.absolute().name,
        "found": found,
        "count": sum(len(fold.sources) for fold in found.folds),
        "aggregated": found.aggregated,
        "before": before,
        "main": [name for name in MAIN if name in found.aggregated and name != _TOO_WIDE],
        "dots": [_dots(found.folds, name) for name in _PLOTTED if name in found.aggregated],
        "compared": before is not None,
        "rows": rows[:_MOST_ROWS],
        "hidden": len(rows) - _MOST_ROWS,
        "columns": [name for name in _COLUMNS if name in found.aggregated],
        "ranking": _PLOTTED[1],
        "p_text": p_text,
        "options": options,
        "versions": versions(request["cellseg_version"], found.backend, request["backend_version"]),
    }
    return write_page("cross_validation.html.j2", found.folder.report, page)


def _rows(folds: Sequence[FoldScores]) -> list[_Row]:
    """All held-out images, the worst first; those without any object last."""
    rows = [
        _Row(
            name,
            fold.sources[name],
            fold.fold,
            scores,
            fold.before.per_image[name] if fold.before is not None else None,
        )
        for fold in folds
        for name, scores in fold.judged.per_image.items()
    ]
    return sorted(rows, key=lambda row: (row.empty, row.scores[_PLOTTED[1]], row.name))


def _dots(folds: Sequence[FoldScores], name: str) -> Dots:
    column = (_WIDTH - _LEFT - _RIGHT) / len(folds)
    points: list[tuple[float, float, int, str]] = []
    bars: list[tuple[float, float, float, int, str]] = []
    ticks = []
    for number, fold in enumerate(folds):
        left = _LEFT + number * column
        ticks.append(Tick(round(left + column / 2, 1), str(fold.fold)))
        shown = [(fold.before, _BEFORE, "before")] if fold.before is not None else []
        shown.append((fold.judged, _TRAINED, "trained"))
        width = column / len(shown)
        for place, (judged, colour, what) in enumerate(shown):
            start = left + (place + 0.12) * width
            points += _points(judged, name, (start, 0.76 * width), colour, what)
            score = judged.scores[name]
            if not math.isnan(score):
                text = f"fold {fold.fold}, {what}: {score:.3f}"
                bars.append(
                    (round(start, 1), round(start + 0.76 * width, 1), _y(score), colour, text)
                )
    marks = tuple(Tick(_y(value / 5), f"{value / 5:g}") for value in range(6))
    return Dots(name, tuple(ticks), marks, tuple(points), tuple(bars))


def _points(
    judged: Judged, name: str, place: tuple[float, float], colour: int, what: str
) -> list[tuple[float, float, int, str]]:
    """The images that have the score, from left to right in the order of their names."""
    start, width = place
    values = [
        (image, scores[name])
        for image, scores in sorted(judged.per_image.items())
        if scores["n_true"] and not math.isnan(scores[name])
    ]
    step = width / max(len(values), 1)
    return [
        (round(start + (i + 0.5) * step, 1), _y(value), colour, f"{image}, {what}: {value:.3f}")
        for i, (image, value) in enumerate(values)
    ]


def _y(value: float) -> float:
    """Where a score from 0 to 1 is."""
    bottom = _HEIGHT - _BOTTOM
    return round(bottom - min(max(value, 0.0), 1.0) * (bottom - _TOP), 1)

"""The report of an evaluation: scores, and pictures of where they were lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from cellseg.data import LazyArray
from cellseg.report.curves import Chart, Series, chart
from cellseg.report.page import data_uri, versions, write_page

WORST = 12
"""How many images are shown as pictures."""
_MOST_ROWS = 2000
_FORMULAS = {
    "n_true": "objects in the truth",
    "n_pred": "objects in the prediction",
    "precision": "TP / (TP + FP)",
    "recall": "TP / (TP + FN)",
    "f1": "2 TP / (2 TP + FP + FN)",
    "ap": "TP / (TP + FP + FN)",
    "mSA": "mean of ap over the thresholds",
    "sq": "mean IoU of the matches",
    "pq": "panoptic quality, sq × f1",
    "ctc_seg": "SEG of the Cell Tracking Challenge",
    "dice_foreground": "Dice of all objects against background",
    "are": "adapted Rand error; 0 is best",
    "are_precision": "adapted Rand precision",
    "are_recall": "adapted Rand recall",
    "voi_split": "variation of information by splits, bits; 0 is best",
    "voi_merge": "variation of information by merges, bits; 0 is best",
}
_CURVES = ("precision", "recall", "f1", "ap")


class ScoredImage(Protocol):
    """The scores of one image."""

    @property
    def name(self) -> str:
        """Unique among the images."""

    @property
    def scores(self) -> Mapping[str, float]:
        """Scores by name; the part after ``@`` is the IoU threshold."""


class Scored(Protocol):
    """What ``cellseg.workflows.evaluate`` returns, as far as the page needs it."""

    @property
    def images(self) -> Sequence[ScoredImage]:
        """One entry for each image."""

    @property
    def pooled(self) -> Mapping[str, float]:
        """The scores of all images together, by the same names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What to draw of one image; arrays may be lazy, only what is shown is read."""

    prediction: LazyArray
    """``(z, y, x)``, integers, 0 is background."""
    truth: LazyArray
    """``(z, y, x)``, integers, 0 is background."""
    image: LazyArray | None = None
    """``(c, z, y, x)``; without it, contours are drawn on black."""


Views: TypeAlias = Callable[[str], View | None]
"""Finds an image by its name; None where there is nothing to show."""


@dataclass(frozen=True, slots=True)
class _Picture:
    name: str
    uri: str
    score: float
    remark: str


def write_evaluation_report(
    evaluation: Scored,
    target: Path,
    *,
    images: Views | None = None,
    options: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the scores as one HTML file that loads nothing else.

    The images come worst first, by the mean of AP over the thresholds (``mSA``); images where
    nothing is and nothing was found come last. The worst twelve are shown with the contours of
    prediction and truth.

    Args:
        evaluation: the scores.
        target: the file to write; replaced if it is there.
        images: finds the arrays to draw; without it, the page has no pictures.
        options: what the evaluation was asked for, to be listed.
        notes: what the reader should know, one line each.

    Returns:
        ``target``.

    Raises:
        StorageError: the page cannot be written.
        DataError: an image to be shown cannot be read, or its shapes do not agree.
    """
    ranking = rank_by(evaluation.pooled)
    rows = worst_first(evaluation.images, ranking)
    columns = _columns(evaluation.pooled)
    page = {
        "ranking": ranking,
        "nan": math.nan,
        "headline": _headline(evaluation.pooled, ranking),
        "pooled": evaluation.pooled,
        "formulas": _FORMULAS,
        "plain": [name for name in evaluation.pooled if "@" not in name or name == ranking],
        "by_threshold": _by_threshold(evaluation.pooled),
        "chart": _chart(evaluation.pooled),
        "columns": columns,
        "hidden": len(evaluation.pooled) - len(columns),
        "rows": rows[:_MOST_ROWS],
        "count": len(rows),
        "pictures": _pictures(rows[:WORST], images, ranking) if images else [],
        "options": options or {},
        "notes": notes,
        "versions": versions(),
    }
    return write_page("evaluation.html.j2", target, page)


def rank_by(scores: Mapping[str, float]) -> str:
    """The score that images are ranked by: ``mSA``, or the first there is."""
    return next((name for name in scores if name.startswith("mSA")), next(iter(scores), ""))


def worst_first(images: Sequence[ScoredImage], ranking: str) -> list[ScoredImage]:
    """The images by rising score; those with nothing to find and nothing found come last."""

    def place(image: ScoredImage) -> tuple[bool, float, str]:
        value = image.scores.get(ranking, math.nan)
        return is_empty(image) or math.isnan(value), value, image.name

    return sorted(images, key=place)


def is_empty(image: ScoredImage) -> bool:
    """Whether there is nothing to find, and nothing was found."""
    return image.scores.get("n_true") == 0 and image.scores.get("n_pred") == 0


def _headline(scores: Mapping[str, float], ranking: str) -> list[tuple[str, float]]:
    wanted = ("f1@0.50", ranking, "precision@0.50", "recall@0.50", "pq@0.50", "ctc_seg")
    return [(name, scores[name]) for name in wanted if name in scores]


def _columns(scores: Mapping[str, float]) -> list[str]:
    """What a row of the table shows: all would be more than fits a screen."""
    wanted = ("mSA", "f1@0.50", "f1@0.75", "precision@0.50", "recall@0.50", "pq@0.50", "ctc_seg")
    wanted = (*wanted, "dice_foreground", "n_true", "n_pred")
    return [name for want in wanted for name in scores if name == want or name.split("@")[0] == want]


def _by_threshold(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The scores that depend on a threshold, as ``{threshold: {name: value}}``."""
    table: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        score, _, threshold = name.partition("@")
        if threshold and score != "mSA" and score != "rq":
            table.setdefault(threshold, {})[score] = value
    return table


def _chart(scores: Mapping[str, float]) -> Chart | None:
    table = _by_threshold(scores)
    if len(table) < 2:
        return None
    series = [
        Series(name, [(float(t), row[name]) for t, row in table.items() if name in row], True)
        for name in _CURVES
    ]
    return chart("Scores by threshold", series, "IoU threshold", whole=False)


def _pictures(rows: Sequence[ScoredImage], images: Views, ranking: str) -> list[_Picture]:
    pictures = []
    for row in rows:
        view = images(row.name)
        if view is not None:
            png, remark = draw(view)
            score = row.scores.get(ranking, math.nan)
            pictures.append(_Picture(row.name, data_uri(png), score, remark))
    return pictures


def draw(view: View) -> tuple[bytes, str]:
    """A PNG of one image, and a remark on which part of it is shown, if not all."""
    from cellseg.report.overlay import overlay, plane_of, window_of

    remarks = []
    depth, height, width = view.truth.shape
    z = plane_of(view.truth)
    y, x = window_of(view.truth.shape)
    if depth > 1:
        remarks.append(f"slice {z} of {depth}")
    if (y.stop - y.start, x.stop - x.start) != (height, width):
        remarks.append(f"the middle {y.stop - y.start} × {x.stop - x.start} of {height} × {width}")
    plane = slice(z, z + 1)
    image = view.image
    if image is not None:
        image = image[slice(0, image.shape[0]), plane, y, x]
    png = overlay(image, view.prediction[plane, y, x], view.truth[plane, y, x])
    return png, ", ".join(remarks)

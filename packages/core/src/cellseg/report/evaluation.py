"""The report of an evaluation: scores, and pictures of where they were lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cellseg.data import Dataset, LazyArray
from cellseg.errors import DataError
from cellseg.metrics import mean_ap_name
from cellseg.report.curves import Chart, Series, chart
from cellseg.report.page import data_uri, versions, write_page

if TYPE_CHECKING:
    from cellseg.plugins import Plugins
    from cellseg.workflows.evaluate import Evaluation, ImageScores

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
    "pq": "panoptic quality, sq times f1",
    "ctc_seg": "SEG of the Cell Tracking Challenge",
    "dice_foreground": "Dice of all objects against background",
    "are": "adapted Rand error; 0 is best",
    "are_precision": "adapted Rand precision",
    "are_recall": "adapted Rand recall",
    "voi_split": "variation of information by splits, bits; 0 is best",
    "voi_merge": "variation of information by merges, bits; 0 is best",
}
_CURVES = ("precision", "recall", "f1", "ap")


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
    evaluation: Evaluation,
    target: Path,
    *,
    images: Views | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the scores as one HTML file that loads nothing else.

    The images come worst first, by the mean of AP over the thresholds (``mSA``); images where
    nothing is and nothing was found come last. The worst twelve are shown with the contours of
    prediction and truth.

    Args:
        evaluation: the scores.
        target: the file to write; replaced if it is there.
        images: finds the arrays to draw, such as ``views_of(...)``; without it, the page has no
            pictures.
        notes: what the reader should know, one line each.

    Returns:
        ``target``.

    Raises:
        StorageError: the page cannot be written.
        DataError: an image to be shown cannot be read, or its shapes do not agree.
    """
    ranking = mean_ap_name(evaluation.settings.iou_thresholds)
    rows = evaluation.worst_first
    columns = _columns(evaluation.pooled)
    paths = {"prediction": evaluation.prediction, "truth": evaluation.truth}
    page = {
        "ranking": ranking,
        "headline": _headline(evaluation.pooled, ranking),
        "pooled": evaluation.pooled,
        "mean": evaluation.mean,
        "formulas": _FORMULAS,
        "plain": [name for name in evaluation.pooled if "@" not in name or name == ranking],
        "by_threshold": _by_threshold(evaluation.pooled),
        "chart": _chart(evaluation.pooled),
        "columns": columns,
        "hidden": len(evaluation.pooled) - len(columns),
        "rows": rows[:_MOST_ROWS],
        "count": len(rows),
        "pictures": _pictures(rows[:WORST], images, ranking) if images else [],
        "options": {**paths, **evaluation.settings.model_dump(mode="json")},
        "notes": notes,
        "versions": versions(),
    }
    return write_page("evaluation.html.j2", target, page)


def views_of(
    plugins: Plugins,
    evaluation: Evaluation,
    images: Path | None = None,
    reader: str = "auto",
    reader_options: Mapping[str, object] | None = None,
) -> Views:
    """Find what to draw of an evaluation: its label images again, and the images under them.

    Args:
        plugins: where to find the readers.
        evaluation: the scores.
        images: where the images are; None draws contours on black.
        reader: how to read the images; auto finds out from the path.
        reader_options: options of that reader, by name.

    Returns:
        A function from the name of a scored image to what to draw; it reads nothing yet.

    Raises:
        DataError: the paths cannot be read any more. The function raises it where there is no
            image for a name.
    """
    from cellseg.readers import open_dataset
    from cellseg.workflows.evaluate_pairs import label_pairs

    pairs = label_pairs(plugins, evaluation.prediction, evaluation.truth, evaluation.settings)
    named = {pair.name: pair for pair in pairs}
    samples: Dataset = []
    if images is not None:
        samples = open_dataset(plugins, images, reader, reader_options or {}, labelled=False)
    by_name = {sample.name: sample for sample in samples}
    if len(samples) == len(pairs) == 1:
        by_name = {pairs[0].name: samples[0]}

    def find(name: str) -> View:
        pair = named[name]
        if images is not None and name not in by_name:
            raise DataError(
                f"{images} has no image called {name!r}, which was scored.",
                hint="Images and labels of equal names belong together.",
            )
        image = by_name[name].image if images is not None else None
        return View(prediction=pair.prediction.labels, truth=pair.truth.labels, image=image)

    return find


def _headline(scores: Mapping[str, float], ranking: str) -> list[tuple[str, float]]:
    wanted = ("f1@0.50", ranking, "precision@0.50", "recall@0.50", "pq@0.50", "ctc_seg")
    return [(name, scores[name]) for name in wanted if name in scores]


def _columns(scores: Mapping[str, float]) -> list[str]:
    """What a row of the table shows: all would be more than fits a screen."""
    wanted = ["n_true", "n_pred", "mSA", "f1@0.50", "f1@0.75", "precision@0.50", "recall@0.50"]
    wanted += ["pq@0.50", "ctc_seg"]
    return [name for want in wanted for name in scores if want in (name, name.split("@")[0])]


def _by_threshold(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The scores that depend on a threshold, as ``{threshold: {name: value}}``."""
    table: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        score, _, threshold = name.partition("@")
        if threshold and score not in ("mSA", "rq", "sq"):
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
    return chart("Scores by threshold", series, "IoU threshold", whole=False, wide=False)


def _pictures(rows: Sequence[ImageScores], images: Views, ranking: str) -> list[_Picture]:
    pictures = []
    for row in rows:
        view = images(row.name)
        if view is None:
            continue
        try:
            png, remark = draw(view)
        except DataError as error:
            raise DataError(f"{row.name}: {error}", hint=error.hint) from error
        pictures.append(_Picture(row.name, data_uri(png), row.scores[ranking], remark))
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
        remarks.append(f"the middle {y.stop - y.start} x {x.stop - x.start} of {height} x {width}")
    plane = slice(z, z + 1)
    image = view.image
    if image is not None:
        image = image[slice(0, image.shape[0]), plane, y, x]
    png = overlay(image, view.prediction[plane, y, x], view.truth[plane, y, x])
    return png, ", ".join(remarks)

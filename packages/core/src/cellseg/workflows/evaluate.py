"""Score predicted label images against the truth, image by image and pooled."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from cellseg.classes import UNKNOWN
from cellseg.data import LazyArray
from cellseg.errors import DataError, UsageError
from cellseg.events import Emit, Progress
from cellseg.files import write_atomic
from cellseg.metrics import OverlapTable, Scores, Tally, mean_ap_name, overlaps, score, tally
from cellseg.plugins import Plugins
from cellseg.texts import CsvWriter
from cellseg.workflows.evaluate_pairs import LabelPair, label_pairs
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.evaluate_text import aligned, mean_of, plain, text_of

_ROWS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of one image, or of one frame of a movie."""

    name: str
    prediction: Path
    truth: Path
    scores: Scores
    """By name, see ``cellseg.metrics.score``; the part after ``@`` is the IoU threshold."""

    @property
    def empty(self) -> bool:
        """Whether there is no object in the truth, and none was predicted."""
        return self.scores["n_true"] == self.scores["n_pred"] == 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of all images."""

    prediction: Path
    truth: Path
    settings: EvaluateSettings
    images: tuple[ImageScores, ...]
    pooled: Scores
    """Of all objects and voxels of all images together: ratios of sums, not means of ratios."""
    mean: Scores
    """Means over the images. Images without any object, true or predicted, are left out; so are
    scores that an image does not have (NaN)."""

    @property
    def worst_first(self) -> list[ImageScores]:
        """The images by rising mSA; those without any object come last."""
        key = mean_ap_name(self.settings.iou_thresholds)
        return sorted(self.images, key=lambda image: (image.empty, image.scores[key], image.name))

    def to_dict(self) -> dict[str, object]:
        """Everything as plain JSON values; a score that cannot be measured is None."""
        return {
            "prediction": str(self.prediction),
            "truth": str(self.truth),
            "settings": self.settings.model_dump(mode="json"),
            "pooled": plain(self.pooled),
            "mean": plain(self.mean),
            "images": [
                {
                    "name": image.name,
                    "prediction": str(image.prediction),
                    "truth": str(image.truth),
                    "empty": image.empty,
                    "scores": plain(image.scores),
                }
                for image in self.images
            ],
        }

    def write_csv(self, path: Path) -> None:
        """Write a row for each image, then one pooled and one with the means.

        The columns are ``kind`` (image, pooled, mean), ``name`` and the scores; a score that cannot
        be measured is an empty cell.

        Raises:
            StorageError: the file cannot be written.
        """
        text = io.StringIO()
        rows = CsvWriter(text)
        rows.writerow(["kind", "name", *self.pooled])
        for image in self.images:
            rows.writerow(["image", image.name, *plain(image.scores).values()])
        rows.writerow(["pooled", "", *plain(self.pooled).values()])
        rows.writerow(["mean", "", *plain(self.mean).values()])
        write_atomic(path, text.getvalue())

    def lines(self) -> list[str]:
        """The main scores as a table: pooled, the mean, and the images, worst first."""
        thresholds = self.settings.iou_thresholds
        at = [f"@{t:.2f}" for t in thresholds if t in (thresholds[0], 0.5, 0.75)]
        names = [f"precision{at[0]}", f"recall{at[0]}"]
        names += [name + each for name in ("f1", "ap", "pq") for each in at]
        names += [mean_ap_name(thresholds), "ctc_seg", "dice_foreground", "are"]
        names += ["voi_split", "voi_merge"]
        shown = self.worst_first[:_ROWS_SHOWN]
        columns = [("pooled", self.pooled), ("mean", self.mean)]
        lines = [
            f"{len(self.images)} images, {self.pooled['n_true']:.0f} true objects, "
            f"{self.pooled['n_pred']:.0f} predicted",
            *aligned(["score", *names], [[k, *(text_of(v[n]) for n in names)] for k, v in columns]),
            "",
        ]
        brief = [f"f1{at[0]}", mean_ap_name(thresholds), "dice_foreground"]
        heading = ["image, worst first", "true", "predicted", *brief]
        rows = [
            [i.name, *(f"{i.scores[n]:.0f}" for n in ("n_true", "n_pred"))]
            + ["no objects" if i.empty else text_of(i.scores[n]) for n in brief]
            for i in shown
        ]
        lines += aligned(heading, rows, across=True)
        if len(self.images) > len(shown):
            lines.append(f"... and {len(self.images) - len(shown)} more; --csv has them all")
        return lines


def evaluate(
    plugins: Plugins,
    prediction: Path,
    truth: Path,
    settings: EvaluateSettings | None = None,
    *,
    emit: Emit = lambda event: None,
) -> Evaluation:
    """Score the label images in ``prediction`` against those of the same names in ``truth``.

    Args:
        plugins: where to find the readers.
        prediction: a label file, a folder of them, or a container; see ``label_pairs``.
        truth: the same, or a folder with ``labels/`` in it.
        settings: thresholds, what to leave out, and how to read.
        emit: gets a Progress for each image.

    Raises:
        UsageError: the settings ask for scores of tracks, which ``evaluate_tracks`` makes.
        DataError: images have no partner, differ in shape, are damaged, or are no label images.
    """
    settings = settings or EvaluateSettings()
    if settings.ctc:
        raise UsageError("Scores of tracks (ctc) come from evaluate_tracks.")
    thresholds = settings.iou_thresholds
    images: list[ImageScores] = []
    tallies: list[Tally] = []
    pairs = label_pairs(plugins, prediction, truth, settings)
    for step, pair in enumerate(pairs, start=1):
        tallies.append(tally(_table_of(pair, settings), thresholds))
        images.append(
            ImageScores(
                name=pair.name,
                prediction=pair.prediction.path,
                truth=pair.truth.path,
                scores=score(tallies[-1:]),
            )
        )
        emit(Progress(step, len(pairs)))
    return Evaluation(
        prediction=prediction,
        truth=truth,
        settings=settings,
        images=tuple(images),
        pooled=score(tallies),
        mean=mean_of([image.scores for image in images if not image.empty], images[0].scores),
    )


def evaluate_arrays(
    prediction: LazyArray, truth: LazyArray, settings: EvaluateSettings | None = None
) -> Scores:
    """The scores of one image in memory (or lazy): integers of one shape, 0 for background.

    Raises:
        DataError: the shapes differ, or they are no label images.
    """
    return score([tally_arrays(prediction, truth, settings or EvaluateSettings())])


def tally_arrays(prediction: LazyArray, truth: LazyArray, settings: EvaluateSettings) -> Tally:
    """What the scores of one image in memory (or lazy) are made of; see ``evaluate_arrays``.

    Raises:
        DataError: the shapes differ, or they are no label images.
    """
    return tally(_filtered(overlaps(prediction, truth), settings), settings.iou_thresholds)


def _table_of(pair: LabelPair, settings: EvaluateSettings) -> OverlapTable:
    try:
        table = overlaps(pair.prediction.labels, pair.truth.labels)
    except DataError as error:
        where = f"{pair.prediction.path} against {pair.truth.path}"
        if str(pair.prediction.path) in str(error) or str(pair.truth.path) in str(error):
            raise
        raise DataError(f"{where}: {error}", hint=error.hint) from error
    return _filtered(table, settings)


def _filtered(table: OverlapTable, settings: EvaluateSettings) -> OverlapTable:
    table = table.without_label(UNKNOWN)
    if settings.ignore_label is not None:
        table = table.without_label(settings.ignore_label)
    return table.at_least(settings.min_size)

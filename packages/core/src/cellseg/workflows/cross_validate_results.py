"""What a cross-validation found: scores by image, by fold and over the folds, and comparisons."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.metrics import THRESHOLDS, mean_ap_name
from cellseg.metrics.significance import Paired, corrected_t_test, paired_test
from cellseg.texts import CsvWriter
from cellseg.workflows.cross_validate_folds import RESULTS, Folder, judged_from
from cellseg.workflows.evaluate_text import aligned, plain, text_of
from cellseg.workflows.judge import Judged

MAIN: tuple[str, ...] = (
    "f1@0.50",
    mean_ap_name(THRESHOLDS),
    "precision@0.50",
    "recall@0.50",
    "pq@0.50",
    "ctc_seg",
    "dice_foreground",
)
"""The scores that are printed, and compared."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A score over the folds that have it."""

    mean: float
    sd: float
    """Standard deviation of a sample (n - 1); NaN for less than two folds."""
    low: float
    """The lowest."""
    high: float
    """The highest."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of numbers, those that are NaN left out."""
        known = [value for value in values if not math.isnan(value)]
        return cls(
            mean=statistics.fmean(known) if known else math.nan,
            sd=statistics.stdev(known) if len(known) > 1 else math.nan,
            low=min(known, default=math.nan),
            high=max(known, default=math.nan),
            n=len(known),
        )


@dataclass(frozen=True, kw_only=True)
class FoldScores:
    """One fold: what it was trained on, and what its model is worth on what it never saw."""

    fold: int
    """From 0."""
    run: Path
    """Its run directory."""
    train: int
    """Number of source images that it trains on."""
    val: int
    """Number of source images that choose the best weights and the thresholds."""
    sources: Mapping[str, str]
    """The names of the held-out images, and the source of each."""
    judged: Judged
    """The scores of the held-out images."""
    before: Judged | None = None
    """The same of the model that the training starts from."""

    @property
    def test(self) -> int:
        """Number of source images that are held out."""
        return len(set(self.sources.values()))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much better these models are than others, on the same held-out images."""

    other: str
    """``before``, or the folder of the other cross-validation."""
    images: Mapping[str, Paired]
    """By score: paired by source image; only images in which objects are true have such scores."""
    folds: Mapping[str, Paired]
    """By score: paired by fold, over the pooled scores."""

    @property
    def remarks(self) -> list[str]:
        """Why some of the tests have no p, or what limits it, and of which scores that holds."""
        found: dict[str, list[str]] = {}
        for each in (self.images, self.folds):
            for name, one in each.items():
                if one.remark and one.p != 1:
                    found.setdefault(one.remark, []).append(name)
        every = len(self.images)
        return [
            remark if len(names) == every else f"{', '.join(names)}: {remark}"
            for remark, names in found.items()
        ]


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """All that was found."""

    folder: Folder
    backend: str
    data: Path
    folds: tuple[FoldScores, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def aggregated(self) -> Mapping[str, Spread]:
        """Each score over the folds; that of a fold is pooled over all its objects and voxels."""
        return _over([fold.judged for fold in self.folds])

    @property
    def before(self) -> Mapping[str, Spread] | None:
        """The same of the models that the trainings started from; None where not asked for."""
        judged = [fold.before for fold in self.folds if fold.before is not None]
        return _over(judged) if len(judged) == len(self.folds) else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; what cannot be measured is None."""
        before = self.before
        return {
            "backend": self.backend,
            "data": str(self.data),
            "report": str(self.folder.report),
            "folds": [_fold(one) for one in self.folds],
            "aggregated": _spreads(self.aggregated),
            "before": _spreads(before) if before is not None else None,
            "comparisons": [
                {
                    "against": one.other,
                    "images": {name: _numbers(asdict(p)) for name, p in one.images.items()},
                    "folds": {name: _numbers(asdict(p)) for name, p in one.folds.items()},
                }
                for one in self.comparisons
            ],
        }

    def save(self) -> None:
        """Write ``results.json`` and ``results.csv``.

        Raises:
            StorageError: they cannot be written.
        """
        text = io.StringIO()
        rows = CsvWriter(text)
        names = list(self.aggregated)
        rows.writerow(["model", "kind", "fold", "name", "source", *names])
        judged = {"trained": [fold.judged for fold in self.folds]}
        if self.before is not None:
            judged["before"] = [fold.before for fold in self.folds if fold.before is not None]
        for model, scores in judged.items():
            for fold, one in zip(self.folds, scores, strict=True):
                for name, values in one.per_image.items():
                    source = fold.sources[name]
                    cells = plain(values).values()
                    rows.writerow([model, "image", fold.fold, name, source, *cells])
                rows.writerow([model, "fold", fold.fold, "", "", *plain(one.scores).values()])
            for kind in ("mean", "sd", "low", "high"):
                spreads = {n: float(getattr(s, kind)) for n, s in _over(scores).items()}
                rows.writerow([model, kind, "", "", "", *plain(spreads).values()])
        write_atomic(self.folder.table, text.getvalue())
        write_atomic(self.folder.results, json.dumps(self.to_dict(), indent=2) + "\n")

    def lines(self) -> list[str]:
        """What the command prints."""
        images = sum(len(fold.sources) for fold in self.folds)
        rows = [
            [name, *(text_of(value) for value in (s.mean, s.sd, s.low, s.high))]
            for name, s in self.aggregated.items()
            if name in MAIN
        ]
        rows.sort(key=lambda row: MAIN.index(row[0]))
        heading = ["held-out images, over the folds", "mean", "sd", "lowest", "highest"]
        lines = [
            f"{images} images, each judged by a model that never saw it; {len(self.folds)} folds",
            *aligned(heading, rows, across=True),
        ]
        for one in self.comparisons:
            lines += ["", *_compared(one)]
        return [*lines, "", f"Results: {self.folder.results}", f"Report:  {self.folder.report}"]


def compared(
    folds: Sequence[FoldScores], others: Sequence[Judged], name: str, seed: int
) -> Comparison:
    """Compare the folds of a cross-validation with other models on the same images.

    Args:
        folds: the one.
        others: the scores of the other models on the images of each fold.
        name: what the others are called.
        seed: of the sign flips that are drawn.
    """
    sources = {image: source for fold in folds for image, source in fold.sources.items()}
    images, by_fold = {}, {}
    for score in MAIN:
        ours, theirs = (
            {
                image: scores[score] if scores["n_true"] else math.nan
                for judged in every
                for image, scores in judged.per_image.items()
            }
            for every in ([fold.judged for fold in folds], others)
        )
        images[score] = paired_test(ours, theirs, sources, seed=seed)
        by_fold[score] = corrected_t_test(
            [f.judged.scores[score] - o.scores[score] for f, o in zip(folds, others, strict=True)],
            [fold.train for fold in folds],
            [fold.test for fold in folds],
        )
    return Comparison(other=name, images=images, folds=by_fold)


def read_judged(path: Path) -> list[Judged]:
    """The scores of each fold of a finished cross-validation.

    Raises:
        DataError: this is none, it is not finished, or its results are damaged.
    """
    folder = Folder(path)
    if not folder.request.is_file():
        raise DataError(
            f"{path} is no cross-validation.",
            hint="Give the folder that cellseg cross-validate wrote.",
        )
    if not folder.results.is_file():
        raise DataError(
            f"The cross-validation {path} has not finished: it has no {RESULTS} yet.",
            hint="Finish it with the command that it began with, and --resume.",
        )
    try:
        values = json.loads(folder.results.read_bytes())
        return [judged_from(fold) for fold in values["folds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.results} cannot be read: {error}") from error


def _over(judged: Sequence[Judged]) -> dict[str, Spread]:
    return {name: Spread.of([one.scores[name] for one in judged]) for name in judged[0].scores}


def _compared(one: Comparison) -> list[str]:
    """A comparison as a table."""
    than = "the models before training" if one.other == "before" else one.other
    heading = [f"higher than {than} by", "images", "95 %", "p", "pairs", "folds", "p"]
    rows = []
    for name, image in one.images.items():
        fold = one.folds[name]
        by_image = [_signed(image.difference), f"{_signed(image.low)} to {_signed(image.high)}"]
        by_image += [p_text(image.p), str(image.n)]
        rows.append([name, *by_image, _signed(fold.difference), p_text(fold.p)])
    return [*aligned(heading, rows, across=True), *(f"  {remark}" for remark in one.remarks)]


def p_text(p: float) -> str:
    """A p as people write it; a dash where there is none."""
    return "<0.001" if p < 0.001 else text_of(p)


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


def _fold(one: FoldScores) -> dict[str, Any]:
    def scores(judged: Judged) -> dict[str, Any]:
        return {
            "scores": plain(judged.scores),
            "mean": plain(judged.mean),
            "images": {name: plain(values) for name, values in judged.per_image.items()},
        }

    return {
        "fold": one.fold,
        "run": str(one.run),
        "sources": {"train": one.train, "val": one.val, "test": one.test},
        "source_of": dict(one.sources),
        **scores(one.judged),
        "before": scores(one.before) if one.before is not None else None,
    }


def _spreads(scores: Mapping[str, Spread]) -> dict[str, Any]:
    return {
        name: {**plain({"mean": s.mean, "sd": s.sd, "min": s.low, "max": s.high}), "n": s.n}
        for name, s in scores.items()
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }

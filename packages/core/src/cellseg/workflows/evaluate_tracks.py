"""Score tracked labels against the truth, as the Cell Tracking Challenge does."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellseg.data import LazyArray
from cellseg.errors import DataError
from cellseg.events import Emit, Progress
from cellseg.files import write_atomic
from cellseg.metrics import OverlapTable, Scores, TrackScores, overlaps, score_tracks
from cellseg.readers.ctc_folders import RESULT_TABLE, TRUTH_TABLE
from cellseg.strict_tracks import strict_tracks
from cellseg.texts import CsvWriter
from cellseg.tracked import TrackedMovie, open_tracked
from cellseg.tracks import Lineage
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.evaluate_text import aligned, mean_of, plain, text_of

_SHOWN = ("SEG", "DET", "TRA", "LNK", "OP_CSB", "OP_CTB", "CT", "TF", "CCA", "BIO(1)")
_DIVISIONS = tuple(f"division_{name}(1)" for name in ("precision", "recall", "f1"))
_HELD = 1 << 25
"""Frames of up to so many voxels are read at once."""


@dataclass(frozen=True, kw_only=True)
class MovieScores:
    """The scores of one movie."""

    name: str
    prediction: Path
    truth: Path
    result: TrackScores

    @property
    def scores(self) -> Scores:
        """By name, see ``cellseg.metrics.score_tracks``."""
        return self.result.scores


@dataclass(frozen=True, kw_only=True)
class TrackEvaluation:
    """The scores of all movies."""

    prediction: Path
    truth: Path
    settings: EvaluateSettings
    movies: tuple[MovieScores, ...]
    mean: Scores
    """Means over the movies, without scores that a movie does not have (NaN). What is made of
    masks and tracks is NaN if any prediction is invalid."""

    @property
    def invalid(self) -> list[MovieScores]:
        """The movies whose prediction cannot be scored."""
        return [movie for movie in self.movies if not movie.result.valid]

    def to_dict(self) -> dict[str, object]:
        """Everything as plain JSON values; a score that cannot be measured is None."""
        return {
            "prediction": str(self.prediction),
            "truth": str(self.truth),
            "settings": {
                "ctc": self.settings.ctc,
                "allow_missing_truth": self.settings.allow_missing_truth,
            },
            "mean": plain(self.mean),
            "movies": [
                {
                    "name": movie.name,
                    "prediction": str(movie.prediction),
                    "truth": str(movie.truth),
                    "valid": movie.result.valid,
                    "problems": list(movie.result.problems),
                    "scores": plain(movie.scores),
                }
                for movie in self.movies
            ],
        }

    def write_csv(self, path: Path) -> None:
        """Write a row for each movie, then one with the means.

        The columns are ``kind`` (movie, mean), ``name``, ``valid`` (1 or 0) and the scores; a score
        that cannot be measured is an empty cell.

        Raises:
            StorageError: the file cannot be written.
        """
        text = io.StringIO()
        rows = CsvWriter(text)
        rows.writerow(["kind", "name", "valid", *self.mean])
        for movie in self.movies:
            valid = int(movie.result.valid)
            rows.writerow(["movie", movie.name, valid, *plain(movie.scores).values()])
        rows.writerow(["mean", "", int(not self.invalid), *plain(self.mean).values()])
        write_atomic(path, text.getvalue())

    def lines(self) -> list[str]:
        """The main scores as a table, a column for each movie, and what is wrong with results."""
        columns = [(movie.name, movie.scores) for movie in self.movies]
        if len(columns) > 1:
            columns.append(("mean", self.mean))
        counts = ["frames", "n_true", "n_pred", "tracks_true", "tracks_pred"]
        counts += ["divisions_true", "divisions_pred"]
        names = [*_SHOWN, *_DIVISIONS]
        errors = [name for name in self.mean if name.startswith("AOGM_") and name != "AOGM_0"]
        rows = [
            [
                name,
                *(_count(scores[each]) for each in counts),
                *(text_of(scores[each]) for each in names),
                *(_count(scores[each]) for each in errors),
            ]
            for name, scores in columns
        ]
        lines = aligned(["score", *counts, *names, *errors], rows)
        for movie in self.invalid:
            lines += ["", f"{movie.name} is invalid and has no scores:"]
            lines += [f"  {problem}" for problem in movie.result.problems]
        return lines


def evaluate_tracks(
    prediction: Path,
    truth: Path,
    settings: EvaluateSettings | None = None,
    *,
    emit: Emit = lambda event: None,
) -> TrackEvaluation:
    """Score the tracked movies in ``prediction`` against those of the same names in ``truth``.

    Args:
        prediction: a result of the Cell Tracking Challenge (``NN_RES``), tracked labels that
            cellseg wrote, or a folder of these; see ``cellseg.tracked.open_tracked``.
        truth: ``NN_GT`` or a data set of the challenge, or tracked labels that cellseg wrote. One
            movie against one needs no equal names.
        settings: whether the truth may lack movies.
        emit: gets a Progress for each frame.

    Returns:
        The scores; an invalid prediction has none, but the reasons.

    Raises:
        DataError: movies have no partner, differ in shape or length, are damaged, or the truth
            contradicts itself.
    """
    settings = settings or EvaluateSettings(ctc=True)
    pairs = _pairs(
        open_tracked(prediction, "result"),
        open_tracked(truth, "truth"),
        f"{prediction} and {truth}",
        settings.allow_missing_truth,
    )
    total, done = sum(len(true.frames) for _, true in pairs), 0
    movies = []
    for found, true in pairs:
        tables: list[OverlapTable] = []
        drawn: list[OverlapTable] = []
        pieces = _pieces(true)
        for frame in range(len(true.frames)):
            labels = _held(found.frames[frame])
            where = f"{found.path} against {true.path}, frame {frame}"
            tables.append(_table(labels, true.frames[frame], where))
            drawn += _segmentation(labels, pieces.get(frame, {}), where)
            done += 1
            emit(Progress(done, total))
        seg = None if true.segmentation is None else drawn
        tables, predicted = _strict(tables, found, "prediction")
        tables, truths = _strict(tables, true, "truth")
        try:
            result = score_tracks(tables, predicted, truths, seg)
        except DataError as error:
            raise DataError(f"{true.path}: {error}", hint=error.hint) from error
        movies.append(
            MovieScores(name=true.name, prediction=found.path, truth=true.path, result=result)
        )
    return TrackEvaluation(
        prediction=prediction,
        truth=truth,
        settings=settings,
        movies=tuple(movies),
        mean=_mean(movies),
    )


def _pairs(
    predicted: Sequence[TrackedMovie],
    true: Sequence[TrackedMovie],
    where: str,
    allow_missing_truth: bool,
) -> list[tuple[TrackedMovie, TrackedMovie]]:
    if len(predicted) == len(true) == 1:
        pairs = [(predicted[0], true[0])]
    else:
        ours = {movie.name: movie for movie in predicted}
        names = {movie.name for movie in true}
        missing = [movie.name for movie in true if movie.name not in ours]
        spare = [name for name in ours if name not in names]
        if missing or (spare and not allow_missing_truth):
            parts = [f"truth without a prediction: {', '.join(missing)}"] if missing else []
            parts += [f"predictions without truth: {', '.join(spare)}"] if spare else []
            hint = "Movies belong together by name: 01_RES (or 01.tif) and 01_GT."
            if spare and not missing:
                hint += " To leave these predictions out, give --allow-missing-truth."
            raise DataError(f"{where}: movies have no partner; {'; '.join(parts)}.", hint=hint)
        pairs = [(ours[movie.name], movie) for movie in true]
    for one, other in pairs:
        if one.path.resolve() == other.path.resolve():
            raise DataError(
                f"{one.path} is the prediction and the truth.",
                hint="A prediction is NN_RES, or labels with a table NAME_tracks.csv beside them.",
            )
        if len(one.frames) != len(other.frames):
            raise DataError(
                f"{one.path} has {len(one.frames)} frames, {other.path} has {len(other.frames)}.",
                hint="A result has a mask for each frame, also where no cell was found.",
            )
    return pairs


def _pieces(truth: TrackedMovie) -> Mapping[int, Mapping[int | None, LazyArray]]:
    """The segmentation truth by frame, then by plane, None being the whole frame."""
    found: dict[int, dict[int | None, LazyArray]] = {}
    for (frame, plane), labels in (truth.segmentation or {}).items():
        if not 0 <= frame < len(truth.frames):
            raise DataError(
                f"{truth.path}: has segmentation truth of frame {frame}, counted from the first "
                "mask in TRA, but no mask there."
            )
        found.setdefault(frame, {})[plane] = labels
    return found


def _segmentation(
    labels: LazyArray, pieces: Mapping[int | None, LazyArray], where: str
) -> list[OverlapTable]:
    """The tables of the segmentation truth in one frame.

    Planes of one frame are looked at together. As in py-ctcmetrics, a frame counts as often as it
    has planes.
    """
    import numpy as np

    planes = sorted(plane for plane in pieces if plane is not None)
    tables = [_table(labels, pieces[None], f"{where} (SEG)")] if None in pieces else []
    if not planes:
        return tables
    if planes[-1] >= labels.shape[0]:
        raise DataError(
            f"{where} (SEG): there is no plane {planes[-1]}, but {labels.shape[0]} planes."
        )
    whole = tuple(slice(0, length) for length in labels.shape[1:])
    found = np.concatenate([labels[slice(plane, plane + 1), *whole] for plane in planes])
    true = np.concatenate([np.asarray(_held(pieces[plane])) for plane in planes])
    return tables + [_table(found, true, f"{where} (SEG)")] * len(planes)


def _table(prediction: LazyArray, truth: LazyArray, where: str) -> OverlapTable:
    try:
        return overlaps(prediction, truth)
    except DataError as error:
        raise DataError(f"{where}: {error}", hint=error.hint) from error


def _strict(
    tables: list[OverlapTable], movie: TrackedMovie, side: Literal["prediction", "truth"]
) -> tuple[list[OverlapTable], Lineage]:
    """Tables and tracks as they would be in the format of the challenge, whose rules are stricter.

    A movie that is in this format already stays as it is, right or wrong.
    """
    import numpy as np

    if any((movie.path / table).is_file() for table in (RESULT_TABLE, f"TRA/{TRUTH_TABLE}")):
        return tables, movie.lineage
    predicted = side == "prediction"
    ids = [table.prediction_ids if predicted else table.truth_ids for table in tables]
    try:
        strict = strict_tracks(ids, movie.lineage)
    except DataError as error:
        raise DataError(f"{movie.path}: {error}", hint=error.hint) from error
    renamed = []
    for table, new in zip(tables, strict.ids, strict=True):
        numbers = new.astype(np.uint64)
        if predicted:
            renamed.append(table.renamed(prediction_ids=numbers))
        else:
            renamed.append(table.renamed(truth_ids=numbers))
    return renamed, strict.lineage


def _held(labels: LazyArray) -> LazyArray:
    """Labels in memory where they are small, since they are read once more for SEG."""
    if math.prod(labels.shape) > _HELD:
        return labels
    return labels[tuple(slice(0, length) for length in labels.shape)]


def _mean(movies: Sequence[MovieScores]) -> Scores:
    means = dict(mean_of([movie.scores for movie in movies], movies[0].scores))
    if not all(movie.result.valid for movie in movies):
        # A mean of those that are left would be too good.
        scored = next(m.scores for m in movies if not m.result.valid)
        means |= {name: math.nan for name, value in scored.items() if math.isnan(value)}
    return means


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.10g}"

"""The report of an evaluation of tracks: scores, and in which frames they were lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.report.curves import Chart, Series, chart
from cellseg.report.page import versions, write_page

if TYPE_CHECKING:
    from cellseg.workflows.evaluate_tracks import MovieScores, TrackEvaluation

CHARTS = 12
"""Of how many movies the errors are drawn by frame."""
_HEADLINE = ("TRA", "SEG", "DET", "LNK", "OP_CTB", "division_f1(1)")
_MEANINGS = {
    "SEG": "mean IoU of the true objects with what detects them",
    "DET": "detection",
    "TRA": "tracking: detection and links",
    "LNK": "links alone",
    "OP_CSB": "mean of SEG and DET",
    "OP_CTB": "mean of SEG and TRA",
    "OP_CLB": "mean of LNK and BIO",
    "CT": "complete tracks, F1",
    "TF": "longest part of each track that one track follows",
    "CCA": "agreement of the lengths of cell cycles",
    "BIO": "mean of CT, TF, BC and CCA",
    "division_precision": "of the divisions found, how many are right",
    "division_recall": "of the true divisions, how many were found",
    "division_f1": "branching correctness, BC",
    "AOGM": "cost of the operations",
    "AOGM_0": "cost of making the truth from nothing",
    "AOGM_NS": "objects to split",
    "AOGM_FN": "objects missed",
    "AOGM_FP": "objects that are not there",
    "AOGM_ED": "links that are wrong",
    "AOGM_EA": "links missed",
    "AOGM_EC": "links within a track that are from mother to daughter, or the reverse",
}
_ERRORS = {
    "FN": "objects missed",
    "FP": "objects that are not there",
    "EA": "links missed",
    "ED": "links that are wrong",
}


def write_tracks_evaluation_report(evaluation: TrackEvaluation, target: Path) -> Path:
    """Write the scores of tracks as one HTML file that loads nothing else.

    It has a table of all movies, the errors in each frame of the worst (by TRA), and what makes
    results invalid.

    Args:
        evaluation: the scores.
        target: the file to write; replaced if it is there.

    Returns:
        ``target``.

    Raises:
        StorageError: the page cannot be written.
    """
    movies = sorted(evaluation.movies, key=_rank)
    names = [name for name in evaluation.mean if _shown(name)]
    page = {
        "count": len(movies),
        "movies": movies,
        "invalid": evaluation.invalid,
        "mean": evaluation.mean,
        "headline": [(name, evaluation.mean[name]) for name in _HEADLINE],
        "names": names,
        "meanings": {name: _MEANINGS.get(name.split("(")[0], "") for name in names},
        "counts": [name for name in names if name.startswith("AOGM_")],
        "charts": [found for movie in movies[:CHARTS] if (found := _chart(movie)) is not None],
        "options": {
            "prediction": evaluation.prediction,
            "truth": evaluation.truth,
            "allow_missing_truth": evaluation.settings.allow_missing_truth,
        },
        "versions": versions(),
    }
    return write_page("tracks_evaluation.html.j2", target, page)


def _rank(movie: MovieScores) -> tuple[float, str]:
    score = movie.scores["TRA"]
    return (-1.0 if math.isnan(score) else score, movie.name)


def _shown(name: str) -> bool:
    """Whether a score is in the table: those of divisions within one frame, and no counts twice."""
    score, _, tolerance = name.partition("(")
    return score in _MEANINGS and tolerance in ("", "1)")


def _chart(movie: MovieScores) -> Chart | None:
    series = [
        Series(meaning, list(enumerate(map(float, movie.result.errors[name]))))
        for name, meaning in _ERRORS.items()
        if name in movie.result.errors
    ]
    return chart(f"{movie.name}: errors by frame", series, "frame", whole=True, wide=True)

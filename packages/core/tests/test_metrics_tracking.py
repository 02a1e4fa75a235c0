"""Scores of tracks equal those of py-ctcmetrics, read from the same folders."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_tracks import Tracked, random_prediction, random_truth, write_sequence

from cellseg.errors import DataError
from cellseg.metrics import overlaps
from cellseg.metrics.tracking import TrackScores, score_tracks
from cellseg.tracks import Lineage, Track

oracle = pytest.importorskip("ctc_metrics.scripts.evaluate")

WANTED = ["Valid", "BC", "CT", "CCA", "TF", "SEG", "TRA", "DET", "LNK", "OP_CTB", "OP_CSB"]
WANTED += ["BIO", "OP_CLB"]
MOVIES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def scored(prediction: Tracked, truth: Tracked) -> TrackScores:
    tables = [overlaps(p, t) for p, t in zip(prediction.masks, truth.masks, strict=True)]
    return score_tracks(tables, prediction.lineage, truth.lineage, tables[::2])


def theirs(prediction: Tracked, truth: Tracked) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory() as folder:
        result, gt = write_sequence(Path(folder), prediction, truth)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                found = oracle.evaluate_sequence(str(result), str(gt), list(WANTED), threads=1)
            except ZeroDivisionError:  # no link in the truth
                others = [name for name in WANTED if name not in ("LNK", "OP_CLB")]
                found = oracle.evaluate_sequence(str(result), str(gt), others, threads=1)
                found |= dict.fromkeys(["LNK", *(f"OP_CLB({i})" for i in range(4))])
    return dict(found)


def their_flag(prediction: Tracked, truth: Tracked) -> bool:
    try:
        return theirs(prediction, truth)["Valid"] == 1
    except AssertionError:  # it stops at a parent that is no track
        return False


def check_equal(prediction: Tracked, truth: Tracked) -> TrackScores:
    ours, expected = scored(prediction, truth), theirs(prediction, truth)
    assert ours.valid and expected.pop("Valid") == 1
    assert ours.scores["divisions_true"] == expected.pop("gt_divisions")
    for name in ("BIO", "OP_CLB", "BC", "OP_CTB", "OP_CSB"):
        if expected.get(name) is None:
            expected.pop(name, None)  # asked for, but given under other names
    assert {"OP_CTB", "OP_CLB(3)", "BIO(0)", "AOGM_EC", "tp_div(2)"} <= expected.keys()
    for name, value in expected.items():
        assert ours.scores[name] == pytest.approx(
            math.nan if value is None else value, rel=1e-14, abs=0, nan_ok=True
        ), name
    return ours


@MOVIES
@given(
    seed=st.integers(0, 2**31),
    frames=st.integers(2, 9),
    slots=st.integers(1, 7),
    wrong=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.4]),
)
def test_scores_equal_py_ctcmetrics(seed: int, frames: int, slots: int, wrong: float) -> None:
    truth = random_truth(seed, frames, slots)
    prediction = random_prediction(truth, seed + 1, wrong)
    # Where there is nothing at all, it stops.
    assume(any(mask.any() for mask in prediction.masks))
    assume(any(mask.any() for mask in truth.masks[::2]))
    check_equal(prediction, truth)


def test_random_movies_have_what_is_to_be_compared() -> None:
    fractions: set[str] = set()
    counts: set[str] = set()
    for seed in range(40):
        truth = random_truth(seed, 8, 6)
        scores = scored(random_prediction(truth, seed, 0.2), truth).scores
        fractions |= {name for name, value in scores.items() if 0 < value < 1}
        counts |= {name for name, value in scores.items() if value > 0}
    assert {"BC(3)", "CCA", "CT", "TF", "SEG", "DET", "TRA", "LNK", "BIO(0)"} <= fractions
    assert {f"AOGM_{name}" for name in ("NS", "FN", "FP", "ED", "EA", "EC")} <= counts
    assert {"tp_div(0)", "fp_div(1)", "fn_div(1)"} <= counts


@MOVIES
@given(
    seed=st.integers(0, 2**31),
    fault=st.sampled_from(["none", "dropped", "late", "early", "orphan", "unseen", "gap", "order"]),
)
def test_invalid_results_are_those_of_py_ctcmetrics(seed: int, fault: str) -> None:
    truth = random_truth(seed, 6, 4)
    prediction = random_prediction(truth, seed + 1, 0.2)
    rng = np.random.default_rng(seed)
    tracks = list(prediction.lineage.tracks)
    assume(tracks and any(mask.any() for mask in truth.masks[::2]))
    at = int(rng.integers(len(tracks)))
    one, last = tracks[at], max(track.id for track in tracks)
    if fault == "dropped":
        assume(len(tracks) > 1)
        tracks.pop(at)
    elif fault == "late":
        tracks[at] = replace(one, end=one.end - 1)
    elif fault == "early":
        assume(one.begin > 0)
        tracks[at] = replace(one, begin=one.begin - 1)
    elif fault == "orphan":
        tracks[at] = replace(one, parent=last + 1)
    elif fault == "unseen":
        tracks.append(Track(last + 1, 1, 2))
    elif fault == "gap":
        assume(one.end > one.begin)
        mask = prediction.masks[int(rng.integers(one.begin, one.end + 1))]
        mask[mask == one.id] = 0
    elif fault == "order":
        other = tracks[int(rng.integers(len(tracks)))]
        assume(other.end >= one.begin)
        tracks[at] = replace(one, parent=other.id)
    prediction.lineage = Lineage.of(tracks)
    ours = scored(prediction, truth)
    assert ours.valid == (fault == "none")
    assert their_flag(prediction, truth) == ours.valid
    assert math.isnan(ours.scores["TRA"]) != ours.valid
    assert ours.scores["tracks_pred"] == len(tracks)


def one_track(*frames: int, count: int = 4, id: int = 1) -> Tracked:
    """One cell that is in some frames of a movie."""
    masks = [np.zeros((4, 8), np.uint16) for _ in range(count)]
    for frame in frames:
        masks[frame][1:3, 1:4] = id
    return Tracked(masks, Lineage.of([Track(id, min(frames), max(frames))] if frames else []))


def test_an_empty_result_is_invalid_and_not_zero() -> None:
    result = scored(one_track(), one_track(0, 1, 2))
    assert result.problems == ("There is no track.",)
    assert math.isnan(result.scores["TRA"]) and result.scores["n_true"] == 3
    assert not result.errors


def test_a_track_beyond_the_last_frame_is_invalid() -> None:
    # py-ctcmetrics looks at no frame after the last mask, and stops where a daughter needs it.
    found = one_track(0, 1, 2, 3)
    found.lineage = Lineage.of([Track(1, 0, 9)])
    assert not scored(found, one_track(0, 1, 2, 3)).valid


def test_nothing_to_find_has_no_scores() -> None:
    result = scored(one_track(1, 2), one_track())
    assert result.valid and result.scores["AOGM_FP"] == 2
    for name in ("DET", "TRA", "LNK", "BC(0)", "CCA", "OP_CTB"):
        assert math.isnan(result.scores[name]), name
    assert result.scores["CT"] == 0


def test_one_frame_has_no_links() -> None:
    result = scored(one_track(0, count=1), one_track(0, count=1))
    assert result.scores["DET"] == result.scores["TRA"] == result.scores["CT"] == 1
    assert math.isnan(result.scores["LNK"])


def test_without_segmentation_truth_there_is_no_seg() -> None:
    movie = one_track(0, 1)
    tables = [overlaps(mask, mask) for mask in movie.masks]
    scores = score_tracks(tables, movie.lineage, movie.lineage).scores
    assert math.isnan(scores["SEG"]) and math.isnan(scores["OP_CSB"])
    assert scores["TRA"] == 1


def test_errors_are_told_by_frame() -> None:
    errors = scored(one_track(1, 2), one_track(0, 1, 2, 3)).errors
    assert errors["FN"] == (1, 0, 0, 1)
    assert errors["EA"] == (0, 1, 0, 1)
    assert errors["FP"] == errors["NS"] == errors["ED"] == errors["EC"] == (0, 0, 0, 0)


def test_a_gap_in_the_truth_has_no_link() -> None:
    result = check_equal(one_track(0, 1, 2, 3), one_track(0, 1, 3))
    assert result.scores["AOGM_FP"] == 1 and result.scores["AOGM_ED"] == 0
    assert result.scores["AOGM_0"] == 30 + 1.5


@pytest.mark.parametrize(
    ("tracks", "what"),
    [
        ([Track(2, 0, 1)], "label 1"),
        ([Track(1, 0, 1), Track(2, 2, 3, 1)], "Track 2 has the parent 1"),
        ([Track(1, 0, 1), Track(2, 3, 2)], "Track 2 ends before"),
        ([Track(1, 0, 1, 7)], "Track 1 has the parent 7"),
    ],
)
def test_a_truth_that_contradicts_itself_is_an_error(tracks: list[Track], what: str) -> None:
    truth, found = one_track(0, 1), one_track(0, 1)
    truth.lineage = Lineage.of(tracks)
    with pytest.raises(DataError, match=what) as error:
        scored(found, truth)
    assert "check-data" in str(error.value.hint)


def test_a_table_under_other_ids_scores_the_same() -> None:
    truth = random_truth(3, 6, 6)
    found = random_prediction(truth, 3, 0.2)
    tables = [overlaps(p, t) for p, t in zip(found.masks, truth.masks, strict=True)]
    before = score_tracks(tables, found.lineage, truth.lineage).scores

    def turned(ids: np.ndarray) -> np.ndarray:
        return np.uint64(1000) - ids

    renamed = [
        table.renamed(
            truth_ids=turned(table.truth_ids), prediction_ids=turned(table.prediction_ids)
        )
        for table in tables
    ]
    lineages = [
        Lineage.of(
            replace(t, id=1000 - t.id, parent=1000 - t.parent if t.parent else 0)
            for t in movie.lineage.tracks
        )
        for movie in (found, truth)
    ]
    for table in renamed:
        assert (np.diff(table.truth_ids.astype(int)) > 0).all()
        assert (np.diff(table.rows) >= 0).all()
    after = score_tracks(renamed, *lineages).scores
    assert {k: v for k, v in after.items() if k != "TF"} == pytest.approx(
        {k: v for k, v in before.items() if k != "TF"}, nan_ok=True
    )

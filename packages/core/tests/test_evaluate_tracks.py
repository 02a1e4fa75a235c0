"""``evaluate --ctc``: finding movies on both sides, what is invalid, output."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from random_tracks import (
    Tracked,
    random_prediction,
    random_truth,
    write_sequence,
    write_table,
)

from cellseg.errors import ConfigError, DataError, UsageError
from cellseg.events import Event, Progress
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.report import write_tracks_evaluation_report
from cellseg.strict_tracks import strict_tracks
from cellseg.track_files import csv_table
from cellseg.tracks import Lineage, Track
from cellseg.workflows.evaluate import evaluate
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.evaluate_tracks import TrackEvaluation, evaluate_tracks

CTC = EvaluateSettings(ctc=True)


def pair(seed: int, frames: int = 5) -> tuple[Tracked, Tracked]:
    truth = random_truth(seed, frames, 5)
    return random_prediction(truth, seed + 1, 0.15), truth


def two_sequences(folder: Path) -> tuple[Path, Path]:
    """``res`` with 01_RES and 02_RES, ``data`` with 01_GT and 02_GT."""
    for number, seed in (("01", 5), ("02", 9)):
        found, truth = write_sequence(folder / number, *pair(seed))
        for path, place in ((found, "res"), (truth, "data")):
            (folder / place).mkdir(exist_ok=True)
            path.rename(folder / place / path.name.replace("01", number))
    return folder / "res", folder / "data"


def test_sequences_are_matched_by_name(tmp_path: Path) -> None:
    found, truth = two_sequences(tmp_path)
    events: list[Event] = []
    result = evaluate_tracks(found, truth, emit=events.append)
    assert [movie.name for movie in result.movies] == ["01", "02"]
    assert [movie.prediction for movie in result.movies] == [found / "01_RES", found / "02_RES"]
    assert events == [Progress(step, 10) for step in range(1, 11)]
    for movie in result.movies:
        alone = evaluate_tracks(movie.prediction, movie.truth)
        assert alone.movies[0].scores == pytest.approx(movie.scores, nan_ok=True)
        assert alone.mean == pytest.approx(movie.scores, nan_ok=True)
    tra = [movie.scores["TRA"] for movie in result.movies]
    assert tra[0] != tra[1] and result.mean["TRA"] == pytest.approx(sum(tra) / 2)
    assert not result.invalid


def test_scores_of_the_folders_equal_py_ctcmetrics(tmp_path: Path) -> None:
    oracle = pytest.importorskip("ctc_metrics.scripts.evaluate")
    found, truth = write_sequence(tmp_path, *pair(5))
    scores = evaluate_tracks(found, truth).movies[0].scores
    wanted = ["SEG", "DET", "TRA", "LNK"]
    for name, value in oracle.evaluate_sequence(str(found), str(truth), wanted, 1).items():
        assert scores[name] == pytest.approx(value, rel=1e-14), name


def test_planes_of_segmentation_truth_equal_py_ctcmetrics(tmp_path: Path) -> None:
    oracle = pytest.importorskip("ctc_metrics.scripts.evaluate")
    rng = np.random.default_rng(0)
    result, tra, seg = tmp_path / "01_RES", tmp_path / "01_GT/TRA", tmp_path / "01_GT/SEG"
    for folder in (result, tra, seg):
        folder.mkdir(parents=True)
    for frame in range(3):
        true = np.zeros((5, 12, 24), np.uint16)
        found = true.copy()
        for id in (1, 2, 3):
            left = 8 * id - 7
            true[1:4, 2:10, left : left + 6] = id
            found[1 : 5 - frame, int(rng.integers(0, 6)) : 10, left : left + 6] = id
        tifffile.imwrite(result / f"mask{frame:03}.tif", found)
        tifffile.imwrite(tra / f"man_track{frame:03}.tif", true)
        for plane in range(1, 2 + frame):  # a frame with one plane, one with two
            tifffile.imwrite(seg / f"man_seg_{frame:03}_{plane:03}.tif", true[plane])
    for path in (result / "res_track.txt", tra / "man_track.txt"):
        write_table(Lineage.of(Track(id, 0, 2) for id in (1, 2, 3)), path)
    wanted = ["SEG", "DET", "TRA", "LNK"]
    expected = oracle.evaluate_sequence(str(result), str(tmp_path / "01_GT"), wanted, 1)
    scores = evaluate_tracks(result, tmp_path / "01_GT").movies[0].scores
    assert 0 < scores["SEG"] < 1
    for name in wanted:
        assert scores[name] == pytest.approx(expected[name], rel=1e-14), name


def test_without_seg_the_other_scores_are_there(tmp_path: Path) -> None:
    found, truth = write_sequence(tmp_path, *pair(5))
    for file in (truth / "SEG").iterdir():
        file.unlink()
    scores = evaluate_tracks(found, truth).movies[0].scores
    assert math.isnan(scores["SEG"]) and math.isnan(scores["OP_CTB"])
    assert scores["TRA"] > 0.5


@pytest.mark.parametrize("frame", [0, 9])
def test_segmentation_truth_without_tracking_truth(tmp_path: Path, frame: int) -> None:
    found, truth = write_sequence(tmp_path, *pair(5))
    for number in reversed(range(5)):
        mask = truth / "TRA" / f"man_track{number:03}.tif"
        mask.rename(mask.with_name(f"man_track{number + 2:03}.tif"))
    drawn, *others = sorted((truth / "SEG").iterdir())
    drawn.rename(drawn.with_name(f"man_seg{frame:03}.tif"))
    for other in others:
        other.unlink()
    table = truth / "TRA" / "man_track.txt"
    rows = [[int(n) for n in line.split()] for line in table.read_text().splitlines()]
    table.write_text("".join(f"{i} {a + 2} {b + 2} {p}\n" for i, a, b, p in rows))
    with pytest.raises(DataError, match="segmentation truth of frame") as caught:
        evaluate_tracks(found, truth)
    assert f"of frame {frame - 2}, counted from the first" in str(caught.value)


def test_our_own_outputs_score_as_their_export(tmp_path: Path) -> None:
    """A track with a gap, and a mother who goes on, which the challenge does not allow."""
    masks = np.zeros((5, 8, 20), np.uint16)
    masks[[0, 1, 3, 4], 1:5, 1:6] = 4
    masks[:, 1:5, 8:12] = 7
    masks[2:, 1:5, 14:18] = 9
    lineage = Lineage.of([Track(4, 0, 4), Track(7, 0, 4), Track(9, 2, 4, 7)])
    tifffile.imwrite(tmp_path / "movie.tif", masks, metadata={"axes": "TYX"}, imagej=True)
    (tmp_path / "movie_tracks.csv").write_text(csv_table(lineage))
    strict = strict_tracks([np.unique(mask[mask > 0]) for mask in masks], lineage)
    export = []
    for mask, new in zip(masks, strict.ids, strict=True):
        lut = np.zeros(10, np.uint16)
        lut[np.unique(mask[mask > 0])] = new
        export.append(lut[mask])
    exported, true = Tracked(export, strict.lineage), Tracked(export, strict.lineage)
    found, truth = write_sequence(tmp_path / "ctc", exported, true)
    expected = evaluate_tracks(found, truth).movies[0]
    ours = evaluate_tracks(tmp_path / "movie.tif", truth).movies[0]
    assert ours.scores == pytest.approx(expected.scores, nan_ok=True)
    assert ours.scores["divisions_pred"] == 1 and ours.scores["TRA"] == 1
    other_way = evaluate_tracks(found, tmp_path / "movie.tif").movies[0]
    assert other_way.scores["TRA"] == 1 and math.isnan(other_way.scores["SEG"])


def test_an_invalid_result_is_reported_and_not_scored(tmp_path: Path) -> None:
    found, truth = two_sequences(tmp_path)
    table = found / "02_RES" / "res_track.txt"
    table.write_text("".join(table.read_text().splitlines(True)[1:]))
    result = evaluate_tracks(found, truth)
    valid, invalid = result.movies
    assert valid.result.valid and valid.scores["TRA"] > 0
    assert any("in no line of the table" in problem for problem in invalid.result.problems)
    assert math.isnan(invalid.scores["TRA"]) and math.isnan(result.mean["TRA"])
    assert result.mean["n_true"] > 0
    assert result.invalid == [invalid]
    assert any("02 is invalid" in line for line in result.lines())


def test_movies_without_a_partner_are_named(tmp_path: Path) -> None:
    found, truth = two_sequences(tmp_path)
    with pytest.raises(DataError, match="predictions without truth: 02") as error:
        evaluate_tracks(found, truth / "01_GT")
    assert "--allow-missing-truth" in str(error.value.hint)
    settings = parse(EvaluateSettings, {"ctc": True, "allow_missing_truth": True})
    assert len(evaluate_tracks(found, truth / "01_GT", settings).movies) == 1
    with pytest.raises(DataError, match="truth without a prediction: 02"):
        evaluate_tracks(found / "01_RES", truth, settings)


def test_the_truth_is_no_prediction(tmp_path: Path) -> None:
    found, truth = two_sequences(tmp_path)
    with pytest.raises(DataError, match="01_GT is the prediction and the truth"):
        evaluate_tracks(truth, truth)
    for result in found.iterdir():
        result.rename(truth / result.name)
    movies = evaluate_tracks(truth, truth).movies  # results beside the truth
    assert [movie.prediction.name for movie in movies] == ["01_RES", "02_RES"]


def test_frames_and_shapes_must_agree(tmp_path: Path) -> None:
    found, truth = write_sequence(tmp_path, *pair(5))
    last = found / "mask004.tif"
    tifffile.imwrite(last, np.zeros((4, 4), np.uint16))
    with pytest.raises(DataError, match="mask004"):
        evaluate_tracks(found, truth)
    last.unlink()
    with pytest.raises(DataError, match="has 4 frames, "):
        evaluate_tracks(found, truth)


def test_csv_and_json_have_every_score(tmp_path: Path) -> None:
    found, truth = two_sequences(tmp_path)
    result = evaluate_tracks(found, truth)
    result.write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("movie", "01"),
        ("movie", "02"),
        ("mean", ""),
    ]
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    for row, movie in zip(rows, told["movies"], strict=False):
        assert row["valid"] == "1" and movie["valid"] is True
        for name, value in movie["scores"].items():
            assert row[name] == ("" if value is None else str(value))


def test_the_report_has_movies_errors_and_problems(tmp_path: Path) -> None:
    found, truth = two_sequences(tmp_path)
    (found / "02_RES" / "res_track.txt").write_text("")
    result = evaluate_tracks(found, truth)
    page = write_tracks_evaluation_report(result, tmp_path / "scores.html").read_text()
    assert "There is no track." in page
    assert "01: errors by frame" in page and "02: errors by frame" not in page
    assert f"{result.movies[0].scores['TRA']:.3f}" in page


@pytest.mark.parametrize("option", [{"thresholds": "0.5"}, {"min_size": 3}, {"axes": "TYX"}])
def test_options_without_effect_on_tracks_are_errors(option: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(option)).replace('_', '-')}"):
        parse(EvaluateSettings, {"ctc": True, **option})


def test_scores_of_labels_refuse_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="evaluate_tracks"):
        evaluate(Plugins(), tmp_path, tmp_path, CTC)


def test_all_kinds_of_scores_are_shown(tmp_path: Path) -> None:
    found, truth = write_sequence(tmp_path, *pair(5))
    result: TrackEvaluation = evaluate_tracks(found, truth, CTC)
    text = "\n".join(result.lines())
    for name in ("SEG", "TRA", "division_f1(1)", "CT", "OP_CTB", "AOGM_EC", "divisions_true"):
        assert name in text

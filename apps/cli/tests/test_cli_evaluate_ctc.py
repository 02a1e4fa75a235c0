"""``cellseg evaluate --ctc``."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile


@pytest.fixture
def sequence(tmp_path: Path) -> tuple[Path, Path]:
    """``01_RES`` and ``01_GT``: a cell that divides, and one that the result has lost."""
    result, tra, seg = tmp_path / "01_RES", tmp_path / "01_GT/TRA", tmp_path / "01_GT/SEG"
    for folder in (result, tra, seg):
        folder.mkdir(parents=True)
    for frame in range(4):
        true = np.zeros((12, 24), np.uint16)
        true[1:5, 2:6] = 1 if frame < 2 else 2
        true[1:5, 8:12] = 0 if frame < 2 else 3
        found = true.copy()
        true[7:11, 2:8] = 4
        tifffile.imwrite(result / f"mask{frame:03}.tif", found)
        tifffile.imwrite(tra / f"man_track{frame:03}.tif", true)
        tifffile.imwrite(seg / f"man_seg{frame:03}.tif", true)
    (result / "res_track.txt").write_text("1 0 1 0\n2 2 3 1\n3 2 3 1\n")
    (tra / "man_track.txt").write_text("1 0 1 0\n2 2 3 1\n3 2 3 1\n4 0 3 0\n")
    return result, tmp_path / "01_GT"


def test_scores_are_shown_and_written(cellseg, sequence, tmp_path) -> None:
    result, truth = sequence
    table, page = tmp_path / "scores.csv", tmp_path / "scores.html"
    scored = cellseg("evaluate", result, truth, "--ctc", "--json", "--csv", table, "--report", page)
    assert scored.code == 0, scored.err
    scores = scored.json["movies"][0]["scores"]
    assert scores["division_f1(0)"] == 1 and scores["AOGM_FN"] == 4
    assert scores["SEG"] == 0.6 and scores["CT"] == pytest.approx(6 / 7)
    assert next(csv.DictReader(table.open()))["TRA"] == str(scores["TRA"])
    assert "<html" in page.read_text() and scored.json["report"] == str(page)
    text = cellseg("evaluate", result, truth, "--ctc")
    assert f"TRA                    {scores['TRA']:.3f}" in text.out


def test_an_invalid_result_fails_after_its_problems_are_shown(cellseg, sequence) -> None:
    result, truth = sequence
    (result / "res_track.txt").write_text("1 0 1 0\n2 2 3 1\n3 1 3 1\n")
    scored = cellseg("evaluate", result, truth, "--ctc", "--json")
    assert scored.code == 4
    assert scored.json["movies"][0]["valid"] is False
    assert scored.json["movies"][0]["scores"]["TRA"] is None
    assert "Track 3 begins before" in scored.json["movies"][0]["problems"][0]
    text = cellseg("evaluate", result, truth, "--ctc")
    assert text.code == 4 and "Track 3 begins before its parent has ended." in text.out


def test_options_that_would_do_nothing(cellseg, sequence) -> None:
    result, truth = sequence
    wrong = cellseg("evaluate", result, truth, "--ctc", "--ignore-label", "3")
    assert wrong.code == 3 and "--ignore-label" in wrong.err
    wrong = cellseg("evaluate", result, truth, "--ctc", "--report", "r.html", "--images", truth)
    assert wrong.code == 2 and "--images" in wrong.err


def test_scores_of_labels_point_to_it(cellseg, sequence) -> None:
    result, truth = sequence
    wrong = cellseg("evaluate", result, truth)
    assert wrong.code == 4 and "scored with --ctc" in wrong.err


def test_help_names_it(cellseg) -> None:
    assert "--ctc" in cellseg("evaluate", "--help").out

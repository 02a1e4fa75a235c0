"""The page of a cross-validation: complete, self-contained, and safe against hostile names."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from cellseg.metrics import overlaps, score, tally
from cellseg.report.cross_validation import write_cross_validation_report
from cellseg.synthetic import make_image
from cellseg.workflows.cross_validate_folds import Folder
from cellseg.workflows.cross_validate_results import CrossValidation, FoldScores, compared
from cellseg.workflows.judge import Judged, mean_of_images

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
REQUEST: dict[str, Any] = {
    "settings": {"epochs": 7, "seed": 0},
    "reader": "folder",
    "options": {"sigma": 1.5},
    "cellseg_version": "0.1.0",
    "backend_version": "3.2",
}


def judged(names: list[str], lost: int) -> Judged:
    """Of images in which as many cells are missed; of the last one, nothing is there."""
    tallies = {}
    for index, name in enumerate(names):
        _, truth = make_image((0, index), (64, 64), 12)
        truth = truth if index < len(names) - 1 else np.zeros_like(truth)
        tallies[name] = tally(overlaps(np.where(truth > lost + index, truth, 0), truth))
    per_image = {name: score([one]) for name, one in tallies.items()}
    scores = score(tallies.values())
    return Judged(scores=scores, per_image=per_image, mean=mean_of_images([*per_image.values()]))


def found(folder: Path, before: bool, folds: int = 3, each: int = 4) -> CrossValidation:
    made = []
    for fold in range(folds):
        names = [f"{HOSTILE}{fold}-{i}" for i in range(each)]
        made.append(
            FoldScores(
                fold=fold,
                run=folder / f"fold-{fold}",
                train=6,
                val=2,
                sources={name: name for name in names},
                judged=judged(names, fold),
                before=judged(names, fold + 4) if before else None,
            )
        )
    others = [one.before for one in made if one.before is not None]
    comparisons = [compared(made, others, "before", 0)] if before else []
    comparisons += [compared(made, others, f"/other/{HOSTILE}", 0)] if before else []
    return CrossValidation(
        folder=Folder(folder),
        backend="otsu",
        data=Path("/data") / HOSTILE,
        folds=tuple(made),
        comparisons=tuple(comparisons),
    )


@pytest.mark.parametrize("before", [False, True])
def test_the_page_says_it_all_and_loads_nothing(tmp_path: Path, before: bool) -> None:
    results = found(tmp_path, before)
    page = write_cross_validation_report(results, REQUEST)
    text = page.read_text()
    assert page == tmp_path / "report.html"
    assert "<img src=x" not in text and html.escape(HOSTILE, quote=False)[:12] in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text) and "<script" not in text
    spread = results.aggregated["f1@0.50"]
    assert f"{spread.mean:.3f}" in text and f"± {spread.sd:.3f}" in text
    for fold in results.folds:
        assert f'href="fold-{fold.fold}/report.html"' in text
        assert f"{fold.judged.scores['f1@0.50']:.3f}" in text
    assert text.count("(empty, and nothing found)") == 3
    assert ("before training" in text) == before
    assert ("Trained against untrained" in text) == before
    for value in ("epochs", "sigma", "3.2", "results.csv"):
        assert value in text


def test_dots_are_where_the_scores_are(tmp_path: Path) -> None:
    results = found(tmp_path, True)
    text = write_cross_validation_report(results, REQUEST).read_text()
    plots = re.findall(r"<svg viewBox=\"0 0 560 260\".*?</svg>", text, re.DOTALL)
    assert len(plots) == 2
    drawing = ElementTree.fromstring(plots[0])
    trained = drawing.findall("circle")
    untrained = drawing.findall("rect")
    assert len(trained) == len(untrained) == 9, "images without objects have no score"
    for dot in trained:
        name, _, value = str(dot.findtext("title")).rpartition(", trained: ")
        fold = next(fold for fold in results.folds if name in fold.sources)
        assert fold.judged.per_image[name]["f1@0.50"] == pytest.approx(float(value), abs=6e-4)
        assert float(dot.get("cy", 0)) == pytest.approx(220 - 206 * float(value), abs=0.2)
        column = (float(dot.get("cx", 0)) - 44) / (502 / 3)
        assert int(column) == fold.fold and column % 1 > 0.5, "right of what was before"
    levels = [line for line in drawing.findall("line") if line.find("title") is not None]
    assert len(levels) == 6


def test_a_remark_stands_where_there_is_no_p(tmp_path: Path) -> None:
    results = found(tmp_path, True, folds=2, each=3)
    text = write_cross_validation_report(results, REQUEST).read_text()
    assert "4 pairs cannot be tested: a p below 0.05 takes 6 at least." in text

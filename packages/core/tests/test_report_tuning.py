from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cellseg.report.tuning import history, scatters, write_tune_report
from cellseg.tuning.search import Tuned
from cellseg.tuning.space import Space
from cellseg.tuning.trials import Trial
from cellseg.workflows.tune_request import TuneDir, TuneRequest

SPACE = Space.of(
    {"rate": {"low": 1e-5, "high": 1e-2, "log": True}, "mode": ["full", "<b>"], "n": [1, None]}
)
START = datetime(2026, 1, 1)


def trial(number: int, score: float | None, state: Any = "complete", **values: Any) -> Trial:
    options = {"rate": 10.0 ** (number / 2 - 5), "mode": ["full", "<b>"][number % 2], "n": None}
    return Trial(
        number=number,
        state=state,
        options=options,
        score=score,
        scores={"f1@0.50": score} if score is not None else {},
        folder=f"trials/{number:04d}",
        started=START,
        ended=START + timedelta(seconds=90),
        **values,
    )


TRIALS = (
    trial(0, 0.5),
    trial(1, 0.7),
    trial(2, None, "failed", message="the loss is <nan>"),
    trial(3, None, "pruned", reported={1: 0.1}),
    trial(4, 0.6),
)
FOUND = Tuned(TRIALS[1].options, 0.7, TRIALS, {"mode": 0.9, "rate": 0.1, "n": 0.0}, replaced=2)


def page(folder: Path, found: Tuned = FOUND) -> str:
    request = TuneRequest(
        backend="otsu", data=Path("/data/cells"), space=SPACE,
        search={"trials": 5, "storage": "postgresql://me:secret@host/db", "study": "s"},
        splits={"train": ["a", "b"], "val": ["c"], "test": ["d"]},
    )  # fmt: skip
    return write_tune_report(TuneDir(folder), request, found).read_text()


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "&lt;b&gt;" in text and "<b>" not in text and "the loss is &lt;nan&gt;" in text
    assert "secret" not in text and "me:***@host" in text
    assert re.search(r"is optimistic.*as the best of 3", text)
    assert "--test-fraction" in text and "2 more were stopped" in text
    rows = re.findall(r'<tr><th scope="row" class="number">(\d)</th>', text)
    assert rows == ["1", "4", "0", "2", "3"]
    assert "stopped early" in text and "http" not in text.replace("http-equiv", "")


def test_the_score_on_the_test_images_is_told(tmp_path: Path) -> None:
    scores = {"f1@0.50": 0.61}
    text = page(tmp_path, replace(FOUND, test={"trial": 1, "images": 3, "scores": scores}))
    assert "judged on them once" in text and "0.61" in text
    broken = page(tmp_path, replace(FOUND, test={"trial": 1, "error": "the images are gone"}))
    assert "the images are gone" in broken


def test_a_search_without_a_score_has_a_page(tmp_path: Path) -> None:
    waiting = Trial(number=0, state="waiting", options={})
    text = page(tmp_path, Tuned({}, None, (waiting, TRIALS[2])))
    assert "not finished" in text and "No trial is complete so far" in text
    assert "cellseg resume" in text


@pytest.mark.parametrize(("maximise", "last"), [(True, 0.7), (False, 0.5)])
def test_the_history_keeps_the_best(maximise: bool, last: float) -> None:
    chart = history(TRIALS, maximise)
    assert chart is not None
    assert f"best so far goes from 0.5 at trial 0 to {last}" in chart.description


def test_each_option_has_a_chart_the_important_first() -> None:
    charts = scatters(SPACE.parameters, FOUND)
    assert [chart.title for chart in charts] == ["mode", "rate", "n"]
    assert [tick.text for tick in charts[0].x_ticks] == ["full", "<b>"]
    assert "log" in charts[1].x_label and len(charts[1].lines[0].markers) == 3
    assert charts[1].lines[0].best is not None
    places = [x for x, _, _ in charts[1].lines[0].markers]
    assert places == sorted(places)
    assert [tick.text for tick in charts[2].x_ticks] == ["1", "-"]

"""``--examples`` on the command line: training with them, and predicting in one go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile


@pytest.fixture(autouse=True)
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install) -> None:
    """Install the backend ``shown``, which learns from examples."""
    text = "from example_fakes import *\n"
    monkeypatch.syspath_prepend(install(tmp_path / "site", "shown", "shown_backend", text))


@pytest.fixture
def examples(data: Path, tmp_path: Path) -> Path:
    """Two objects of the first image, as a table of boxes, and one row of another class."""
    file = sorted((data / "labels").iterdir())[0]
    labels = tifffile.imread(file)
    rows = ["image,tag,y0,x0,y1,x1"]
    for number in np.unique(labels[labels > 0])[:3]:
        y, x = np.argwhere(labels == number).T
        tag = "cell" if len(rows) < 3 else "other"
        edges = y.min() - 0.5, x.min() - 0.5, y.max() + 0.5, x.max() + 0.5
        rows.append(f"{file.stem},{tag},{','.join(map(str, edges))}")
    path = tmp_path / "examples.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def seen(run: Path) -> list[list[object]]:
    return list(json.loads((run / "model/shown.json").read_text())["seen"])


def test_train_and_predict(cellseg, data, examples, tmp_path):
    run = tmp_path / "run"
    words = ("train", data / "images", "--backend", "shown", "--examples", examples)
    done = cellseg(*words, "--tag", "cell", "-o", run)
    assert done.code == 0, done.err
    assert "1 example(s)" in done.err and "other (1)" in done.err
    assert len(seen(run)) == 2
    done = cellseg("predict", data / "images", "--model", run, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    done = cellseg("resume", run)
    assert done.code == 0 and "finished" in done.err
    done = cellseg(*words, "--epochs", "3", "-o", tmp_path / "other")
    assert done.code == 3 and "--epochs does nothing with shown" in done.err
    done = cellseg("train", data, "--config", run / "config.yaml", "-o", tmp_path / "again")
    assert done.code == 0, done.err  # what a run wrote can be told again
    assert seen(tmp_path / "again") == seen(run)


def test_predict_in_one_go(cellseg, data, examples, tmp_path):
    out = tmp_path / "out"
    words = ("predict", "--backend", "shown", "--examples", examples, "--margin", "0.4")
    words += ("--training-tag", "cell", "--tag", "other", "--scored")
    done = cellseg(*words, data / "images", "-o", out)
    assert done.code == 3 and "--tag and --training-tag are two names" in done.err
    words = tuple(word for word in words if word not in ("--tag", "other"))
    done = cellseg(*words, data / "images", "-o", out)
    assert done.code == 0, done.err
    run = out / ".cellseg/examples"
    assert f"--model {run}" in done.err and len(seen(run)) == 2
    found = json.loads((run / "model/shown.json").read_text())
    assert found["margin"] == 0.4 and found["classes"] == ["background", "cell"]
    done = cellseg(*words, data / "images", "-o", out, "--resume", "--json")
    assert done.code == 0 and done.json["complete"]


def test_a_config_file_may_say_it_all(cellseg, data, examples, tmp_path):
    config = tmp_path / "config.yaml"
    lines = ["backend: shown", f"examples: {examples}", "tag: [cell, other]", "margin: 0.1"]
    config.write_text("\n".join([*lines, f"output: {tmp_path / 'out'}", "scored: true"]))
    done = cellseg("predict", data / "images", "--config", config)
    assert done.code == 0, done.err
    assert {one[1] for one in seen(tmp_path / "out/.cellseg/examples")} == {1, 2}


def test_help_shows_the_options_of_learning(cellseg, data):
    page = cellseg("predict", "--backend", "shown", "--help").out
    assert "--margin" in page and "--scored" in page and "--training-tag" in page
    assert "Learning: shown" in page
    # Without examples nothing is learned.
    done = cellseg("predict", data / "images", "--backend", "shown", "--margin", "1", "-o", "x")
    assert done.code == 3 and "--margin does nothing without --examples" in done.err

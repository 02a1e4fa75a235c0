"""``cellseg cross-validate``, with the example backend and one that can be stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SLOW = '''
"""A backend that learns nothing, and stops where a file says so."""

from pathlib import Path

import numpy as np
import cellseg as cs


class SlowOptions(cs.Options):
    stop: str = ""
    """A file; a training stops after its first step once it is there."""


def train(job, emit):
    state = job.checkpoint / "state"
    done = int(state.read_text()) if state.exists() else 0
    for step in range(done + 1, job.epochs + 1):
        emit(cs.Progress(step, job.epochs))
        state.write_text(str(step))
        if job.options.stop and Path(job.options.stop).exists():
            raise cs.InterruptedRunError("Stopped.", hint="Go on with cellseg resume.")
    (job.model / "weights").write_text("1")
    return cs.Trained()


def load(job):
    return lambda tiles: [cs.Segmentation((t.image[0] > 0.5).astype(np.uint8)) for t in tiles]


@cs.hookimpl
def cellseg_trainers():
    presets = {"short": {"epochs": 2, "split": "blocks", "val_gap": 4}}
    yield cs.TrainerSpec(
        name="slow", summary="Slow", options=SlowOptions, train=train, presets=presets,
        aliases={"n_epochs": "epochs"},
    )


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(name="slow", summary="Slow", load=load)
'''


@pytest.fixture
def slow(tmp_path, monkeypatch, install) -> Path:
    folder = install(tmp_path / "site", "slow", "slow_backend", SLOW)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def cv(tmp_path) -> Path:
    return tmp_path / "cv"


def test_folds_of_the_example_backend(cellseg, data, cv) -> None:
    words = ("cross-validate", data, "-o", cv, "--backend", "otsu", "--folds", 3, "--epochs", 1)
    done = cellseg(*words, "--before", "--json")
    assert done.code == 0, done.err
    assert len(done.json["folds"]) == 3 and done.json["aggregated"]["f1@0.50"]["n"] == 3
    assert done.json == json.loads((cv / "results.json").read_text())
    assert "Fold 2 (3 of 3)" in done.err
    assert "cannot be tested" in done.json["comparisons"][0]["images"]["f1@0.50"]["remark"]
    again = cellseg(*words)
    assert again.code == 2 and "--resume" in again.err
    again = cellseg(*words, "--before", "--resume")
    assert again.code == 0 and "mean" in again.out and f"Report:  {cv / 'report.html'}" in again.out
    for fold in range(3):
        assert cellseg("resume", cv / f"fold-{fold}").code == 0, "an ordinary run"
    other = cellseg(*words[:3], cv.parent / "other", *words[4:], "--against", cv, "--quiet")
    assert other.code == 0 and f"higher than {cv} by" in other.out


def test_a_stop_is_130_and_says_how_to_go_on(cellseg, data, cv, slow, tmp_path) -> None:
    stop = tmp_path / "stop"
    stop.touch()
    words = ("cross-validate", data, "-o", cv, "--backend", "slow", "--folds", 3, "--epochs", 3)
    words = (*words, "--stop", stop)
    stopped = cellseg(*words)
    assert stopped.code == 130 and "same command and --resume" in stopped.err
    assert (cv / "fold-0/checkpoint/state").read_text() == "1"
    stop.unlink()
    done = cellseg(*words, "--resume", "--json")
    assert done.code == 0, done.err
    assert [fold["fold"] for fold in done.json["folds"]] == [0, 1, 2]


def test_presets_and_config_files_as_in_training(cellseg, data, cv, slow, tmp_path) -> None:
    words = ("cross-validate", data, "-o", cv, "--backend", "slow", "--folds", 3)
    done = cellseg(*words, "--preset", "short", "--json")
    assert done.code == 0, done.err
    request = json.loads((cv / "cross_validation.json").read_text())
    assert request["settings"]["epochs"] == 2
    file = tmp_path / "config.yaml"
    assert cellseg("init", "--backend", "slow", "-o", file).code == 0
    done = cellseg(
        *("cross-validate", data, "-o", tmp_path / "other", "--config", file, "--n-epochs", 1),
        "--folds",
        3,
    )
    assert done.code == 0, done.err
    request = json.loads((tmp_path / "other/cross_validation.json").read_text())
    assert request["backend"] == "slow" and request["settings"]["epochs"] == 1
    file.write_text("backend: slow\nfolds: 3\nepochs: 1\n")
    done = cellseg("cross-validate", data, "-o", tmp_path / "third", "--config", file, "--json")
    assert done.code == 0 and len(done.json["folds"]) == 3


@pytest.mark.parametrize("line", ["split: full", "fold: 2", "val: data", "examples: a.csv"])
def test_what_divides_images_otherwise_is_refused(
    cellseg, data, cv, tmp_path, line, monkeypatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"backend: otsu\n{line}\n")
    refused = cellseg("cross-validate", data, "-o", cv, "--config", file)
    name = line.split(":")[0]
    assert refused.code == 3 and f"{name}: does nothing in a cross-validation" in refused.err
    refused = cellseg("cross-validate", data, "-o", cv, "--backend", "otsu", f"--{name}", "x")
    assert refused.code == 2 and f"--{name}" in refused.err
    assert not cv.exists()


def test_a_backend_that_learns_from_examples(cellseg, data, cv) -> None:
    refused = cellseg("cross-validate", data, "-o", cv, "--backend", "fewshot", "--json")
    assert refused.code == 3 and "learns from a few examples" in refused.json["error"]["message"]


def test_help_shows_what_counts_here(cellseg) -> None:
    shown = cellseg("cross-validate", "--backend", "otsu", "--help")
    for name in ("--folds", "--before", "--against", "--resume", "--val-fraction", "--sigma"):
        assert name in shown.out
    for name in ("--split <", "--splits", "--test-fraction", "--fold <", "--examples"):
        assert name not in shown.out

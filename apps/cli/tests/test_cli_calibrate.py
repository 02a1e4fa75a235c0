"""``cellseg calibrate``, with a backend of its own that finds a threshold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

THRESHOLD = '''
"""A backend that labels what is brighter than a threshold, and finds it."""

import cc3d
import cellseg as cs


class ThresholdOptions(cs.Options):
    threshold: float = 5.0
    """Brighter pixels belong to objects."""
    wide: bool = False
    """A switch."""


def train(job, emit):
    (job.model / "weights").write_text("1")
    return cs.Trained()


def load(job):
    def predict(tiles):
        masks = [tile.image[0] > job.options.threshold for tile in tiles]
        return [cs.Segmentation(cc3d.connected_components(mask)) for mask in masks]

    return predict


def calibrate(job, emit):
    if "threshold" in job.given:
        return {}

    def right(threshold):
        whole = (slice(None),) * 3
        return sum(
            int(((s.image[(slice(0, 1), *whole)][0] > threshold) == (s.labels[whole] > 0)).sum())
            for s in job.samples
        )

    emit(cs.Note(f"tried on {', '.join(s.name for s in job.samples)}"))
    return {"threshold": max((0.2, 0.5, 5.0), key=right)}


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(name="threshold", summary="Fixed", train=train)


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="threshold", summary="Fixed", options=ThresholdOptions, load=load,
        calibrate=calibrate,
    )
'''


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install) -> None:
    site = install(tmp_path / "site", "threshold", "threshold_backend", THRESHOLD)
    monkeypatch.syspath_prepend(site)


@pytest.fixture
def run(cellseg, data, backend, tmp_path) -> Path:
    out = tmp_path / "run"
    done = cellseg("train", data, "-o", out, "--backend", "threshold", "--epochs", 1)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def others(tmp_path) -> Path:
    from cellseg.synthetic import write_dataset

    write_dataset(tmp_path / "others", count=2, size=64, seed=9)
    for kind in ("images", "labels"):
        for file in (tmp_path / "others" / kind).iterdir():
            file.rename(file.with_name(f"new_{file.name}"))
    return tmp_path / "others"


def test_a_run_and_then_predicting_with_it(cellseg, data, run, tmp_path) -> None:
    images = data / "images"
    blind = cellseg("predict", images, "--model", run, "-o", tmp_path / "a", "--json")
    assert blind.json["objects"] == 0, "the default suits no image"
    done = cellseg("calibrate", run)
    assert done.code == 0, done.err
    assert "threshold: 0.2 (was 5.0)" in done.out or "threshold: 0.5 (was 5.0)" in done.out
    assert str(run / "model" / "bundle.json") in done.out and "tried on" in done.err
    seeing = cellseg("predict", images, "--model", run, "-o", tmp_path / "b", "--json")
    assert seeing.json["objects"] > 3
    found = json.loads((run / "model/bundle.json").read_text())["predict"]["threshold"]
    shown = " ".join(cellseg("calibrate", run, "--help").out.split())
    assert f"[default: {found}]" in shown, "the model's own value"
    for words, value in (
        (("predict", images), found),
        (("predict", images, "--prompts", "clicks.csv"), 5.0),
        (("embed", images), 5.0),
    ):
        shown = " ".join(cellseg(*words, "--model", run, "--help").out.split())
        assert f"[default: {value}]" in shown, words


def test_other_images_their_reader_and_json(cellseg, run, others) -> None:
    done = cellseg("calibrate", "--device", "cpu", run, others, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.json["written"] is None and done.json["images"] == 2
    assert done.json["options"]["threshold"] in (0.2, 0.5)
    assert done.json["before"] == {"threshold": 5.0}
    assert json.loads((run / "model/bundle.json").read_text())["predict"] == {}
    (others / "labels").rename(others / "truth")
    assert "--image-suffix" in cellseg("calibrate", run, others, "--help").out
    assert cellseg("calibrate", run, others).code == 4
    named = cellseg("calibrate", run, others, "--labels", "truth", "--threshold", 0.3, "--wide")
    assert named.code == 0, named.err
    stored = json.loads((run / "model/bundle.json").read_text())["predict"]
    assert stored == {"threshold": 0.3, "wide": True}


def test_published_weights_into_a_config_file(cellseg, data, backend, tmp_path) -> None:
    target = tmp_path / "found.yaml"
    done = cellseg("calibrate", data, "--backend", "threshold", "-o", target)
    assert done.code == 0, done.err
    assert yaml.safe_load(target.read_text())["backend"] == "threshold"
    images = data / "images"
    out = cellseg("predict", images, "--config", target, "-o", tmp_path / "out", "--json")
    assert out.code == 0 and out.json["objects"] > 3, out.err
    config = tmp_path / "asked.yaml"
    config.write_text(f"backend: threshold\nthreshold: 0.4\noutput: {tmp_path / 'c.yaml'}\n")
    assert cellseg("calibrate", data, "--config", config).code == 0
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["threshold"] == 0.4


def test_lines_that_are_put_together_wrongly(cellseg, data, run, others, tmp_path) -> None:
    for words, code, message in (
        ((), 2, "Missing argument"),
        ((tmp_path / "none",), 4, "There is no model at"),
        ((others,), 4, "is no trained model"),
        ((run, tmp_path / "none"), 4, "there is no such file or folder"),
        ((run, "--backend", "threshold"), 2, "is a model, and --backend is for"),
        ((others, others, "--backend", "threshold"), 2, "there is no RUN"),
        ((others, "--backend", "threshold"), 2, "no model to keep"),
        ((run, "--reader", "folder"), 2, "are those of the run"),
        ((run, "--tresholds", "1"), 2, "No such option"),
        ((run, data), 4, "was trained on"),
        ((others, "--backend", "otsu", "-o", "x.yaml"), 3, "'otsu' has no calibration"),
    ):
        done = cellseg("calibrate", *words)
        assert done.code == code and message in done.err, (words, done.err)

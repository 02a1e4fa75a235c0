"""The demo, with a backend that needs no training; the real one is tried where it is installed."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from skimage.filters import threshold_otsu

from cellseg.data import Segmentation, Tile
from cellseg.errors import DataError, InterruptedRunError, UnknownPluginError
from cellseg.events import Emit, Event, Note, Progress, Validated
from cellseg.hookspecs import hookimpl
from cellseg.plugins import Plugins
from cellseg.specs import PredictJob, PredictorSpec, Trained, TrainerSpec, TrainJob
from cellseg.workflows import demo as module
from cellseg.workflows.demo import FILE, Plan, demo

FAST = module.FAST


def train(job: TrainJob[Any], emit: Emit) -> Trained:
    for step in range(1, 4):
        if job.interrupted():
            raise InterruptedRunError("Stopped.")
        emit(Progress(step, 3, {"loss": 1 / step}, epoch=1))
    emit(Validated(3, {"f1": 0.5}, best=True, epoch=1))
    (job.model / "weights.json").write_text("{}")
    return Trained()


def load(job: PredictJob[Any]) -> Any:
    def predictor(tiles: Sequence[Tile]) -> list[Segmentation]:
        images = [ndimage.gaussian_filter(tile.image[0], (0, 1.5, 1.5)) for tile in tiles]
        found = [ndimage.label(image > threshold_otsu(image))[0] for image in images]
        return [Segmentation(labels.astype(np.uint32)) for labels in found]

    return predictor


def stand_in() -> Plugins:
    """A threshold under the name of the demo's backend."""

    @hookimpl
    def cellseg_trainers() -> Iterator[TrainerSpec[Any]]:
        yield TrainerSpec(name="vista2d", summary="Threshold", train=train)

    @hookimpl
    def cellseg_predictors() -> Iterator[PredictorSpec[Any]]:
        yield PredictorSpec(name="vista2d", summary="Threshold", load=load)

    plugin = types.ModuleType("stand_in")
    plugin.cellseg_trainers = cellseg_trainers  # type: ignore[attr-defined]
    plugin.cellseg_predictors = cellseg_predictors  # type: ignore[attr-defined]
    plugins = Plugins(installed=())
    plugins.register(plugin, "vista2d")
    return plugins


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Everything on tiny images; ``fast`` is told apart by its number of test images."""
    monkeypatch.setattr(module, "FULL", Plan(train=3, test=3, size=96, epochs=1, options={}))
    monkeypatch.setattr(module, "FAST", Plan(train=3, test=1, size=96, epochs=1, options={}))


def test_everything_is_made_and_said(tmp_path) -> None:
    events: list[Event] = []
    folder = tmp_path / "demo"
    result = demo(stand_in(), folder, emit=events.append)

    for index in range(3):
        labels = tifffile.imread(result.labels / f"cells_{index:03d}.tif")
        assert labels.shape == (96, 96) and labels.any()
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    page = result.report.read_text(encoding="utf-8")
    assert "cells_002" in page and page.count("<img") == 3 and "Otsu" in page
    assert (result.run / "report.html").exists()
    assert 0 < result.scores["f1@0.50"] <= 1
    assert 0 < result.threshold["f1@0.50"] <= 1

    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == [1, 2, 3]
    assert any(isinstance(event, Note) for event in events)
    text = "\n".join(result.lines())
    for expected in (*result.commands, str(result.report), str(result.picture), "f1@0.50"):
        assert expected in text
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["report"] == str(result.report)


def test_fast(tmp_path) -> None:
    result = demo(stand_in(), tmp_path / "demo", fast=True)
    assert len(list(result.labels.glob("*.tif"))) == 1


def test_the_images_that_are_scored_were_not_trained_on(tmp_path) -> None:
    demo(stand_in(), tmp_path)
    trained = {file.read_bytes() for file in (tmp_path / "train/images").iterdir()}
    tested = {file.read_bytes() for file in (tmp_path / "test/images").iterdir()}
    assert len(trained) == len(tested) == 3 and not trained & tested


def test_a_second_demo_needs_to_be_told_to_replace_the_first(tmp_path) -> None:
    demo(stand_in(), tmp_path, fast=True)
    (tmp_path / "mine.txt").write_text("keep me")
    before = (tmp_path / "report.html").stat().st_mtime_ns
    with pytest.raises(DataError, match="earlier demo") as caught:
        demo(stand_in(), tmp_path)
    assert "--overwrite" in str(caught.value.hint)
    assert (tmp_path / "report.html").stat().st_mtime_ns == before
    result = demo(stand_in(), tmp_path, overwrite=True)
    assert len(list(result.labels.glob("*.tif"))) == 3
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_of_the_users_is_ever_replaced(tmp_path, overwrite) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="not from a demo"):
        demo(stand_in(), tmp_path, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    file = tmp_path / "run/file"
    file.write_text("")
    with pytest.raises(DataError, match="is a file"):
        demo(stand_in(), file, overwrite=overwrite)


def test_a_backend_that_is_not_installed(tmp_path) -> None:
    with pytest.raises(UnknownPluginError, match="vista2d") as caught:
        demo(Plugins(installed=()), tmp_path / "demo")
    assert caught.value.hint == "Install it: uv pip install cellseg-vista"
    assert not (tmp_path / "demo").exists()


def test_a_stopped_demo_can_be_replaced(tmp_path) -> None:
    with pytest.raises(InterruptedRunError):
        demo(stand_in(), tmp_path, interrupted=lambda: True)
    assert (tmp_path / FILE).exists()
    assert Path(demo(stand_in(), tmp_path, overwrite=True).report).exists()


@pytest.mark.slow
def test_the_real_backend(tmp_path, monkeypatch) -> None:
    pytest.importorskip("cellseg_vista", reason="needs the backend: uv pip install cellseg-vista")
    monkeypatch.setattr(module, "FAST", FAST)
    result = demo(Plugins(), tmp_path / "demo", fast=True)
    assert (result.run / "model/bundle.json").exists()
    assert len(list(result.labels.glob("*.tif"))) == FAST.test
    assert 0 <= result.scores["f1@0.50"] <= 1

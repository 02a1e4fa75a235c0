"""``judge`` says what ``predict`` and then ``evaluate`` say of the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

import cellseg as cs
from cellseg.bundle import Bundle
from cellseg.classes import UNKNOWN
from cellseg.errors import ConfigError, DataError, InterruptedRunError, PartialError
from cellseg.events import Progress
from cellseg.options import parse
from cellseg.parts import Place
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.splits import Splits, held_out
from cellseg.synthetic import blobs
from cellseg.workflows.evaluate import evaluate
from cellseg.workflows.judge import Judged, judge, lower_is_better
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import resume, samples_of, train
from cellseg.workflows.train_settings import TrainSettings


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


def write(folder: Path, seeds: range, depth: int = 1) -> Path:
    """Discs that are dimmer from image to image, so that the scores differ."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in seeds:
        sample = blobs(seed, shape=(depth, 96, 96))
        assert sample.labels is not None
        image = (100 + 1000 * sample.image[0, :, :, :].clip(0)).astype(np.uint16)  # type: ignore
        labels = sample.labels[:, :, :].astype(np.uint16)  # type: ignore
        image[:, :, : 12 * seed] = 100
        axes = {"axes": "ZYX"} if depth > 1 else {"axes": "YX"}
        for kind, values in (("images", image), ("labels", labels)):
            values = values if depth > 1 else values[0]
            tifffile.imwrite(folder / kind / f"i{seed}.tif", values, metadata=axes, imagej=True)
    return folder


def trained(plugins: Plugins, data: Path, out: Path, core: tuple[int, int, int] | None) -> Path:
    settings = TrainSettings(epochs=1, split="full", normalise="none")  # type: ignore[arg-type]
    run = train(plugins, "otsu", data, out, settings=settings)
    if core is not None:
        bundle = Bundle.load(run.model)
        bundle.model_copy(update={"tiling": cs.Tiling(core=core, halo=(0, 16, 16))}).save(run.model)
    return out


def by_files(plugins: Plugins, data: Path, run: Path, out: Path, **options: object) -> Judged:
    """The same through files."""
    settings = PredictSettings(model=run, output=out)
    predict(plugins, data / "images", settings, options=options, emit=lambda event: None)
    found = evaluate(plugins, out, data / "labels")
    images = {image.name: image.scores for image in found.images}
    return Judged(scores=found.pooled, per_image=images, mean=found.mean)


def same(one: Judged, other: Judged) -> None:
    np.testing.assert_equal(dict(one.scores), dict(other.scores))
    np.testing.assert_equal(dict(one.mean), dict(other.mean))
    assert one.per_image.keys() == other.per_image.keys()
    for name, scores in one.per_image.items():
        np.testing.assert_equal(dict(scores), dict(other.per_image[name]))


@pytest.mark.parametrize("core", [None, (1, 40, 40)], ids=["whole", "tiled"])
@pytest.mark.parametrize("depth", [1, 3], ids=["planes", "volumes"])
def test_it_says_what_predicting_and_evaluating_say(
    plugins: Plugins, tmp_path: Path, core: tuple[int, int, int] | None, depth: int
) -> None:
    data = write(tmp_path / "data", range(3), depth)
    run = trained(plugins, data, tmp_path / "run", core)
    samples = open_dataset(plugins, data, "auto", {}, labelled=True)
    found = judge(plugins, run, samples)
    same(found, by_files(plugins, data, run, tmp_path / "out"))
    assert 0.2 < found.scores["dice_foreground"] < 1
    assert len({scores["dice_foreground"] for scores in found.per_image.values()}) > 1


def test_options_of_the_predictor_count(plugins: Plugins, tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(2))
    run = trained(plugins, data, tmp_path / "run", None)
    samples = open_dataset(plugins, data, "auto", {}, labelled=True)
    found = judge(plugins, run, samples, options={"min_size": 9999})
    assert found.scores["n_pred"] == 0 and found.scores["f1@0.50"] == 0
    same(found, by_files(plugins, data, run, tmp_path / "out", min_size=9999))
    with pytest.raises(ConfigError, match="min_sise"):
        judge(plugins, run, samples, options={"min_sise": 1})


def test_what_nobody_annotated_is_not_scored(plugins: Plugins, tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(2))
    run = trained(plugins, data, tmp_path / "run", None)
    [first, _] = open_dataset(plugins, data, "auto", {}, labelled=True)
    assert first.labels is not None
    labels = first.labels[:, :, :].astype(np.uint32)  # type: ignore[misc]
    before = judge(plugins, run, [first]).scores
    labels[labels == 1] = UNKNOWN
    after = judge(plugins, run, [replace(first, labels=labels)]).scores
    assert after["n_true"] == before["n_true"] - 1
    assert after["fp@0.50"] == before["fp@0.50"]


def test_a_part_of_an_image_is_judged_by_itself(plugins: Plugins, tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(2))
    run = trained(plugins, data, tmp_path / "run", None)
    [_, image] = open_dataset(plugins, data, "auto", {}, labelled=True)
    part = Place(image, 2, 48, 96).cut("val")
    found = judge(plugins, run, [part])
    assert list(found.per_image) == ["i1[x:48-95]"]
    assert found.scores["n_true"] < judge(plugins, run, [image]).scores["n_true"]


def test_it_leaves_nothing_behind_and_can_be_stopped(
    plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "data", range(2))
    run = trained(plugins, data, tmp_path / "run", (1, 40, 40))
    samples = open_dataset(plugins, data, "auto", {}, labelled=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    files = sorted(tmp_path.rglob("*"))
    steps: list[cs.Event] = []
    with pytest.raises(InterruptedRunError):
        judge(plugins, run, samples, emit=steps.append, interrupted=lambda: len(steps) > 2)
    assert sum(isinstance(step, Progress) for step in steps) < 18
    judge(plugins, run, samples)
    assert sorted(tmp_path.rglob("*")) == files


def test_what_cannot_be_judged_is_refused(plugins: Plugins, tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(2))
    run = trained(plugins, data, tmp_path / "run", None)
    samples = list(open_dataset(plugins, data, "auto", {}, labelled=True))
    with pytest.raises(DataError, match="no labels"):
        judge(plugins, run, [replace(samples[0], labels=None)])
    with pytest.raises(DataError, match="Two images"):
        judge(plugins, run, [samples[0], samples[0]])
    with pytest.raises(DataError, match="no images"):
        judge(plugins, run, [])
    with pytest.raises(DataError, match="no model"):
        judge(plugins, tmp_path / "none", samples)


class Broken:
    shape, dtype = (1, 1, 96, 96), np.dtype(np.uint16)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        raise DataError("i0.tif: is damaged.")


def test_an_image_that_fails_gives_no_scores(plugins: Plugins, tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(2))
    run = trained(plugins, data, tmp_path / "run", None)
    samples = list(open_dataset(plugins, data, "auto", {}, labelled=True))
    samples[0] = replace(samples[0], image=Broken())
    with pytest.raises(PartialError, match=r"cannot be judged.*i0\.tif: is damaged") as caught:
        judge(plugins, run, samples)
    assert caught.value.hint is None


def test_errors_are_better_when_lower() -> None:
    assert lower_is_better("are") and lower_is_better("voi_split") and lower_is_better("fp@0.50")
    assert not lower_is_better("f1@0.50") and not lower_is_better("are_precision")


def test_a_training_does_not_see_its_test_images(plugins: Plugins, tmp_path: Path) -> None:
    data = write(tmp_path / "data", range(5))
    settings = TrainSettings(epochs=1, test_fraction=0.4)  # type: ignore[arg-type]
    run = train(plugins, "otsu", data, tmp_path / "run", settings=settings)
    splits = Splits.load(run.splits)
    assert len(splits.test) == 2 and len(splits.val) == 1
    assert Bundle.load(run.model).trained_on == splits.train
    used, validated = samples_of(plugins, run)
    assert {s.name for s in (*used, *validated)} == {*splits.train, *splits.val}
    assert all(name in run.report.read_text() for name in ("Test images", *splits.test))
    samples = open_dataset(plugins, data, "auto", {}, labelled=True)
    assert set(judge(plugins, run.path, held_out(samples, splits)).per_image) == set(splits.test)
    resume(plugins, run.path, epochs=2)
    assert Splits.load(run.splits) == splits and Bundle.load(run.model).trained_on == splits.train
    again = TrainSettings(epochs=1, splits=run.splits)  # type: ignore[call-arg]
    other = train(plugins, "otsu", data, tmp_path / "other", settings=again)
    assert Splits.load(other.splits) == splits
    with pytest.raises(ConfigError, match="--val and --test-fraction"):
        parse(TrainSettings, {"val": str(data), "test_fraction": 0.2})

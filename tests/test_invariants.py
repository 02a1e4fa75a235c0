"""Twelve ways in which segmentation tools go wrong unseen, each held off by tests.

docs/architecture.md lists them for people; here it is checked that the tests exist, and the few
that belong to no single package stand here.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile

import cellseg as cs
from cellseg.errors import ConfigError
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.testing import blobs
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings

REPO = Path(__file__).parents[1]
HELD_OFF = {
    "silent fallbacks and options that do nothing": [
        "test_an_unknown_option_is_an_error_with_the_nearest_name",
        "test_training_changes_what_it_declares",
        "test_every_parameter_gets_a_finite_gradient",
        "test_options_that_would_be_ignored_are_refused",
    ],
    "docs and code that disagree on defaults": [
        "test_the_reference_is_what_the_classes_say",
        "test_documented_commands_are_understood",
        "test_readme_commands_run",
    ],
    "training and prediction that normalise differently": [
        "test_a_stored_normaliser_is_applied_the_same",
        "test_prediction_normalises_as_training_did",
    ],
    "tiles that miss voxels, wrap around or share ids": [
        "test_every_voxel_is_in_exactly_one_core",
        "test_tiled_equals_whole",
        "test_tiled_equals_untiled",
    ],
    "encoding the same pixels again and again": ["test_a_predictor_is_called_once_for_each_tile"],
    "overlaps that go to whoever came last": [
        "test_the_higher_score_keeps_the_overlap",
        "test_the_order_of_the_masks_does_not_matter",
    ],
    "scores that leak": [
        "test_folds_are_disjoint_and_cover",
        "test_a_splits_file_that_tears_a_movie",
        "test_validation_never_uses_the_true_foreground",
        "test_thresholds_come_from_validation_images_only",
    ],
    "losses that grow with the number of objects": [
        "test_pull_does_not_grow_with_the_number_of_cells",
        "test_the_scale_of_the_weights_does_not_matter",
        "test_dice_counts_only_classes_that_are_there",
    ],
    "padding that shifts images that are not square": [
        "test_a_tile_that_is_not_square_stays_aligned",
        "test_any_size_comes_back",
    ],
    "crashes on images without objects": [
        "test_an_empty_tile_stays_empty",
        "test_images_without_objects_can_be_trained_with",
        "test_nothing_found_is_all_zero",
    ],
    "no tests without weights": ["test_training_reports_and_leaves_a_model"],
    "options that exclude each other, unchecked": [
        "test_options_that_exclude_each_other_are_refused_in_any_order",
        "test_options_that_contradict_are_refused",
    ],
}


def test_each_is_held_off_by_tests_that_exist() -> None:
    files = [*REPO.glob("packages/*/tests/*.py"), *REPO.glob("apps/*/tests/*.py")]
    files += [*REPO.glob("tests/*.py"), *REPO.glob("packages/core/src/cellseg/*testing.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    there = set(re.findall(r"def (test_\w+)", text))
    assert len(HELD_OFF) == 12
    for failure, tests in HELD_OFF.items():
        assert set(tests) <= there, failure


def test_each_is_in_the_docs() -> None:
    page = (REPO / "docs/architecture.md").read_text(encoding="utf-8")
    for failure, tests in HELD_OFF.items():
        assert failure in page
        assert all(f"`{test}`" in page for test in tests), failure


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for seed in range(4):
        sample: Any = blobs(seed, (1, 96, 80))
        image = (500 + 2000 * sample.image[0, 0].clip(0)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"data/images/{seed}.tif", image)
        tifffile.imwrite(tmp_path / f"data/labels/{seed}.tif", sample.labels[0].astype(np.uint16))
    return tmp_path / "data"


class Spy:
    """A backend that keeps what it is given."""

    def __init__(self) -> None:
        self.trained: list[Any] = []
        self.tiles: list[Any] = []

    def train(self, job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
        self.trained = [sample.image[:, :, :, :] for sample in job.train]
        return cs.Trained()

    def load(self, job: cs.PredictJob[Any]) -> cs.Predictor:
        def predict(tiles: Any) -> list[cs.Segmentation]:
            self.tiles += [tile.image for tile in tiles]
            return [cs.Segmentation(np.zeros(t.image.shape[1:], np.uint8)) for t in tiles]

        return predict

    def plugins(self) -> Plugins:
        module: Any = ModuleType("spy")
        trainer = cs.TrainerSpec(name="spy", summary="", train=self.train)
        predictor = cs.PredictorSpec(name="spy", summary="", load=self.load)
        module.cellseg_trainers = cs.hookimpl(lambda: [trainer])
        module.cellseg_predictors = cs.hookimpl(lambda: [predictor])
        plugins = Plugins(installed=[])
        plugins.register(module, "spy")
        return plugins


def run(spy: Spy, data: Path, tmp_path: Path, **values: object) -> None:
    settings = parse(
        PredictSettings, {"model": tmp_path / "run", "output": tmp_path / "out", **values}
    )
    predict(spy.plugins(), data / "images", settings, emit=lambda event: None)


@pytest.mark.parametrize(
    "values",
    [
        {"normalise": "percentile", "percentile_low": 3.0},
        {"normalise": "z-score", "normalise_scope": "dataset"},
        {"normalise": "min-max", "polarity": "dark"},
        {"polarity": "dark", "clahe": True, "clahe_kernel": 32, "gamma": 2.1},
        {"stain_transform": "hed", "stain_eosin": 0.5, "clahe": True, "clahe_clip": 0.05},
    ],
)
def test_prediction_normalises_as_training_did(
    data: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    spy = Spy()
    if "stain_transform" in values:
        for path in (data / "images").iterdir():
            grey = 255 - tifffile.imread(path) // 257
            colours = np.stack([grey // 2, grey // 3, grey], axis=-1).astype(np.uint8)
            tifffile.imwrite(path, colours, photometric="rgb")
    settings = parse(TrainSettings, {"split": "full", **values})
    train(spy.plugins(), "spy", data, tmp_path / "run", settings=settings)
    run(spy, data, tmp_path)
    assert len(spy.trained) == len(spy.tiles) == 4
    for trained, tile in zip(spy.trained, spy.tiles, strict=True):
        assert trained.dtype == tile.dtype == np.float32
        assert trained.std() > 0
        np.testing.assert_array_equal(trained, tile)


def test_a_predictor_is_called_once_for_each_tile(data: Path, tmp_path: Path) -> None:
    spy = Spy()
    train(spy.plugins(), "spy", data, tmp_path / "run", settings=TrainSettings(split="full"))
    run(spy, data, tmp_path, tile_size=32, halo=8)
    assert len(spy.tiles) == 4 * 3 * 3
    assert max(image[0].size for image in spy.tiles) <= 48 * 48


def test_thresholds_come_from_validation_images_only(data: Path, tmp_path: Path) -> None:
    seen: dict[str, set[str]] = {}

    class Watching(Spy):
        def train(self, job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
            seen["train"] = {sample.name for sample in job.train}
            seen["val"] = {sample.name for sample in job.val}
            return cs.Trained()

    train(Watching().plugins(), "spy", data, tmp_path / "run", settings=TrainSettings())
    assert seen["val"] and not seen["train"] & seen["val"]
    assert seen["train"] | seen["val"] == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    "values",
    [
        {"val": "a", "splits": "b"},
        {"val": "a", "split": "k-fold"},
        {"split": "k-fold", "val": "a"},
        {"percentile_low": 99.0, "percentile_high": 1.0},
    ],
)
def test_options_that_exclude_each_other_are_refused_in_any_order(
    values: dict[str, object],
) -> None:
    with pytest.raises(ConfigError, match="--"):
        parse(TrainSettings, values)

"""The conformance tests catch the backends that they are there to catch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cellseg as cs
import cellseg_otsu
from cellseg import testing
from cellseg.plugins import Plugins
from cellseg.testing import BackendTests, blobs
from cellseg.trainer_testing import Once


class Otsu(BackendTests):
    __test__ = False
    backend = "otsu"


Change = Callable[[cs.Segmentation, cs.Tile], Any]


def plugins_with(
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., cs.Trained] = cellseg_otsu.train,
    change: Change = lambda found, tile: found.labels,
) -> None:
    """Make the kit see an otsu backend with one fault."""

    def load(job: cs.PredictJob[Any]) -> cs.Predictor:
        predict = cellseg_otsu.load(job)

        def faulty(tiles: Sequence[cs.Tile]) -> list[cs.Segmentation]:
            found = zip(predict(tiles), tiles, strict=True)
            return [replace(one, labels=change(one, tile)) for one, tile in found]

        return faulty

    module: Any = ModuleType("faulty")
    card = next(iter(cellseg_otsu.cellseg_trainers()))
    module.cellseg_trainers = cs.hookimpl(lambda: [replace(card, train=train)])
    other = next(iter(cellseg_otsu.cellseg_predictors()))
    module.cellseg_predictors = cs.hookimpl(lambda: [replace(other, load=load)])

    def made() -> Plugins:
        plugins = Plugins(installed=[])
        plugins.register(module, "otsu")
        return plugins

    monkeypatch.setattr(testing, "Plugins", made)


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Path, cs.Trained]:
    job = Otsu()._job(next(iter(cellseg_otsu.cellseg_trainers())), tmp_path / "fit", 1)
    return job.model, cellseg_otsu.train(job, lambda event: None)


def counter() -> Change:
    calls: list[int] = []

    def change(found: cs.Segmentation, tile: cs.Tile) -> Any:
        calls.append(1)
        return found.labels * len(calls)

    return change


PREDICTION_FAULTS: dict[str, Change] = {
    "test_finds_bright_discs": lambda found, tile: np.zeros_like(found.labels),
    "test_results_are_labels": lambda found, tile: found.labels.astype(np.float32),
    "test_the_same_tile_gives_the_same_labels": counter(),
    "test_an_empty_tile_stays_empty": lambda found, tile: found.labels + 1,
    "test_a_tile_that_is_not_square_stays_aligned": lambda found, tile: np.roll(
        found.labels, 4, axis=2
    ),
}


@pytest.mark.parametrize("test", PREDICTION_FAULTS)
def test_a_fault_of_a_predictor_is_found(
    test: str, fitted: tuple[Path, cs.Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    getattr(Otsu(), test)(fitted)  # the sound backend passes
    plugins_with(monkeypatch, change=PREDICTION_FAULTS[test])
    with pytest.raises(AssertionError):
        getattr(Otsu(), test)(fitted)


def test_a_predictor_that_depends_on_the_tiles_size_is_found(
    fitted: tuple[Path, cs.Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = next(iter(cellseg_otsu.cellseg_predictors()))
    Otsu().test_tiled_equals_untiled(fitted, card)
    plugins_with(monkeypatch, change=lambda f, tile: f.labels * (tile.image.shape[3] > 200))
    with pytest.raises(AssertionError):
        Otsu().test_tiled_equals_untiled(fitted, card)


def halves(found: cs.Segmentation) -> np.ndarray:
    return np.full((2, *found.labels.shape), 0.5, np.float32)


@pytest.mark.parametrize(
    "fault",
    [
        lambda found, asked: halves(found),
        lambda found, asked: None,
        lambda found, asked: halves(found)[:, :, 1:] if asked else None,
        lambda found, asked: halves(found) * 0.9 if asked else None,
        lambda found, asked: halves(found).astype(float) if asked else None,
    ],
    ids=["always", "never", "shape", "sum", "type"],
)
def test_wrong_probabilities_are_found(
    fitted: tuple[Path, cs.Trained], monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    card = replace(next(iter(cellseg_otsu.cellseg_predictors())), probabilities=True)

    def check(likely: Any) -> None:
        def load(job: cs.PredictJob[Any]) -> cs.Predictor:
            predict = cellseg_otsu.load(job)
            return lambda tiles: [
                replace(one, probabilities=likely(one, job.probabilities)) for one in predict(tiles)
            ]

        module: Any = ModuleType("likely")
        module.cellseg_predictors = cs.hookimpl(lambda: [replace(card, load=load)])
        plugins = Plugins(installed=[])
        plugins.register(module, "otsu")
        monkeypatch.setattr(testing, "Plugins", lambda: plugins)
        Otsu().test_probabilities_come_when_asked_for(fitted, card)

    check(lambda found, asked: halves(found) if asked else None)
    with pytest.raises(AssertionError):
        check(fault)


def test_a_wrong_preset_is_found() -> None:
    card = next(iter(cellseg_otsu.cellseg_trainers()))
    Otsu().test_presets_are_options(replace(card, presets={"one": {"sigma": 2, "epochs": 3}}))
    with pytest.raises(cs.PluginError, match="'sigam'"):
        Otsu().test_presets_are_options(replace(card, presets={"one": {"sigam": 2}}))
    with pytest.raises(cs.ConfigError, match="--sigma"):
        Otsu().test_presets_are_options(replace(card, presets={"one": {"sigma": -2}}))


def test_a_batch_that_mixes_its_tiles_is_found(
    fitted: tuple[Path, cs.Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    Otsu().test_a_batch_equals_its_tiles(fitted)
    first: list[Any] = []

    def change(found: cs.Segmentation, tile: cs.Tile) -> Any:
        first.append(found.labels)
        return first[0]

    plugins_with(monkeypatch, change=change)
    with pytest.raises(AssertionError):
        Otsu().test_a_batch_equals_its_tiles(fitted)


def forgets(job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
    """Starts again at every resume."""
    for file in job.checkpoint.iterdir():
        file.unlink()
    return cellseg_otsu.train(job, emit)


def deaf(job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
    """Never asks whether to stop."""
    return cellseg_otsu.train(replace(job, interrupted=lambda: False), emit)


def silent(job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
    """Reports nothing."""
    return cellseg_otsu.train(job, lambda event: None)


@pytest.mark.parametrize(
    ("test", "train"),
    [
        ("test_resume_equals_one_go", forgets),
        ("test_interrupt_saves_the_state", deaf),
        ("test_training_reports_and_leaves_a_model", silent),
    ],
)
def test_a_fault_of_a_trainer_is_found(
    test: str, train: Callable[..., cs.Trained], tmp_path: Path
) -> None:
    card = next(iter(cellseg_otsu.cellseg_trainers()))
    conforms(test, card, tmp_path / "sound")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        conforms(test, replace(card, train=train), tmp_path / "faulty")


def conforms(test: str, card: cs.TrainerSpec[Any], folder: Path) -> None:
    """One test of training, with all that it asks for made by this trainer."""
    method = getattr(Otsu(), test)
    done = {
        name: Once.of(card, Otsu._job(card, folder / name, epochs))
        for name, epochs in (("once", 1), ("twice", 2))
    }
    given = {"trainer": card, "tmp_path": folder, **done}
    method(**{name: given[name] for name in signature(method).parameters})


def frozen(job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
    """Declares a tensor that training never changes."""
    from safetensors.numpy import save_file

    tensors = {"moves": np.full(2, job.epochs, np.float32), "stays": np.zeros(2, np.float32)}
    save_file(tensors, job.model / "weights.safetensors")
    return cs.Trained(trainable=("moves", "stays"))


def test_a_layer_without_a_gradient_is_found(tmp_path: Path) -> None:
    card = next(iter(cellseg_otsu.cellseg_trainers()))
    with pytest.raises(AssertionError):
        conforms("test_training_changes_what_it_declares", replace(card, train=frozen), tmp_path)


def test_a_gap_that_is_declared_must_exist() -> None:
    class Wrong(Otsu):
        expected_failures = {"test_no_such_thing": "because"}  # noqa: RUF012

    with pytest.raises(AssertionError, match="test_no_such_thing"):
        Wrong._expect_failure.__wrapped__(Wrong(), None)  # type: ignore[attr-defined]


def test_blobs_are_deterministic_and_do_not_touch() -> None:
    one, two = blobs(3), blobs(3)
    np.testing.assert_array_equal(one.image[:, :, :, :], two.image[:, :, :, :])
    assert one.labels is not None and len(np.unique(one.labels[:, :, :])) == 7

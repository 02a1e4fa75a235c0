"""Calibrating a vista model that is trained already, on images of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.bundle import Bundle  # noqa: E402
from cellseg.classes import UNKNOWN, encoded  # noqa: E402
from cellseg.data import Sample, Tiling  # noqa: E402
from cellseg.errors import ConfigError, WeightsError  # noqa: E402
from cellseg.events import Note  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import CalibrateJob, PredictorSpec  # noqa: E402
from cellseg.synthetic import write_dataset  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg.workflows.calibrate import calibrate  # noqa: E402
from cellseg.workflows.calibrate_settings import CalibrateSettings  # noqa: E402
from cellseg.workflows.train import train  # noqa: E402
from cellseg.workflows.train_settings import TrainSettings  # noqa: E402
from cellseg_vista.calibrate import pieces, search  # noqa: E402
from cellseg_vista.description import Description  # noqa: E402
from cellseg_vista.instances import PixelMaps  # noqa: E402
from cellseg_vista.network import Architecture, Network  # noqa: E402
from cellseg_vista.predict_options import (  # noqa: E402
    Vista2dPredictOptions,
    Vista3dPredictOptions,
)
from cellseg_vista.recalibrate import _Pieces  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pair(foreground: float = 0.4) -> tuple[PixelMaps, np.ndarray]:
    """Discs that a network sees well, and dim specks beside them."""
    sample = blobs(3, count=9)
    assert sample.labels is not None
    truth = sample.labels[0].astype(np.uint32)  # type: ignore[index]
    inside = np.where(truth > 0, np.float32(foreground), np.float32(0.05))
    depth = np.where(truth > 0, np.float32(0.9), np.float32(0))
    inside[2:60:12, 1:3], depth[2:60:12, 1:3] = foreground, 0.9
    embedding = np.stack([truth.astype(np.float32), np.zeros_like(inside)])
    return PixelMaps(np.stack([1 - inside, inside]), depth, embedding), truth


def test_the_search_starts_from_what_the_model_has() -> None:
    start = Vista2dPredictOptions(foreground_threshold=0.6, min_size=0)
    choice = search([pair()], Vista2dPredictOptions, (1.0, 1.0), start)
    assert choice.before == 0 and choice.reached > 0.95 and choice.pieces == 1
    assert choice.options.foreground_threshold < 0.4
    again = search([pair()], Vista2dPredictOptions, (1.0, 1.0), choice.options)
    assert again.options == choice.options and again.before == again.reached == choice.reached


def test_given_options_stay_and_pick_the_methods() -> None:
    start = Vista2dPredictOptions(method="cluster", bandwidth=0.9, min_size=7)
    fixed = frozenset({"bandwidth", "min_size"})
    choice = search([pair()], Vista2dPredictOptions, (1.0, 1.0), start, fixed)
    assert choice.options.bandwidth == 0.9 and choice.options.min_size == 7
    assert set(choice.scores) == {"watershed", "cluster", "mutex"}, "agglomerate has no bandwidth"
    one = search([pair()], Vista2dPredictOptions, (1.0, 1.0), start, frozenset({"method"}))
    assert one.options.method == "cluster" and set(one.scores) == {"cluster"}
    zero = Vista2dPredictOptions(bandwidth=0)
    choice = search([pair()], Vista2dPredictOptions, (1.0, 1.0), zero, frozenset({"bandwidth"}))
    assert choice.options.bandwidth == 0 and set(choice.scores) == {"watershed"}


def test_pieces_hold_the_truth_that_counts() -> None:
    labels = np.zeros((1, 20, 30), np.uint32)
    labels[0, :5], labels[0, 8:12], labels[0, 15:] = 3, 4, UNKNOWN
    labels[0, :12] = np.where(labels[0, :12] == 4, encoded(labels[0, :12], 2), labels[0, :12])
    image = np.random.default_rng(0).random((1, 1, 20, 30)).astype(np.float32)
    sample = Sample(name="a", image=image, labels=labels, classes=("background", "a", "b"))
    grid = pieces([sample], Tiling(core=(1, 16, 64)))
    assert len(grid) == 2
    item = _Pieces(grid, 2, None)[1]
    assert item["image"].shape == (1, 1, 16, 30)
    assert item["image"][0, 0].numpy() == pytest.approx(image[0, 0, 4:])
    assert (item["labels"][0, 0] > 0).all() and (item["labels"][0, 4:8] > 0).all()
    assert (item["classes"][0, 11:] == -100).all() and (item["labels"][0, 11:] == 0).all()
    chosen = _Pieces(grid, 2, 2)[1]
    assert (chosen["labels"][0, 0] == 0).all() and (chosen["labels"][0, 4:8] > 0).all()
    assert (chosen["classes"][0, 11:] == -100).all()


def job(folder: Path, dims: int, given: frozenset[str] = frozenset(), **values: Any) -> Any:
    """For a network of random weights."""
    torch.manual_seed(0)
    network = Network(
        Architecture.planned(
            channels=1,
            feature_size=4,
            emb_dim=2,
            num_classes=4,
            dims=dims,
            encoder="unet",
            deep_supervision=0,
            levels=2,
            spacing=(1.0,) * dims,
            patch=(16,) * dims,
        )
    )
    folder.mkdir()
    network.save(folder)
    Description().save(folder)
    options = (Vista2dPredictOptions if dims == 2 else Vista3dPredictOptions)(**values)
    return CalibrateJob(
        options=options,
        given=given,
        samples=[blobs(1, (1, 48, 64) if dims == 2 else (12, 32, 48))],
        tiling=Tiling(core=(16, 1024, 1024)),
        device="cpu",
        model=folder,
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_found_is_what_prediction_takes(tmp_path: Path, dims: int) -> None:
    spec = Plugins().get(PredictorSpec, f"vista{dims}d")
    assert spec.calibrate is not None
    notes: list[Any] = []
    given: dict[str, Any] = {"precision": "bf16-mixed", "foreground_threshold": 0.4}
    asked = job(tmp_path / "m", dims, frozenset(given), **given)
    found = spec.calibrate(asked, notes.append)
    assert {"method", "foreground_threshold", "min_size"} <= found.keys()
    assert found["foreground_threshold"] == 0.4
    spec.options(**found)
    assert "before calibration" in notes[-1].text


def test_what_prediction_refuses_is_refused(tmp_path: Path) -> None:
    calibrated = Plugins().get(PredictorSpec, "vista2d").calibrate
    assert calibrated is not None
    windows = job(tmp_path / "a", 2, frozenset({"patch_size"}), patch_size=(1, 32, 32))
    with pytest.raises(ConfigError, match="--patch-size does nothing here"):
        calibrated(windows, print)
    with pytest.raises(ConfigError, match="--class-id 7"):
        calibrated(job(tmp_path / "b", 2, class_id=7), print)
    with pytest.raises(WeightsError):
        calibrated(job(tmp_path / "c", 3), print)


def test_a_trained_model_is_calibrated_again(tmp_path: Path) -> None:
    """The whole job: what training found is found again, and spoilt thresholds are mended."""
    write_dataset(tmp_path / "data", count=4, size=64, seed=0)
    plugins = Plugins()
    tiny = {"feature_size": 4, "emb_dim": 2, "levels": 2, "patch_size": 32, "batch_size": 2}
    settings = TrainSettings(epochs=6, device="cpu")
    run = train(
        plugins, "vista2d", tmp_path / "data", tmp_path / "run", settings=settings,
        options={**tiny, "learning_rate": 0.01, "patches_per_image": 8},
    )  # fmt: skip
    notes: list[Any] = []
    bundle = Bundle.load(run.model)

    def again() -> Any:
        return calibrate(
            plugins, CalibrateSettings(device="cpu"), model=run.path, emit=notes.append
        )

    assert again().options == bundle.predict
    spoilt = {**bundle.predict, "foreground_threshold": 0.97, "min_size": 100}
    bundle.model_copy(update={"predict": spoilt}).save(run.model)
    mended = again()
    assert mended.options["foreground_threshold"] < 0.97 and mended.options["min_size"] < 100
    assert Bundle.load(run.model).predict == mended.options
    scores = [note.text for note in notes if isinstance(note, Note) and "before" in note.text]
    reached, before = (float(word.strip(",.")) for word in scores[-1].split() if "0." in word)
    assert reached > before + 0.2

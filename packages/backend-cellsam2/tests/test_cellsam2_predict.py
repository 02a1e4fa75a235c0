"""Loading a model to segment still images, to track movies, and to find thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from cellseg import ConfigError, PredictJob, Tile
from cellseg.data import Sample, Tiling
from cellseg.errors import DataError, DeviceError
from cellseg.events import Event, Note
from cellseg.specs import CalibrateJob
from cellseg.testing import blobs
from cellseg_cellsam2 import calibrate as calibrating
from cellseg_cellsam2.calibrate import calibrate
from cellseg_cellsam2.encoding import Encoder
from cellseg_cellsam2.predict import load, track
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.stored import save
from cellseg_cellsam2.weights import make_model

torch.set_num_threads(1)
ANYTHING = {"pred_iou": 0.0, "presence_threshold": 0.01, "heat_threshold": 0.0, "min_size": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; three frames, two pixels of the square for one of the image."""
    network, _ = make_model("nano", 64, 0, None, lambda event: None)
    torch.nn.init.zeros_(network.heat.mix[-1].bias)  # something is warm
    path = tmp_path_factory.mktemp("model")
    save(network, path, scale=2.0, num_frames=3)
    return path


def job(model: Path | None, **given: Any) -> PredictJob[CellSam2PredictOptions]:
    options = CellSam2PredictOptions(**{**ANYTHING, **given})
    return PredictJob(options=options, device="cpu", model=model)


def noise(seed: int, shape: tuple[int, int] = (32, 32)) -> Tile:
    rng = np.random.default_rng(seed)
    return Tile(image=rng.random((1, 1, *shape), np.float32))


def test_there_must_be_a_model() -> None:
    with pytest.raises(ConfigError, match="no published weights"):
        load(job(None))
    with pytest.raises(ConfigError, match="no published weights"):
        track(job(None))


def test_options_of_tracks_do_nothing_with_still_images(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-gap: nothing to do"):
        load(job(model, max_gap=1))
    track(job(model, max_gap=1))


def test_a_model_of_single_frames_does_not_track(model: Path, tmp_path: Path) -> None:
    network, _ = make_model("nano", 64, 0, None, lambda event: None)
    save(network, tmp_path, num_frames=1)
    with pytest.raises(ConfigError, match="has not learned to track") as caught:
        track(job(tmp_path))
    assert "--no-track" in str(caught.value.hint)
    load(job(tmp_path))


def test_a_cpu_does_not_compute_in_half_precision(model: Path) -> None:
    with pytest.raises(DeviceError, match="fp16"):
        load(job(model, precision="fp16"))


@pytest.mark.parametrize("precision", ["32-true", "bf16"])
def test_tiles_of_a_batch_do_not_depend_on_each_other(model: Path, precision: str) -> None:
    predict = load(job(model, precision=precision))
    blank = Tile(image=np.full((1, 1, 32, 32), 0.5, np.float32))
    tiles = [noise(0), blank, noise(1)]
    found = predict(tiles)
    assert not found[1].labels.any()
    assert found[0].labels.any() and found[2].labels.any()
    for tile, one in zip(tiles, found, strict=True):
        np.testing.assert_array_equal(one.labels, predict([tile])[0].labels)
        assert one.labels.shape == (1, 32, 32) and one.labels.dtype == np.uint32
        assert {*one.scores} == {*np.unique(one.labels).tolist()} - {0}


def test_objects_per_batch_is_what_goes_through_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellseg_cellsam2.model import CellSam2

    asked = []
    answer = CellSam2._answer

    def counted(self: CellSam2, encoded: Any, image: torch.Tensor, *rest: Any) -> Any:
        asked.append(len(image))
        return answer(self, encoded, image, *rest)

    monkeypatch.setattr(CellSam2, "_answer", counted)
    given = {"use_heatmap": False, "points_per_side": 4}
    options = {name: value for name, value in ANYTHING.items() if name != "heat_threshold"}
    for count in (5, 16):
        chosen = CellSam2PredictOptions(**options, **given, objects_per_batch=count)
        load(PredictJob(options=chosen, device="cpu", model=model))([noise(0)])
    assert asked == [5, 5, 5, 1, 16]


def test_a_tile_is_seen_at_the_scale_of_the_training(model: Path) -> None:
    """One that fills the square, and a smaller one in its corner, look the same there."""
    network, _ = make_model("nano", 64, 0, None, lambda event: None)
    encoder = Encoder.of(network, 2.0, CellSam2PredictOptions())
    assert encoder.frame((32, 32)).factor == encoder.frame((20, 8)).factor == (2.0, 2.0)
    assert encoder.frame((64, 30)).scaled == (64, 30), "larger ones are seen smaller"
    seen = []
    network.prepare = lambda images: seen.append(images) or images  # type: ignore[func-returns-value]
    network.encode = lambda prepared: prepared
    image = np.full((1, 1, 32, 32), 0.25, np.float32)
    image[..., 4:8, 4:8] = 1.0
    encoder.encode([image])
    encoder.encode([image[..., :20, :12]])
    assert torch.allclose(seen[0], seen[1], atol=1e-6), "the rest is as dark as the background"


def test_trackers_of_one_model_do_not_know_each_other(model: Path) -> None:
    make = track(job(model))
    one, other = make(None), make(None)
    one.step(noise(3))
    np.testing.assert_array_equal(
        one.step(noise(0)).labels.shape, other.step(noise(0)).labels.shape
    )
    assert int(one.state()["time"]) == 2 and int(other.state()["time"]) == 1
    third = make(one.state())
    np.testing.assert_array_equal(third.step(noise(1)).labels, one.step(noise(1)).labels)


def _calibrate_job(model: Path, samples: list[Sample], **given: Any) -> Any:
    return CalibrateJob(
        options=CellSam2PredictOptions(**given),
        given=frozenset(given),
        samples=samples,
        tiling=Tiling(core=(1, 32, 32), halo=(0, 0, 0)),
        device="cpu",
        model=model,
    )


def test_calibration_needs_labels(model: Path) -> None:
    image = noise(0).image
    with pytest.raises(DataError, match="no labels"):
        calibrate(_calibrate_job(model, [Sample(name="a", image=image)]), lambda event: None)
    with pytest.raises(DataError, match="no images"):
        calibrate(_calibrate_job(model, []), lambda event: None)


def test_options_of_tracks_are_not_calibrated(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-gap: nothing to do with calibration"):
        calibrate(_calibrate_job(model, [blobs(1)], max_gap=1), lambda event: None)


def test_calibration_gives_options_and_says_so(model: Path) -> None:
    events: list[Event] = []
    samples = [blobs(1), blobs(2)]
    found = calibrate(_calibrate_job(model, samples), events.append)
    assert {*found} == {"heat_threshold", "pred_iou", "min_size"}
    CellSam2PredictOptions(**found)
    assert any(isinstance(event, Note) and "Thresholds" in str(event) for event in events)
    assert {*calibrate(_calibrate_job(model, samples, pred_iou=0.6), events.append)} == {
        "heat_threshold",
        "min_size",
    }
    given = {"use_heatmap": False, "points_per_side": 4}
    found = calibrate(_calibrate_job(model, samples, **given), events.append)
    assert {*found} == {"use_heatmap", "pred_iou", "min_size"}
    CellSam2PredictOptions(**found)


def test_calibration_counts_what_prediction_finds(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it keeps to try thresholds on gives the labels that asking anew gives."""
    tiles: list[Any] = []
    propose = calibrating._propose

    def kept(*given: Any) -> Any:
        tiles.append((given[1], propose(*given)))
        return tiles[-1][1]

    monkeypatch.setattr(calibrating, "_propose", kept)
    calibrate(_calibrate_job(model, [blobs(1)]), lambda event: None)
    checked = 0
    for given in ({"pred_iou": 0.4}, {"heat_threshold": 0.05}, {"pred_iou": 0.6, "min_size": 10}):
        options = {"pred_iou": 0.0, "heat_threshold": 0.02, "min_size": 0, **given}
        chosen = CellSam2PredictOptions(**options)
        predict = load(PredictJob(options=chosen, device="cpu", model=model))
        for image, proposed in tiles:
            labels = predict([Tile(image=image)])[0].labels[0]
            np.testing.assert_array_equal(proposed.labels(chosen), labels)
            checked += int(labels.any())
    assert checked

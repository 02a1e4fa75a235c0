"""Thresholds from labelled images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from cellseg import Sample
from cellseg.classes import UNKNOWN
from cellseg.data import Tiling
from cellseg.errors import ConfigError, DataError
from cellseg.events import Event, Note
from cellseg.specs import CalibrateJob
from cellseg.torch.calibration import labelled_tiles
from cellseg_microsam import calibrate as module
from cellseg_microsam.calibrate import calibrate, search
from cellseg_microsam.description import Description
from cellseg_microsam.model import MicroSam
from cellseg_microsam.predict_options import USED, MicrosamPredictOptions
from cellseg_microsam.stored import save_model
from cellseg_microsam.thresholds import Resolved, resolve

Make = Callable[..., Path]


def resolved(**values: Any) -> Resolved:
    return resolve(MicrosamPredictOptions(), "ais", "vit_b").changed(**values)


def discs(seed: int, size: tuple[int, int] = (96, 96), radius: int = 7) -> np.ndarray:
    """Labels ``(y, x)`` of discs that touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint32)
    y, x = np.indices(size)
    number = 0
    for cy in range(radius, size[0], 2 * radius):
        for cx in range(radius, size[1], 2 * radius):
            if rng.random() < 0.6:
                number += 1
                labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return labels


def maps(labels: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """What a decoder says that sees objects well; ``shift`` moves all it says of distances."""
    foreground = np.where(labels > 0, 0.8, 0.2)
    center, boundary = np.ones((2, *labels.shape))
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask]
        boundary[mask] = 1 - depth / depth.max()
        center[mask] = 1 - depth / depth.max()
    return np.stack([foreground, center + shift, boundary + shift]).clip(0, 1).astype(np.float32)


def test_a_model_that_exaggerates_distances_gets_higher_thresholds() -> None:
    truths = [discs(seed) for seed in range(2)]
    pairs = [(maps(truth, 0.5), truth) for truth in truths]
    choice = search(pairs, resolved(distance_smoothing=0.0))
    assert choice.before["f1@0.50"] < 0.2 < 0.95 < choice.after["f1@0.50"]
    found = choice.options
    assert found.center_distance_threshold > 0.5 and found.boundary_distance_threshold > 0.5
    assert choice.stored["segmentation_mode"] == "ais"
    assert choice.stored.keys() == {"segmentation_mode", *USED["ais"]}
    MicrosamPredictOptions(**choice.stored)
    assert "ais" in str(choice) and "before" in str(choice)


def test_what_works_already_stays() -> None:
    truths = [discs(seed) for seed in range(2)]
    start = resolved(distance_smoothing=0.0, foreground_smoothing=0.0)
    choice = search([(maps(truth), truth) for truth in truths], start)
    assert choice.options == start and choice.before == choice.after
    assert choice.after["f1@0.50"] > 0.95


def test_what_the_user_gives_stays() -> None:
    truth = discs(0)
    start = resolved(center_distance_threshold=0.4, min_size=5, distance_smoothing=0.0)
    given = frozenset({"center_distance_threshold", "min_size"})
    choice = search([(maps(truth, 0.5), truth)], start, given)
    assert choice.options.center_distance_threshold == 0.4 and choice.options.min_size == 5
    assert search([(maps(truth, 0.5), truth)], start).options.center_distance_threshold != 0.4


def test_true_objects_are_not_too_small() -> None:
    """They have 150 pixels, and specks of a few dozen are none of them."""
    truth = discs(0, (160, 160))
    seen = maps(truth)
    rng = np.random.default_rng(0)
    for y, x in rng.integers(1, 150, (2000, 2)):
        if not truth[y - 1 : y + 5, x - 1 : x + 5].any():
            seen[0, y : y + 4, x : x + 4], seen[1:, y : y + 4, x : x + 4] = 0.9, 0.1
    start = resolved(distance_smoothing=0.0, foreground_smoothing=0.0)
    choice = search([(seen, truth)], start)
    assert choice.before["f1@0.50"] < 0.8 < 0.88 < choice.after["f1@0.50"]
    assert 25 <= choice.options.min_size <= 149
    small = search([(maps(truth), truth)], resolved(min_size=1000))
    assert small.options.min_size <= 149 and small.after["f1@0.50"] > 0.9


def test_unknown_pixels_do_not_count() -> None:
    truth = discs(1)
    seen = maps(truth)
    hidden = truth.copy()
    hidden[:, 40:] = UNKNOWN
    seen[0, :, 40:] = 0.1  # nothing is found where nobody knows
    start = resolved(distance_smoothing=0.0, foreground_smoothing=0.0)
    assert search([(seen, hidden)], start).before["f1@0.50"] > 0.9
    assert search([(seen, truth)], start).before["f1@0.50"] < 0.7


def test_images_without_objects_change_nothing() -> None:
    nothing = np.zeros((40, 40), np.uint32)
    start = resolved(min_size=30)
    choice = search([(maps(nothing), nothing)], start)
    assert choice.options == start and choice.after == {"f1@0.50": 0, "mSA@0.50:0.95": 0}


def sample(number: int, size: tuple[int, int] = (70, 100), depth: int = 1) -> Sample:
    rng = np.random.default_rng(number)
    labels = np.stack([discs(number + z, size) for z in range(depth)])
    image = (labels > 0) * 0.6 + rng.random((depth, *size)) * 0.4
    return Sample(name=f"i{number}", image=image[None].astype(np.float32), labels=labels)


@pytest.fixture
def model(make_sam: Callable[..., Any]) -> Callable[[Path], Path]:
    """``model(path)``: a tiny model in a directory."""

    def make(path: Path) -> Path:
        network = make_sam(sharp=True)
        described = Description(
            model_type="tiny", architecture=network.architecture.to_dict(), prompts_trained=True
        )
        path.mkdir()
        save_model(network, described, path)
        return path

    return make


def job(path: Path, given: frozenset[str] = frozenset(), **values: Any) -> CalibrateJob[Any]:
    return CalibrateJob(
        options=MicrosamPredictOptions(**values),
        given=given,
        samples=values.pop("samples", None) or [sample(0), sample(1)],
        tiling=Tiling(core=(1, 64, 64), halo=(0, 8, 8)),
        device="cpu",
        model=path,
    )


@pytest.mark.parametrize("mode", ["auto", "ais", "apg", "amg"])
def test_every_mode_is_calibrated_and_each_tile_encoded_once(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    seen: list[int] = []
    encode = MicroSam.encode

    def spied(self: MicroSam, prepared: torch.Tensor) -> torch.Tensor:
        seen.append(len(prepared))
        return encode(self, prepared)

    monkeypatch.setattr(MicroSam, "encode", spied)
    values: dict[str, Any] = {} if mode == "auto" else {"segmentation_mode": mode}
    if mode == "amg":
        values |= {"points_per_side": 3}
    events: list[Event] = []
    asked = job(model(tmp_path / "m"), frozenset({"points_per_side"}), **values)
    found = calibrate(asked, events.append)
    assert found["segmentation_mode"] == ("ais" if mode == "auto" else mode)
    assert MicrosamPredictOptions(**found)
    assert found.get("points_per_side", 3) == 3
    assert sum(seen) == 4, "two tiles for each image"
    (note,) = events
    assert isinstance(note, Note) and "f1@0.50" in note.text and "before" in note.text


def test_a_threshold_that_is_given_stays(tmp_path: Path, model: Make) -> None:
    given = frozenset({"pred_iou_thresh"})
    asked = job(
        model(tmp_path / "m"),
        given,
        segmentation_mode="amg",
        pred_iou_thresh=0.33,
        points_per_side=3,
    )
    assert calibrate(asked, lambda event: None)["pred_iou_thresh"] == 0.33


def test_apg_asks_about_each_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    asked: list[tuple[int, ...]] = []
    answered = module.apg.answered

    def spied(image: Any, points: np.ndarray) -> Any:
        asked.extend((id(image), *point) for point in points.tolist())
        return answered(image, points)

    monkeypatch.setattr(module.apg, "answered", spied)
    calibrate(job(model(tmp_path / "m"), segmentation_mode="apg"), lambda event: None)
    assert asked and len(asked) == len(set(asked))


def test_a_bounded_number_of_tiles_is_evenly_chosen() -> None:
    samples = [sample(0, (16, 16)), sample(1, (320, 320)), sample(2, (48, 48), depth=3)]
    tiling = Tiling(core=(1, 64, 64), halo=(0, 8, 8))
    tiles, truths = labelled_tiles(samples, tiling, 16)
    assert len(tiles) == len(truths) == 16
    for tile, truth in zip(tiles, truths, strict=True):
        assert tile.image.shape[1:] == (1, *truth.shape) and max(truth.shape) <= 80
        assert ((tile.image[0, 0] > 0.5) == (truth > 0)).mean() > 0.9, "image and labels match"
    every, _ = labelled_tiles(samples, tiling, 1000)
    assert len(every) == 1 + 25 + 3


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path, model: Make) -> None:
    path = model(tmp_path / "m")
    with pytest.raises(ConfigError, match="prompts"):
        calibrate(job(path, segmentation_mode="prompts"), lambda event: None)
    with pytest.raises(ConfigError, match="--multimask: nothing to do with ais"):
        calibrate(job(path, multimask=True), lambda event: None)
    bare = Sample(name="bare", image=np.zeros((1, 1, 20, 20), np.float32))
    with pytest.raises(DataError, match="bare has no labels"):
        labelled_tiles([bare], Tiling(), 4)

"""The watershed of the decoder's maps, and the thresholds that suit a model."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter, label

from cellseg.torch.sam.model_types import MODEL_TYPES
from cellseg_microsam.ais import Smoothed, find_instances, smoothed
from cellseg_microsam.predict_options import USED, MicrosamPredictOptions, Mode
from cellseg_microsam.thresholds import Resolved, resolve


def resolved(mode: Mode = "ais", **values: Any) -> Resolved:
    return resolve(MicrosamPredictOptions(), mode, "tiny").changed(**values)


def random_maps(size: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth, and with many objects of some ten pixels."""
    rng = np.random.default_rng(seed)
    maps = np.stack([gaussian_filter(rng.random(size), 3) for _ in range(3)])
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ((maps - low) / (high - low)).astype(np.float32)


def ideal_maps(labels: np.ndarray) -> np.ndarray:
    """What a decoder without faults says of labels ``(y, x)``."""
    from scipy.ndimage import distance_transform_edt

    foreground = (labels > 0).astype(np.float32)
    center, boundary = np.ones((2, *labels.shape), np.float32)
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask]
        boundary[mask] = 1 - depth / depth.max()
        y, x = np.nonzero(mask)
        away = np.hypot(y - y.mean(), x - x.mean())
        center[mask] = away / max(away.max(), 1)
    return np.stack([foreground, center, boundary])


def same_objects(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two label images differ in their numbers at most."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1] and [0, 0] in pairs.T.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_objects_are_those_of_micro_sam(seed: int) -> None:
    from micro_sam.instance_segmentation import InstanceSegmentationWithDecoder

    maps = random_maps((123, 167), seed)
    theirs = InstanceSegmentationWithDecoder(None, None)
    theirs._foreground, theirs._center_distances, theirs._boundary_distances = maps
    theirs._is_initialized = True
    many = 0
    for values in (
        {"foreground_threshold": 0.3},
        {"center_distance_threshold": 0.4, "boundary_distance_threshold": 0.6, "min_size": 40},
        {"foreground_smoothing": 0.0, "distance_smoothing": 0.0, "foreground_threshold": 0.45},
    ):
        labels, scores = find_instances(maps, resolved(**values))
        options = resolved(**values)
        expected = theirs.generate(
            center_distance_threshold=options.center_distance_threshold,
            boundary_distance_threshold=options.boundary_distance_threshold,
            foreground_threshold=options.foreground_threshold,
            foreground_smoothing=options.foreground_smoothing,
            distance_smoothing=options.distance_smoothing,
            min_size=options.min_size,
        )
        assert same_objects(labels, expected)
        assert len(scores) == len(np.unique(expected)) - 1
        many += len(scores)
    assert many > 30


def test_ideal_maps_give_the_objects_back() -> None:
    labels = np.zeros((60, 80), np.uint32)
    labels[5:25, 5:30], labels[25:50, 5:30], labels[10:40, 40:75] = 7, 9, 2**31
    found, scores = find_instances(
        ideal_maps(labels), resolved(distance_smoothing=0.0, foreground_smoothing=0.0)
    )
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found > 0, labels > 0)
    for number in (7, 9, 2**31):  # where two touch, pixels of the border may change sides
        one = labels == number
        other = found == np.bincount(found[one]).argmax()
        assert (one & other).sum() / (one | other).sum() > 0.99
    assert scores == {1: 1.0, 2: 1.0, 3: 1.0}


def test_scores_are_the_mean_probability_of_the_pixels() -> None:
    maps = random_maps((50, 70), 1)
    found, scores = find_instances(maps, resolved(foreground_threshold=0.4))
    assert len(scores) > 3
    for number, score in scores.items():
        assert score == pytest.approx(maps[0][found == number].mean(), abs=1e-5)


def test_small_objects_are_left_out_and_the_others_numbered_without_gaps() -> None:
    maps = random_maps((90, 70), 2)
    every, _ = find_instances(maps, resolved(min_size=0))
    sizes = np.bincount(every.ravel())[1:]
    least = int(np.median(sizes))
    some, scores = find_instances(maps, resolved(min_size=least))
    assert set(np.unique(some)) - {0} == set(scores) == set(range(1, (sizes >= least).sum() + 1))
    assert min(np.bincount(some.ravel())[1:]) >= least
    assert (every[some > 0] > 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 1), (2, 3)])
def test_tiny_images_and_constant_maps_are_no_trouble(size: tuple[int, int]) -> None:
    for value in (0.0, 0.5, 1.0):
        found, scores = find_instances(np.full((3, *size), value, np.float32), resolved())
        assert found.shape == size and not found.any() and not scores
    maps = np.zeros((3, *size), np.float32)
    maps[0] = 1
    found, scores = find_instances(maps, resolved())
    assert (found == 1).all() and scores == {1: 1.0}


def test_no_smoothing_leaves_a_map_alone_and_smoothing_keeps_its_mean() -> None:
    values = random_maps((40, 50), 3)[0]
    np.testing.assert_array_equal(smoothed(values, 0.0), values)
    soft = smoothed(values, 2.0)
    assert soft.std() < values.std()
    assert soft.mean() == pytest.approx(values.mean(), rel=0.02)


def test_seeds_are_foreground_near_a_centre_and_far_from_a_boundary() -> None:
    maps = random_maps((40, 50), 4)
    options = resolved(
        center_distance_threshold=0.6, boundary_distance_threshold=0.7, foreground_threshold=0.3
    )
    seen = Smoothed.of(maps, options.changed(distance_smoothing=0.0, foreground_smoothing=0.0))
    expected = (maps[0] > 0.3) & (maps[1] < 0.6) & (maps[2] < 0.7)
    for connectivity, neighbours in ((4, None), (8, np.ones((3, 3)))):
        seeds = seen.seeds(options, connectivity)
        assert same_objects(seeds, label(expected, neighbours)[0]) and seeds.max() > 1


@pytest.mark.slow
def test_the_values_of_the_generalists_are_those_of_micro_sam() -> None:
    from micro_sam._model_settings import AIS_SETTINGS, AMG_SETTINGS

    for name, theirs in AIS_SETTINGS.items():
        if name in MODEL_TYPES:
            ours = resolve(MicrosamPredictOptions(), "ais", name)
            assert ours.center_distance_threshold == theirs["center_distance_thresh"]
            assert ours.boundary_distance_threshold == theirs["boundary_distance_thresh"]
            assert ours.distance_smoothing == theirs["distance_smoothing"]
            assert ours.min_size == theirs["min_size"]
    for name, theirs in AMG_SETTINGS.items():
        if name in MODEL_TYPES:
            ours = resolve(MicrosamPredictOptions(), "amg", name)
            assert ours.pred_iou_thresh == theirs["pred_iou_thresh"]
            assert ours.stability_score_thresh == theirs["stability_score_thresh"]
            assert ours.min_size == theirs["min_object_size"]


def test_what_is_not_given_suits_model_mode_and_device() -> None:
    plain = MicrosamPredictOptions()
    assert resolve(plain, "ais", "vit_b_lm").center_distance_threshold == 0.4
    assert resolve(plain, "ais", "vit_b").center_distance_threshold == 0.5
    assert resolve(plain, "ais", "vit_b").distance_smoothing == 1.6
    assert resolve(plain, "apg", "vit_b_lm").distance_smoothing == 0
    assert resolve(plain, "apg", "vit_b_lm").min_size == 25
    assert resolve(plain, "amg", "vit_b").pred_iou_thresh == 0.88
    assert resolve(plain, "amg", "vit_b").nms_threshold == 0.7
    assert resolve(plain, "apg", "vit_b").nms_threshold == 0.9
    assert resolve(plain, "apg", "vit_b", "cuda").prompts_per_batch == 64
    assert resolve(plain, "apg", "vit_b", "cpu").prompts_per_batch == 4
    given = MicrosamPredictOptions(min_size=0, distance_smoothing=0.0, prompts_per_batch=3)
    kept = resolve(given, "ais", "vit_b_lm")
    assert (kept.min_size, kept.distance_smoothing, kept.prompts_per_batch) == (0, 0, 3)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_bundle_keeps_what_the_mode_uses(mode: Mode) -> None:
    stored = resolve(MicrosamPredictOptions(), mode, "vit_l_lm").stored
    assert stored.pop("segmentation_mode") == mode
    assert stored.keys() == {*USED[mode]} - {"prompts_per_batch"}
    options = MicrosamPredictOptions(segmentation_mode=mode, **stored)
    again = resolve(options, mode, "tiny").stored
    assert again == {"segmentation_mode": mode, **stored}


def test_options_that_do_nothing_are_refused() -> None:
    for mode, values, names in (
        ("ais", {"points_per_side": 16}, ["--points-per-side"]),
        ("amg", {"foreground_smoothing": 2.0, "multimask": True}, ["--foreground-", "--multimask"]),
        ("apg", {"pred_iou_thresh": 0.5}, ["--pred-iou-thresh"]),
        ("prompts", {"min_size": 4}, ["--min-size"]),
    ):
        with pytest.raises(ValidationError) as error:
            MicrosamPredictOptions(segmentation_mode=mode, **values)
        assert all(name in str(error.value) for name in names)
        assert MicrosamPredictOptions(**values).unused(mode)
        assert not MicrosamPredictOptions(**values).unused("ais", "apg", "amg", "prompts")


def test_what_a_model_brings_serves_its_own_mode_and_maps_serve_both() -> None:
    over = MicrosamPredictOptions.over
    stored = {"segmentation_mode": "ais", "center_distance_threshold": 0.7, "min_size": 9}
    assert over(stored, {"min_size": 4}) == {**stored, "min_size": 4}
    assert over(stored, {"segmentation_mode": "ais"}) == stored
    assert over(stored, {"segmentation_mode": "apg"}) == {
        "segmentation_mode": "apg",
        "center_distance_threshold": 0.7,
    }
    for mode in ("amg", "prompts", "auto"):
        assert over(stored, {"segmentation_mode": mode}) == {"segmentation_mode": mode}
    assert over({}, {"segmentation_mode": "apg", "min_size": 3}) == {
        "segmentation_mode": "apg",
        "min_size": 3,
    }
    grid = {"segmentation_mode": "amg", "pred_iou_thresh": 0.5}
    assert over(grid, {"segmentation_mode": "ais"}) == {"segmentation_mode": "ais"}
    assert over(grid, {}) == grid

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellseg.augment import Augmentation
from cellseg.data import ZYX, Sample
from cellseg.errors import ConfigError
from cellseg.options import parse
from cellseg.report.drawing import decoded
from cellseg.sampling_options import AugmentOptions, PatchOptions
from cellseg.workflows.preview_augmentation import preview_augmentation

CHANGES = tuple(
    name.removesuffix("_probability")
    for name in AugmentOptions.model_fields
    if name.endswith("_probability") and name != "swap_depth_probability"  # for cubes alone
)
SPATIAL = ("flip", "rotate90", "affine", "elastic")
INTENSITY = tuple(name for name in CHANGES if name not in SPATIAL)


def only(*names: str, **more: Any) -> Augmentation:
    """An augmentation that always does ``names``, and nothing else."""
    assert set(names) <= set(CHANGES)
    chances: dict[str, object] = {f"{n}_probability": float(n in names) for n in CHANGES}
    return Augmentation(parse(AugmentOptions, chances | more))


def scene(shape: ZYX = (1, 96, 96), seed: int = 0, channels: int = 2) -> tuple[Any, Any]:
    """An image that is positive where the labels are, and its labels, with ids of all sizes."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), (0, 7, 7))
    pieces, count = ndimage.label(smooth > np.quantile(smooth, 0.6))
    ids = np.concatenate([[0], rng.choice(2**32 - 1, count, replace=False) + 1])
    labels = ids[pieces].astype(np.uint32)
    return np.repeat(np.where(labels > 0, 1.0, 0.0)[None], channels, 0).astype("f4"), labels


def test_there_is_every_kind_of_change() -> None:
    intensity = {"blur", "noise", "gain_noise", "brightness", "contrast", "gamma"}
    assert set(CHANGES) == {*SPATIAL, *intensity}


@pytest.mark.parametrize("names", [("flip",), ("rotate90",), ("flip", "rotate90")])
@pytest.mark.parametrize("slices", ["same", "each"])
@pytest.mark.parametrize("shape", [(1, 40, 40), (4, 32, 32), (1, 40, 61), (3, 20, 50)])
def test_whole_pixels_move_together_exactly(
    names: tuple[str, ...], slices: str, shape: ZYX
) -> None:
    _, labels = scene(shape)
    labels = labels % 60_000
    image = labels[None].astype(np.float32)
    moved = 0
    for seed in range(12):
        augment = only(*names, augment_slices=slices)
        changed, truth = augment(image, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(changed[0].astype(np.uint32), truth)
        np.testing.assert_array_equal(np.sort(truth, axis=None), np.sort(labels, axis=None))
        moved += not np.array_equal(truth, labels)
    square = shape[1] == shape[2]
    assert moved or (not square and len(names) == 2), "only both of these undo each other"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([("affine",), ("elastic",), SPATIAL]),
    st.sampled_from([(1, 96, 96), (3, 80, 110)]),
)
def test_resampled_labels_stay_with_the_image(
    seed: int, names: tuple[str, ...], shape: ZYX
) -> None:
    image, labels = scene(shape, seed)
    changed, truth = only(*names)(image, labels, np.random.default_rng(seed))
    assert changed.shape == image.shape and truth.shape == labels.shape
    assert set(np.unique(truth).tolist()) <= set(np.unique(labels).tolist()) | {0}
    inside = np.abs(changed[0] - 0.5) > 0.45  # not at the rims, where the image is blurred
    assert inside.mean() > 0.7
    wrong = (changed[0] > 0.5) != (truth > 0)
    assert wrong[inside].mean() < 0.005
    np.testing.assert_array_equal(changed[0], changed[1])


@pytest.mark.parametrize("name", ["affine", "elastic"])
def test_each_object_goes_where_its_pixels_go(name: str) -> None:
    _, labels = scene(seed=4)
    for label in np.unique(labels)[1:4]:
        mask = (labels == label).astype(np.float32)[None]
        changed, truth = only(name)(mask, labels, np.random.default_rng(1))
        if (truth == label).sum() > 50:
            ours = ndimage.center_of_mass(changed[0])
            np.testing.assert_allclose(ours, ndimage.center_of_mass(truth == label), atol=0.5)


def test_what_comes_from_outside_is_background() -> None:
    labels = np.full((1, 64, 64), 7, np.uint32)
    labels[0, 20:40, 20:40] = 0
    image = np.where(labels > 0, 5.0, 2.0)[None].astype(np.float32)
    augment = only("affine", affine_scale=4.0, affine_rotation=0.0, affine_shear=0.0)
    for seed in range(20):
        changed, truth = augment(image, labels, np.random.default_rng(seed))
        if truth[0, 0, 0] == 0:
            assert changed[0, 0, 0, 0] == pytest.approx(2.0)
            return
    raise AssertionError("some patch must shrink")


@pytest.mark.parametrize("slices", ["same", "each"])
def test_no_chance_is_the_identity(slices: str) -> None:
    image, labels = scene((3, 40, 50))
    changed, truth = only(augment_slices=slices)(image, labels, np.random.default_rng(0))
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(truth, labels)
    changed[:], truth[:] = -1, 0
    assert image.min() == 0 and labels.max() > 0, "the result is a copy"


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("slices", ["same", "each"])
def test_each_change_repeats_and_does_something(name: str, slices: str) -> None:
    image, labels = scene((3, 48, 48))
    image = image + np.random.default_rng(0).normal(0, 0.2, image.shape).astype(np.float32)
    before = image.copy(), labels.copy()
    augment = only(name, augment_slices=slices)
    one, same = (augment(image, labels, np.random.default_rng(3)) for _ in range(2))
    other = augment(image, labels, np.random.default_rng(4))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.flags.c_contiguous
    assert one[0].dtype == np.float32 and one[1].dtype == np.uint32
    assert np.isfinite(one[0]).all()
    assert not np.array_equal(one[0], image) or not np.array_equal(other[0], image)
    if name in INTENSITY:
        np.testing.assert_array_equal(one[1], labels)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("name", ["affine", "elastic", "rotate90", "gamma", "contrast", "blur"])
def test_slices_change_alike_or_each_by_itself(name: str) -> None:
    plane, truth = scene((1, 48, 48))
    plane = plane + np.linspace(0, 1, 48, dtype=np.float32)
    stack, labels = np.repeat(plane, 6, 1), np.repeat(truth, 6, 0)
    same, _ = only(name)(stack, labels, np.random.default_rng(1))
    for z in range(1, 6):
        np.testing.assert_allclose(same[:, z], same[:, 0], rtol=1e-5, atol=1e-6)
    each, _ = only(name, augment_slices="each")(stack, labels, np.random.default_rng(1))
    assert any(not np.allclose(each[:, z], each[:, 0], atol=1e-3) for z in range(1, 6))


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_changes_suit_any_scale(name: str) -> None:
    image, labels = scene()
    image = image + np.random.default_rng(0).normal(0, 0.1, image.shape).astype(np.float32)
    plain, _ = only(name)(image, labels, np.random.default_rng(2))
    large, _ = only(name)(image * 1000 + 500, labels, np.random.default_rng(2))
    np.testing.assert_allclose((large - 500) / 1000, plain, atol=1e-3)


@pytest.mark.parametrize("name", CHANGES)
def test_a_constant_patch_stays_finite(name: str) -> None:
    image, labels = np.zeros((1, 2, 20, 30), np.float32), np.zeros((2, 20, 30), np.uint32)
    changed, truth = only(name)(image, labels, np.random.default_rng(0))
    assert not changed.any() and not truth.any()


def test_gain_noise_is_a_factor_of_each_pixel() -> None:
    image, labels = np.zeros((2, 1, 64, 64), np.float32), np.zeros((1, 64, 64), np.uint32)
    image[:, :, 8:] = np.array([100, 1000])[:, None, None, None]
    changed, _ = only("gain_noise", gain_noise_range=0.2)(image, labels, np.random.default_rng(0))
    factors = changed[:, :, 8:] / image[:, :, 8:]
    assert factors.min() == pytest.approx(0.8, abs=0.002)
    assert factors.max() == pytest.approx(1.2, abs=0.002)
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert not np.allclose(factors[0], factors[1]) and len(np.unique(factors[0])) > 3000
    assert not changed[:, :, :8].any(), "the darkest stay as they are"


def test_gain_noise_that_is_off_leaves_the_other_changes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, labels = scene((3, 40, 40))
    augment = only(*SPATIAL, "noise", augment_slices="each")  # draws for a plane after the other
    off = augment(image, labels, np.random.default_rng(5))
    monkeypatch.setattr(Augmentation, "_gain_noise", lambda self, image, rng: image)
    for found, expected in zip(off, augment(image, labels, np.random.default_rng(5)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gain_noise_range": 0.2}, "--gain-noise-range does nothing with --gain-noise-prob"),
        ({"noise_probability": 0, "noise_sigma": 1}, "--noise-sigma does nothing with --noise"),
        ({"affine_probability": 0, "affine_scale": 2}, "--affine-scale does nothing with --aff"),
        ({"swap_depth_probability": 1, "augment_slices": "each"}, "exclude each other"),
    ],
)
def test_options_that_would_be_ignored_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(AugmentOptions, values)
    with pytest.raises(ConfigError, match=said):
        parse(type("Own", (AugmentOptions,), {}), values)
    parse(AugmentOptions, {"noise_probability": 0, "gain_noise_probability": 0.1})


def test_rotation_by_90_needs_a_square() -> None:
    image, labels = scene((1, 30, 50))
    for seed in range(5):
        _, truth = only("rotate90")(image, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(truth, labels[:, ::-1, ::-1])


def test_a_deformation_that_tears_is_refused() -> None:
    with pytest.raises(ConfigError, match="--elastic-strength 20 tears"):
        parse(AugmentOptions, {"elastic_strength": 20})


def test_the_strongest_allowed_deformation_keeps_objects_whole() -> None:
    image, labels = scene((1, 128, 128), seed=2)
    augment = only("elastic", elastic_strength=8.0, elastic_spacing=48.0)
    pieces_before = sum(ndimage.label(labels == i)[1] for i in np.unique(labels)[1:])
    for seed in range(5):
        _, truth = augment(image, labels, np.random.default_rng(seed))
        pieces = sum(ndimage.label(truth == i, np.ones((3, 3, 3)))[1] for i in np.unique(truth)[1:])
        assert pieces <= pieces_before + 2


def test_the_preview_shows_patches_with_outlines(tmp_path: Path) -> None:
    image, labels = scene((3, 120, 100), channels=2)
    samples = [Sample(name="a", image=(image * 900).astype(np.uint16), labels=labels % 1000)]
    patches = PatchOptions(patch_size=64, patch_depth=2)
    target = tmp_path / "new" / "seen.png"
    assert preview_augmentation(samples, patches, AugmentOptions(), target, count=3) == target
    picture = decoded(target.read_bytes())
    assert picture is not None
    side = 256 + 6
    assert picture.shape == (20 + 3 * side, 4 * side, 3)
    yellow = (picture[..., 0] > 150) & (picture[..., 2] < 110)
    for row in range(3):
        for column in range(4):
            corner = 20 + row * side, column * side
            assert yellow[corner[0] : corner[0] + 256, corner[1] : corner[1] + 256].any()
    again = preview_augmentation(samples, patches, AugmentOptions(), tmp_path / "b.png", count=3)
    assert again.read_bytes() == target.read_bytes()
    other = preview_augmentation(
        samples, patches, AugmentOptions(), tmp_path / "c.png", count=3, seed=1
    )
    assert other.read_bytes() != target.read_bytes()


def test_the_settings_of_the_preview_are_light() -> None:
    code = (
        "import sys, cellseg.workflows.preview_augmentation as p; p.PreviewSettings();"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_depth_is_swapped_with_the_other_axes() -> None:
    swapping = only(swap_depth_probability=1.0)
    labels = np.arange(27, dtype=np.uint32).reshape(3, 3, 3)
    image = labels[None].astype(np.float32)
    seen = set()
    for seed in range(12):
        moved, found = swapping(image, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(moved[0], found)
        axis = next(i for i in (1, 2) if np.array_equal(found, np.swapaxes(labels, 0, i)))
        seen.add(axis)
    assert seen == {1, 2}
    with pytest.raises(ConfigError, match="as deep as"):
        swapping(image[:, :2], labels[:2], np.random.default_rng(0))

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellseg import intensity
from cellseg.classes import UNKNOWN
from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.normalise import Normaliser, Statistics, normalised
from cellseg.options import parse
from cellseg.sampling_options import NormaliseOptions

METHODS = ("percentile", "min-max", "z-score", "none")
TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class Counting:
    """A lazy array that remembers how much was read, and the largest block."""

    def __init__(self, array: NDArray[Any], chunks: tuple[int, ...] | None = None) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read, self.largest = 0, 0
        if chunks:
            self.chunks = chunks

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        block = self.array[key]
        self.read += block.size
        self.largest = max(self.largest, block.size)
        return block


def image(dtype: str = "u2", channels: int = 2, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0, 20.0, (channels, 3, 40, 50)).clip(0, 120)
    values *= np.arange(1, channels + 1)[:, None, None, None] / channels
    if np.dtype(dtype).kind in "if" and dtype != "u1":
        values -= 30
    return values.astype(dtype)


def apply(normaliser: Normaliser, array: NDArray[Any]) -> NDArray[np.float32]:
    return normaliser.apply(array, normaliser.statistics(array))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("budget", [intensity.BLOCK, 500])
def test_percentiles_are_those_of_numpy(
    dtype: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intensity.block_slices, "__defaults__", (budget,))
    array = image(dtype)
    found = Normaliser(percentiles=(3.0, 95.0)).statistics(array)
    for channel, plane in enumerate(array):
        low, high = np.percentile(plane.astype(np.float64), (3, 95))
        assert found.shift[channel] == pytest.approx(low, rel=1e-12)
        assert 1 / found.scale[channel] == pytest.approx(high - low, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=40),
    st.sampled_from(["f4", "f8"]),
)
def test_percentiles_of_any_floats(values: list[float], dtype: str) -> None:
    array = np.array(values, dtype)
    found = Normaliser(percentiles=(10.0, 90.0)).statistics(array.reshape(1, 1, 1, -1))
    low, high = np.percentile(array.astype(np.float64), (10, 90))
    assert found.shift[0] == pytest.approx(low, rel=1e-9)
    if high - low > 1e-6 * max(abs(low), abs(high)):
        assert 1 / found.scale[0] == pytest.approx(high - low, rel=1e-6)


def test_the_ends_of_each_method() -> None:
    array = image("u2", 1)
    array[0, 0, 0, 0] = 500
    assert np.percentile(apply(Normaliser(), array), 1) == pytest.approx(0, abs=1e-6)
    assert np.percentile(apply(Normaliser(), array), 99.8) == pytest.approx(1, abs=1e-6)
    assert apply(Normaliser(), array).max() > 1, "nothing is clipped"
    least = apply(Normaliser(method="min-max"), array)
    assert (least.min(), least.max()) == (0, 1)
    score = apply(Normaliser(method="z-score"), array)
    assert score.mean() == pytest.approx(0, abs=1e-5) and score.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(apply(Normaliser(method="none"), array), array.astype("f4"))


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("pixels", ["all", "non-zero"])
def test_the_same_scene_of_any_type_comes_out_the_same(method: Any, pixels: Any) -> None:
    scene = image("u1", 2)
    normaliser = Normaliser(method=method, pixels=pixels)
    expected = apply(normaliser, scene)
    for other in (scene.astype("u2") * 257, scene.astype("i4") * 1000, scene.astype("f4") / 255):
        np.testing.assert_allclose(apply(normaliser, other), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("together", ["each", "together"])
def test_blocks_equal_the_whole(
    method: Any, together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    normaliser = Normaliser(method=method, channels=together)
    array = image("f4")
    whole = normaliser.statistics(array)
    monkeypatch.setattr(intensity.block_slices, "__defaults__", (333,))
    parts = normaliser.statistics(array)
    np.testing.assert_allclose(parts.shift, whole.shift, rtol=1e-12)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-12)
    part = normaliser.apply(array[:, 1:2, 5:30, 7:9], whole)
    np.testing.assert_array_equal(part, normaliser.apply(array, whole)[:, 1:2, 5:30, 7:9])


def test_memory_is_one_block_and_each_pass_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity.block_slices, "__defaults__", (1000,))
    for dtype, passes in (("u1", 1), ("u2", 1), ("f4", 2), ("f8", 4)):
        lazy = Counting(image(dtype))
        Normaliser().statistics(lazy)
        assert lazy.largest <= 1000
        assert lazy.read == passes * lazy.array.size
    single = Counting(image("f8")[:, :, :3, :3])
    Normaliser().statistics(single)
    assert single.read == single.array.size, "what fits in a block is read once"


def test_blocks_line_up_with_chunks() -> None:
    lazy = Counting(np.zeros((2, 5, 100, 130), "u1"), chunks=(1, 2, 32, 32))
    seen = np.zeros(lazy.shape, int)
    for where in intensity.block_slices(lazy, 2 * 2 * 32 * 64):
        assert all(part.start % n == 0 for part, n in zip(where[1:], (2, 32, 32), strict=True))
        seen[where] += 1
    assert (seen == 1).all()


def test_together_keeps_the_ratio_of_channels() -> None:
    array = image("u2", 2)
    together = Normaliser(method="min-max", channels="together").statistics(array)
    assert together.shift[0] == together.shift[1] and together.scale[0] == together.scale[1]
    each = Normaliser(method="min-max").statistics(array)
    assert each.scale[0] != each.scale[1]


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("method", METHODS[:3])
def test_an_empty_rim_does_not_change_non_zero_statistics(dtype: str, method: Any) -> None:
    array = np.where(image(dtype, 1) == 0, 1, image(dtype, 1)).astype(dtype)
    mosaic = np.zeros((1, 3, 100, 100), dtype)
    mosaic[:, :, 20:60, 30:80] = array
    normaliser = Normaliser(method=method, pixels="non-zero")
    bare, framed = normaliser.statistics(array), normaliser.statistics(mosaic)
    np.testing.assert_allclose(framed.shift, bare.shift, rtol=1e-9)
    np.testing.assert_allclose(framed.scale, bare.scale, rtol=1e-9)
    if method != "min-max" or array.min() > 0:
        assert Normaliser(method=method).statistics(mosaic) != framed


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("inverted", [(), (True,)])
@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_becomes_zero(method: Any, inverted: tuple[bool, ...], value: int) -> None:
    for dtype in ("u1", "u2", "f4"):
        normaliser = Normaliser(method=method, inverted=inverted, pixels="non-zero")
        result = apply(normaliser, np.full((1, 1, 8, 8), value, dtype))
        assert result.dtype == np.float32 and not result.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_pixels_that_are_not_finite_are_an_error(method: Any, bad: float, dtype: str) -> None:
    array = image(dtype, 1)
    array[0, 1, 3, 4] = bad
    sample = normalised(Sample(name="well-7", image=array), Normaliser(method=method))
    with pytest.raises(DataError, match=r"well-7: 1 pixels are NaN or infinite") as error:
        sample.image[:, :, :, :]
    assert error.value.hint


def test_the_place_of_bad_pixels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity.block_slices, "__defaults__", (50,))
    array = image("f4", 1)
    array[0, 2, 31, 4] = np.nan
    with pytest.raises(DataError, match="z 2 to 2, y 31 to 31, x 0 to 49"):
        Normaliser().statistics(array)


def test_inverting_mirrors_the_scale() -> None:
    array = image("u2", 2)
    for method in ("percentile", "min-max"):
        plain = apply(Normaliser(method=method), array)
        dark = apply(Normaliser(method=method, inverted=(True,)), array)
        np.testing.assert_allclose(dark, 1 - plain, atol=1e-5)
    one = apply(Normaliser(method="z-score", inverted=(False, True)), array)
    plain = apply(Normaliser(method="z-score"), array)
    np.testing.assert_allclose(one[0], plain[0])
    np.testing.assert_allclose(one[1], -plain[1])


@pytest.mark.parametrize("scope", ["image", "dataset"])
@pytest.mark.parametrize("polarity", ["as-is", "measure"])
@pytest.mark.parametrize("method", METHODS[:3])
def test_a_stored_normaliser_is_applied_the_same(method: str, scope: str, polarity: str) -> None:
    options = parse(
        NormaliseOptions,
        {"normalise": method, "normalise_scope": scope, "polarity": polarity},
    )
    samples = [discs(dark=True, seed=seed) for seed in range(3)]
    fitted = Normaliser.fit(options, samples)
    restored = Normaliser.model_validate_json(fitted.model_dump_json())
    assert restored == fitted
    new = image("u2", 1, seed=9)
    np.testing.assert_array_equal(apply(restored, new), apply(fitted, new))


def test_the_data_set_is_measured_as_one_image() -> None:
    samples = [Sample(name=str(i), image=image("u2", 2, seed=i)) for i in range(3)]
    together = np.concatenate([np.asarray(s.image) for s in samples], axis=1)
    for method in METHODS[:3]:
        options = parse(NormaliseOptions, {"normalise": method, "normalise_scope": "dataset"})
        found = Normaliser.fit(options, samples).dataset
        expected = Normaliser(method=method).statistics(together)
        assert found is not None
        np.testing.assert_allclose(found.shift, expected.shift, rtol=1e-9)
        np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-9)
        lazy = Counting(image("u2", 2))
        assert Normaliser.fit(options, samples).statistics(lazy) == found and not lazy.read


def test_images_of_other_channels_are_refused() -> None:
    options = NormaliseOptions(normalise_scope="dataset")
    one, two = (Sample(name=f"c{n}", image=image("u2", n)) for n in (1, 2))
    with pytest.raises(DataError, match="c2 has 2 channels, but c1 has 1"):
        Normaliser.fit(options, [one, two])
    fitted = Normaliser.fit(options, [one])
    with pytest.raises(DataError, match="new has 2 channels"):
        fitted.statistics(two.image, "new")


def discs(dark: bool, seed: int = 0, channels: int = 1) -> Sample:
    rng = np.random.default_rng(seed)
    y, x = np.indices((90, 90))
    labels = np.zeros((1, 90, 90), np.uint32)
    for number, (cy, cx) in enumerate([(20, 20), (60, 30), (45, 70)], start=1):
        labels[0, (y - cy) ** 2 + (x - cx) ** 2 < 100] = number
    signal = np.where(labels > 0, -300 if dark else 300, 0) + 40 * y  # a strong slope
    pixels = (1000 + signal + rng.normal(0, 20, labels.shape)).astype(np.uint16)
    return Sample(name=f"d{seed}", image=np.repeat(pixels[None], channels, 0), labels=labels)


def test_polarity_is_measured_for_each_channel_and_kept() -> None:
    options = NormaliseOptions(polarity="measure")
    assert Normaliser.fit(options, [discs(False)]).inverted == (False,)
    assert Normaliser.fit(options, [discs(True), discs(True, 1), discs(False, 2)]).inverted == (
        True,
    )
    mixed = discs(False, channels=2)
    inverse = np.stack([np.asarray(mixed.image)[0], 60000 - np.asarray(mixed.image)[1]])
    fitted = Normaliser.fit(options, [Sample(name="m", image=inverse, labels=mixed.labels)])
    assert fitted.inverted == (False, True)
    result, labels = apply(fitted, inverse), np.asarray(mixed.labels)
    np.testing.assert_allclose(result[0], result[1], atol=0.01)
    assert labels.any()


@pytest.mark.parametrize("labels", [None, np.zeros((1, 90, 90), np.uint8)])
def test_polarity_without_objects_is_an_error(labels: Any) -> None:
    sample = Sample(name="empty", image=discs(False).image, labels=labels)
    with pytest.raises(DataError, match="--polarity measure") as error:
        Normaliser.fit(NormaliseOptions(polarity="measure"), [sample])
    assert "--polarity bright" in str(error.value.hint)


def test_polarity_leaves_out_what_is_not_known() -> None:
    """Bright discs on grey; half of the image is black, and its labels are not known."""
    labels = np.asarray(discs(False).labels).astype(np.uint32)
    labels[:, : labels.shape[1] // 2] = UNKNOWN
    image = np.select([labels == UNKNOWN, labels > 0], [0, 900], 300).astype(np.uint16)[None]
    options = NormaliseOptions(polarity="measure")
    assert Normaliser.fit(options, [Sample(name="a", image=image, labels=labels)]).inverted == (
        False,
    )
    labels[labels == 0] = UNKNOWN
    with pytest.raises(DataError, match="found no labelled objects"):
        Normaliser.fit(options, [Sample(name="b", image=image, labels=labels)])


def test_stated_polarity() -> None:
    lazy = Counting(image())
    for polarity, inverted in (("as-is", ()), ("bright", ()), ("dark", (True,))):
        options = parse(NormaliseOptions, {"polarity": polarity})
        assert Normaliser.fit(options, [Sample(name="a", image=lazy)]).inverted == inverted
    assert not lazy.read


@pytest.mark.parametrize(
    "values",
    [
        {"percentile_low": 50, "percentile_high": 20},
        {"normalise": "z-score", "percentile_low": 5},
        {"normalise": "none", "polarity": "dark"},
        {"normalise": "none", "normalise_channels": "together"},
        {"stain_eosin": 0.1},
        {"stain_dab": 0.1},
        {"clahe_kernel": 64},
        {"clahe_clip": 0.02},
        {"normalise": "z-score", "clahe": True},
        {"normalise": "none", "clahe": True},
        {"normalise": "z-score", "gamma": 2},
        {"normalise": "none", "gamma": 0.5},
        {"clahe": True, "clahe_clip": 1 / 256},
        {"gamma": 0},
        {"stain_transform": "hed", "stain_eosin": -1},
    ],
)
def test_options_that_contradict_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--"):
        parse(NormaliseOptions, values)


def test_normalised_samples_are_lazy_and_travel_to_other_processes() -> None:
    lazy = Counting(image("u2", 2))
    sample = normalised(Sample(name="a", image=lazy, spacing=(2, 1, 1)), Normaliser())
    assert lazy.read == 0
    assert sample.image.dtype == np.float32 and sample.image.shape == lazy.shape
    part = sample.image[1:2, :, 4:9, 2:3]
    expected = apply(Normaliser(), lazy.array)[1:2, :, 4:9, 2:3]
    np.testing.assert_array_equal(part, expected)
    before = lazy.read
    copy = pickle.loads(pickle.dumps(sample))
    np.testing.assert_array_equal(copy.image[1:2, :, 4:9, 2:3], expected)
    assert copy.image.raw.read - before == part.size, "the statistics travel along"
    assert sample.spacing == (2, 1, 1)


def test_large_offsets_keep_their_digits() -> None:
    array = (np.arange(100).reshape(1, 1, 10, 10) + 2_000_000_000).astype(np.uint32)
    for kind in (array, array.astype(np.float64), array.astype(np.int64)):
        result = apply(Normaliser(method="min-max"), kind)
        np.testing.assert_allclose(result.ravel(), np.arange(100) / 99, atol=1e-6)


def test_apply_does_not_change_the_block() -> None:
    array = image("f4")
    before = array.copy()
    Normaliser().apply(array, Statistics(shift=(1.0, 2.0), scale=(3.0, 4.0)))
    np.testing.assert_array_equal(array, before)

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellseg import equalise
from cellseg.data import Sample
from cellseg.equalise import BINS, Equaliser, _mappings_of
from cellseg.errors import ConfigError
from cellseg.normalise import NormalisedImage, Normaliser, normalised
from cellseg.parts import Crop


class Counting:
    """A lazy array that remembers the largest block that was read, and how much in all."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read = self.largest = 0

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        block = self.array[key]
        self.read += block.size
        self.largest = max(self.largest, block.size)
        return block


def uneven(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Fine texture on a slope of brightness, from 0 to 1."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0.05, 0.7, shape[-1]) * np.linspace(0.4, 1, shape[-2])[:, None]
    values = slope + rng.normal(0, 0.05, shape) * slope + 0.1 * (rng.random(shape) < 0.05)
    return values.clip(0, 1).astype(np.float32)


def equalised(image: NDArray[np.float32], kernel: int = 32, clip: float = 0.01) -> Any:
    block = image.copy()
    Equaliser(image, kernel, clip).apply(block, (0, 0, 0))
    return block


@pytest.mark.parametrize("clip", [0.01, 0.03, 1.0])
def test_it_is_near_that_of_scikit_image(clip: float) -> None:
    """Not the same: theirs has 253 bins, gives all values of a bin its upper end, spreads what is
    clipped in whole pixels, and has the middles of the cells half a pixel elsewhere."""
    from skimage.exposure import equalize_adapthist

    image = uneven((1, 1, 256, 320))
    image = (image - image.min()) / np.ptp(image)
    wanted = equalize_adapthist(image[0, 0].astype(float), kernel_size=64, clip_limit=clip)
    found = equalised(image, 64, clip)[0, 0]
    apart = np.abs(found - wanted)
    assert apart.max() < 0.07 and apart.mean() < 0.02
    assert apart.mean() < 0.1 * np.abs(image[0, 0] - wanted).mean(), "it does change the image"
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.998


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),
    st.integers(8, 40),
    st.sampled_from([0.004, 0.01, 0.3, 1]),
    st.integers(1, 40),
)
def test_blocks_are_those_of_the_whole(
    shape: tuple[int, ...], kernel: int, clip: float, step: int
) -> None:
    image = uneven(shape)
    whole = equalised(image, kernel, clip)
    assert whole.min() >= 0 and whole.max() <= 1
    lazy = Equaliser(Counting(image), kernel, clip)
    for z in range(shape[1]):
        for y in range(0, shape[2], step):
            for x in range(0, shape[3], step):
                key = np.s_[:, z : z + 1, y : y + step, x : x + step]
                block = image[key].copy()
                lazy.apply(block, (z, y, x))
                np.testing.assert_array_equal(block, whole[key])


def test_planes_and_channels_do_not_mix() -> None:
    image = uneven((2, 3, 50, 60))
    whole = equalised(image)
    for channel in range(2):
        for z in range(3):
            part = np.ascontiguousarray(image[channel : channel + 1, z : z + 1])
            np.testing.assert_array_equal(whole[channel, z], equalised(part)[0, 0])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=BINS, max_size=BINS).filter(any),
    st.floats(0.004, 1, exclude_min=False),
)
def test_no_bin_exceeds_the_limit_and_none_is_lost(counts: list[int], clip: float) -> None:
    total = sum(counts)
    mapping = _mappings_of(np.array(counts), np.array([total]), clip).astype(np.float64)
    steps = np.diff(mapping)
    assert mapping[0] == 0 and mapping[-1] == 1 and steps.min() >= -1e-6
    assert steps.max() <= clip + 1e-5
    if max(counts) <= clip * total:
        np.testing.assert_allclose(steps, np.array(counts) / total, atol=1e-5)


def test_the_lowest_limit_changes_nothing_and_none_is_the_rank() -> None:
    image = uneven((1, 1, 40, 40))
    np.testing.assert_allclose(equalised(image, 40, 1 / BINS + 1e-9), image, atol=1e-3)
    ranks = image.ravel().argsort().argsort().reshape(image.shape) / image.size
    np.testing.assert_allclose(equalised(image, 40, 1.0), ranks, atol=0.03)


def test_empty_places_stay_dark_and_constant_ones_stay_as_they_are() -> None:
    assert not equalised(np.zeros((1, 1, 40, 40), np.float32)).any()
    half = np.full((1, 1, 40, 40), 0.5, np.float32)
    assert np.abs(equalised(half) - half).max() < 0.01


@pytest.mark.parametrize(("length", "cells"), [(1, 1), (60, 1), (95, 1), (96, 2), (640, 10)])
def test_cells_fit_the_image(length: int, cells: int) -> None:
    edges = equalise._edges(length, 64)
    assert len(edges) == cells + 1 and edges[0] == 0 and edges[-1] == length
    assert np.ptp(np.diff(edges)) <= 1


def test_only_the_surroundings_are_read_and_each_cell_once() -> None:
    lazy = Counting(uneven((1, 4, 320, 320)))
    equaliser = Equaliser(lazy, 32, 0.01)
    equaliser.apply(np.zeros((1, 1, 30, 30), np.float32), (2, 100, 100))
    assert 0 < lazy.read <= (4 * 32) ** 2
    before = lazy.read
    equaliser.apply(np.zeros((1, 1, 30, 30), np.float32), (2, 100, 100))
    assert lazy.read == before
    for y in range(0, 320, 40):
        for x in range(0, 320, 40):
            equaliser.apply(np.zeros((1, 1, 40, 40), np.float32), (1, y, x))
    assert lazy.read - before < 2 * 320 * 320


def test_few_mappings_are_kept_and_it_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equalise, "_MAPPINGS", equalise._Mappings())
    image = uneven((1, 1, 128, 128))
    whole = equalised(image)
    monkeypatch.setattr(equalise, "KEPT", 3 * 4 * (BINS + 1))
    monkeypatch.setattr(equalise, "_MAPPINGS", equalise._Mappings())
    np.testing.assert_array_equal(equalised(image), whole)
    assert len(equalise._MAPPINGS._found) == 3


NORMALISER = Normaliser(clahe=True, clahe_kernel=32, clahe_clip=0.02)


def raw(seed: int = 0) -> NDArray[np.uint16]:
    return (uneven((2, 3, 90, 100), seed) * 40000).astype(np.uint16)


def test_a_normalised_image_is_the_same_in_blocks_and_in_other_processes() -> None:
    image = raw()
    sample = normalised(Sample(name="a", image=Counting(image)), NORMALISER)
    whole = normalised(Sample(name="b", image=image), NORMALISER).image[:, :, :, :]
    assert 0 <= whole.min() and whole.max() <= 1
    travelled = pickle.loads(pickle.dumps(sample)).image
    for lazy in (sample.image, travelled, pickle.loads(pickle.dumps(sample.image))):
        for key in (np.s_[0:2, 1:2, 10:50, 20:100], np.s_[1:2, :, 60:90, 3:4], np.s_[0:1, :, :, :]):
            np.testing.assert_array_equal(lazy[key], whole[key])
    linear = Normaliser().apply(image, Normaliser().statistics(image))
    assert not np.allclose(whole, linear, atol=0.05)


def test_polarity_comes_before_equalising_and_gamma_last() -> None:
    image = raw()
    dark = NORMALISER.model_copy(update={"inverted": (True,), "gamma": 2.0})
    found = normalised(Sample(name="a", image=image), dark).image[:, :, :, :]
    linear = Normaliser(inverted=(True,))
    first = linear.apply(image, linear.statistics(image))
    Equaliser(first.copy(), 32, 0.02).apply(first, (0, 0, 0))
    np.testing.assert_array_equal(found, np.power(first.clip(0, 1), np.float32(2)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_of_an_image_has_the_cells_of_the_whole(axis: int) -> None:
    image = raw()
    whole = normalised(Sample(name="a", image=image), NORMALISER).image[:, :, :, :]
    start, stop = (1, 3) if axis == 0 else (37, 81)
    part = normalised(Sample(name="p", image=Crop(image, axis, start, stop)), NORMALISER)
    key = [slice(None)] * 4
    key[axis + 1] = slice(start, stop)
    np.testing.assert_array_equal(part.image[:, :, :, :], whole[tuple(key)])
    np.testing.assert_array_equal(part.image[1:2, :, 5:9, 30:], whole[tuple(key)][1:2, :, 5:9, 30:])


def test_kept_in_memory_it_is_the_same() -> None:
    from cellseg.keeping import kept

    image, labels = raw(), np.zeros((3, 90, 100), np.uint32)
    for array, truth in ((image, labels), (Crop(image, 1, 11, 70), Crop(labels, 1, 11, 70))):
        sample = normalised(Sample(name="a", image=array, labels=truth), NORMALISER)
        key = np.s_[0:2, 0:2, 5:30, 40:90]
        before = sample.image[key]
        np.testing.assert_array_equal(kept(sample).image[key], before)


def test_the_statistics_of_a_data_set_go_with_the_cells_of_each_image() -> None:
    from cellseg.sampling_options import NormaliseOptions

    options = NormaliseOptions(normalise_scope="dataset", clahe=True, clahe_kernel=32)
    samples = [Sample(name=f"s{seed}", image=raw(seed)) for seed in range(2)]
    fitted = Normaliser.fit(options, samples)
    assert fitted.dataset is not None and fitted.clahe_kernel == 32
    linear = Normaliser(dataset=fitted.dataset)
    for sample in samples:
        block = linear.apply(sample.image[:, :, :, :], fitted.dataset)
        Equaliser(block.copy(), 32, 0.01).apply(block, (0, 0, 0))
        np.testing.assert_array_equal(normalised(sample, fitted).image[:, :, :, :], block)


def test_a_block_without_its_image_is_an_error_and_not_something_else() -> None:
    with pytest.raises(ValueError, match="equaliser"):
        NORMALISER.apply(raw(), NORMALISER.statistics(raw()))


def test_it_cannot_be_undone() -> None:
    image = raw()
    statistics = NORMALISER.statistics(image)
    block = NormalisedImage(image, NORMALISER)[:, :, :, :]
    with pytest.raises(ConfigError, match="--clahe cannot be undone"):
        NORMALISER.restore(block, statistics, image.dtype)

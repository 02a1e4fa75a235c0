from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.normalise import Normaliser, normalised
from cellseg.options import parse
from cellseg.sampling_options import NormaliseOptions
from cellseg.stains import Stains, separated


def tissue(dtype: str = "u1", seed: int = 0) -> NDArray[Any]:
    """Nuclei (haematoxylin) in pink tissue (eosin), ``(3, 2, 48, 40)``, made by absorption."""
    rng = np.random.default_rng(seed)
    haematoxylin, eosin = rng.uniform(0.02, 0.1, (2, 2, 48, 40))
    haematoxylin[:, 10:20, 10:20] += 0.8
    eosin[:, 25:] += 0.5
    absorbed = np.multiply.outer((0.65, 0.7, 0.29), haematoxylin)
    absorbed += np.multiply.outer((0.07, 0.99, 0.11), eosin)
    light = np.exp(-absorbed)
    if np.dtype(dtype).kind == "f":
        return light.astype(dtype)
    return (light * np.iinfo(dtype).max).round().astype(dtype)


def by_scikit_image(colours: NDArray[Any]) -> NDArray[np.float64]:
    from skimage.color import rgb2hed

    stains: NDArray[np.float64] = rgb2hed(colours, channel_axis=0)
    return stains


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8"])
def test_stains_are_those_of_scikit_image(dtype: str) -> None:
    colours = tissue(dtype)
    before = colours.copy()
    colours[:, 0, 0, 0] = before[:, 0, 0, 0] = 0  # black
    found = separated(colours, 0.25, 0.5)
    haematoxylin, eosin, dab = by_scikit_image(colours)
    assert found.dtype == np.float32
    assert not found[0].any()
    np.testing.assert_allclose(found[1], haematoxylin, atol=2e-6)
    np.testing.assert_allclose(found[2], 0.25 * eosin + 0.5 * dab, atol=2e-6)
    np.testing.assert_array_equal(colours, before)
    assert not separated(colours, 0, 0)[2].any(), "nuclei alone"


def test_nuclei_become_bright_and_the_rest_dark() -> None:
    stains = separated(tissue(), 1, 0)[:, 0]
    nucleus, pink, pale = np.s_[12:18, 12:18], np.s_[27:, :], np.s_[:8, :8]
    assert stains[1][nucleus].min() > 3 * stains[1][pink].max()
    assert stains[2][pink].min() > 2 * stains[2][pale].max()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_any_block_and_channel_is_that_of_the_whole(dtype: str) -> None:
    image = Stains(tissue(dtype), 0.1, 0.2)
    whole = image[(slice(0, 3), slice(0, 2), slice(0, 48), slice(0, 40))]
    assert image.shape == whole.shape and image.dtype == whole.dtype
    for key in (np.s_[1:2, 0:1, 3:20, 5:6], np.s_[0:3, 1:2, 0:48, 7:40], np.s_[2:3, :, :, :]):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(image))[key], whole[key])


@pytest.mark.parametrize(
    ("colours", "said", "hint"),
    [
        (tissue()[:1], "has 1 channel,", "without --stain-transform"),
        (np.concatenate([tissue()] * 2), "has 6 channels", "--channels, such as 0,1,2"),
        (tissue().astype("i4"), "int32", "uint8"),
        (tissue().astype("u4"), "uint32", "uint8"),
        (tissue("f4") * 200, "takes floats from 0 to 1", "Divide"),
        (tissue("f4") - 1, "takes floats from 0 to 1", "Divide"),
        (np.full_like(tissue("f4"), np.nan), "takes floats from 0 to 1", "Divide"),
    ],
)
def test_what_is_not_in_colour_is_refused(colours: NDArray[Any], said: str, hint: str) -> None:
    normaliser = Normaliser(stain_transform="hed")
    with pytest.raises(DataError, match=said) as error:
        _ = normalised(Sample(name="slide", image=colours), normaliser).image[:, :, :5, :5]
    assert "slide" in str(error.value) and "--stain-transform hed" in str(error.value)
    assert hint in str(error.value.hint)


def test_a_training_refuses_grey_images_before_it_reads_any() -> None:
    class Unread:
        shape, dtype = (1, 1, 9, 9), np.dtype(np.uint8)

        def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
            raise AssertionError

    options = parse(NormaliseOptions, {"stain_transform": "hed"})
    with pytest.raises(DataError, match="grey has 1 channel"):
        Normaliser.fit(options, [Sample(name="grey", image=Unread())])


def test_statistics_are_those_of_the_stains() -> None:
    colours = tissue()
    normaliser = Normaliser(stain_transform="hed", stain_eosin=0.5, method="min-max")
    found = normaliser.apply(colours, normaliser.statistics(colours))
    assert not found[0].any()
    for channel in found[1:]:
        assert channel.min() == 0 and channel.max() == pytest.approx(1)
    stains = separated(colours, 0.5, 0)
    plain = Normaliser(method="min-max")
    np.testing.assert_array_equal(found, plain.apply(stains, plain.statistics(stains)))


def test_the_data_set_and_the_polarity_are_measured_on_the_stains() -> None:
    sample = Sample(name="a", image=tissue(), labels=np.zeros((2, 48, 40), np.uint32))
    assert isinstance(sample.labels, np.ndarray)
    sample.labels[:, 10:20, 10:20] = 1
    raw = parse(NormaliseOptions, {"polarity": "measure"})
    assert Normaliser.fit(raw, [sample]).inverted == (True, True, True), "dark in all colours"
    values = {"polarity": "measure", "stain_transform": "hed", "normalise_scope": "dataset"}
    other = replace(sample, name="b", image=tissue(seed=1))
    fitted = Normaliser.fit(parse(NormaliseOptions, values), [sample, other])
    assert fitted.inverted == (False, False, False)
    assert fitted.dataset is not None and fitted.dataset.scale[0] == 0
    both = separated(np.concatenate([tissue(), tissue(seed=1)], axis=1), 0, 0)
    np.testing.assert_allclose(fitted.dataset.shift, Normaliser().statistics(both).shift)
    assert fitted.statistics(other.image) == fitted.dataset
    with pytest.raises(DataError, match="channel"):
        fitted.statistics(tissue()[:2])


def test_stains_cannot_be_made_colours_again() -> None:
    normaliser = Normaliser(stain_transform="hed")
    statistics = normaliser.statistics(tissue())
    block = normaliser.apply(tissue(), statistics)
    with pytest.raises(ConfigError, match="--stain-transform cannot be undone"):
        normaliser.restore(block, statistics, np.dtype(np.uint8))

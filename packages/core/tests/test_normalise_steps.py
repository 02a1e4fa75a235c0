"""The steps of the normalisation that are taken on demand, together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cellseg.data import Sample
from cellseg.normalise import Normaliser, normalised
from cellseg.options import parse
from cellseg.sampling_options import NormaliseOptions


def image(dtype: str, channels: int = 2) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.gamma(2.0, 20.0, (channels, 3, 40, 50)).clip(0, 120).astype(dtype)


def apply(normaliser: Normaliser, array: NDArray[Any]) -> NDArray[np.float32]:
    return normaliser.apply(array, normaliser.statistics(array))


STEPS: dict[str, object] = {
    "stain_transform": "hed",
    "stain_eosin": 0.1,
    "stain_dab": 0.2,
    "clahe": True,
    "clahe_kernel": 16,
    "clahe_clip": 0.05,
    "gamma": 2.1,
}


def test_all_steps_are_stored_and_come_back() -> None:
    colours = image("u1", 3)
    fitted = Normaliser.fit(parse(NormaliseOptions, STEPS), [Sample(name="a", image=colours)])
    restored = Normaliser.model_validate_json(fitted.model_dump_json())
    assert restored == fitted
    assert {name: getattr(fitted, name) for name in STEPS} == STEPS
    assert fitted.special == (
        "--stain-transform hed --stain-eosin 0.1 --stain-dab 0.2",
        "--clahe --clahe-kernel 16 --clahe-clip 0.05",
        "--gamma 2.1",
    )
    one, other = (normalised(Sample(name="a", image=colours), n).image for n in (fitted, restored))
    np.testing.assert_array_equal(one[:, :, :, :], other[:, :, :, :])
    np.testing.assert_array_equal(one[1:3, 1:2, 5:25, 9:], one[:, :, :, :][1:3, 1:2, 5:25, 9:])


def test_models_that_know_nothing_of_these_steps_stay_as_they_are() -> None:
    written = {"method": "min-max", "percentiles": [1.0, 99.8], "channels": "each"}
    old = Normaliser.model_validate({**written, "pixels": "all", "inverted": [], "dataset": None})
    assert old == Normaliser(method="min-max") and not old.special
    array = image("u2")
    assert apply(old, array).max() == 1
    np.testing.assert_array_equal(
        apply(old, array), rescaled_by_hand(array), err_msg="the same as without the new steps"
    )


def rescaled_by_hand(array: NDArray[Any]) -> NDArray[np.float32]:
    low = array.min(axis=(1, 2, 3), keepdims=True).astype("f8")
    scale = 1 / (array.max(axis=(1, 2, 3), keepdims=True) - low)
    return (array.astype("f4") - low.astype("f4")) * scale.astype("f4")


@pytest.mark.parametrize("gamma", [0.4, 2.1, 2.4])
def test_gamma_bends_what_is_clipped(gamma: float) -> None:
    array, plain = image("u2"), Normaliser(percentiles=(5.0, 95.0))
    bent = plain.model_copy(update={"gamma": gamma})
    linear, found = apply(plain, array), apply(bent, array)
    assert linear.max() > 1 and linear.min() < 0 == found.min() and found.max() == 1
    np.testing.assert_allclose(found, linear.clip(0, 1).astype("f8") ** gamma, rtol=1e-5)
    dark = apply(bent.model_copy(update={"inverted": (True,)}), array)
    np.testing.assert_allclose(dark, (1 - linear).clip(0, 1) ** gamma, atol=1e-5)
    whole = normalised(Sample(name="a", image=array), bent).image
    np.testing.assert_array_equal(whole[1:2, 1:3, 3:17, 5:], found[1:2, 1:3, 3:17, 5:])


@pytest.mark.parametrize("inverted", [(), (True,)])
def test_gamma_is_undone(inverted: tuple[bool, ...]) -> None:
    array = image("u1")
    normaliser = Normaliser(method="min-max", gamma=2.1, inverted=inverted)
    statistics = normaliser.statistics(array)
    again = normaliser.restore(normaliser.apply(array, statistics), statistics, array.dtype)
    np.testing.assert_array_equal(again, array)

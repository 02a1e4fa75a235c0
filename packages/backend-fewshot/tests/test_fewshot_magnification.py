from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from cellseg.torch.masks import FoundMask
from cellseg_fewshot.magnification import blobs_of, magnification_of
from cellseg_fewshot.memory import Memory
from cellseg_fewshot.predict import resolve
from cellseg_fewshot.predict_options import FewshotPredictOptions
from cellseg_fewshot.priors import SIZE, Prior


def discs(radius: int, sign: int = 1, seed: int = 0) -> tuple[np.ndarray, list[FoundMask]]:
    """A noisy plane of 300 pixels with discs, and their masks."""
    plane = np.random.default_rng(seed).normal(0, 0.03, (1, 300, 300)).astype(np.float32)
    y, x = np.indices((2 * radius + 1,) * 2) - radius
    mask = x * x + y * y <= radius * radius
    masks = []
    for top in range(4, 300 - 3 * radius, 4 * radius):
        for left in range(4, 300 - 3 * radius, 4 * radius):
            plane[0, top : top + len(mask), left : left + len(mask)] += mask
            masks.append(FoundMask(mask, (top, left), 1.0))
    return plane if sign > 0 else 1 - plane, masks


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("radius", [5, 10, 20, 30])
def test_other_sizes_are_told(radius: int, sign: int) -> None:
    plane, masks = discs(12, sign)
    blobs = blobs_of([(plane, masks[:5])])
    assert blobs is not None and blobs.sign == sign
    told = magnification_of(discs(radius, sign, 1)[0], blobs)
    assert told == 1 if radius == 10 else told == pytest.approx(radius / 12, rel=0.15)


def test_noise_tells_no_size() -> None:
    plane, masks = discs(12)
    blobs = blobs_of([(plane, masks[:5])])
    assert blobs is not None
    noise = np.random.default_rng(3).normal(0.5, 0.05, (1, 300, 300)).astype(np.float32)
    assert magnification_of(noise, blobs) == 1
    assert magnification_of(np.zeros((1, 6, 6), np.float32), blobs) == 1


def test_where_blobs_are_not_the_objects_nothing_is_told() -> None:
    plane, masks = discs(12)
    whole = FoundMask(np.ones((150, 150), bool), (0, 0), 1.0)
    assert blobs_of([(plane, [whole])]) is None
    assert blobs_of([(plane, [*masks[:3], masks[4]])]) is not None


def test_limits_and_priors_grow_but_not_what_the_user_gives() -> None:
    memory = Memory(
        kinds=(1,),
        prototypes=np.zeros((0, 2)),
        prototype_kinds=np.zeros(0, np.int64),
        negatives=np.zeros((0, 2)),
        priors={1: Prior(np.array([np.log(100), 1.0, 0.0]), np.ones(3))},
        thresholds={"size+shape": 0.5},
        areas=(80, 120),
        diameters=(9.0, 10.0, 11.0),
    )
    memory = replace(memory, space=object())  # of the mode dense
    one = resolve(FewshotPredictOptions(), memory)
    assert one.at(2).areas == (160, 960) and one.at(2).diameters == (18, 20, 22)
    assert one.at(1) is one
    given = resolve(FewshotPredictOptions(min_mask_area=50), memory)
    assert given.at(2).areas == (50, 960)
    unlimited = resolve(FewshotPredictOptions(max_mask_area=0), memory)
    assert unlimited.at(3).areas[1] == 0
    measured = np.array([[np.log(400), 1.0, 0.0]])
    assert memory.at(2).priors[1].penalty(measured, SIZE) == pytest.approx(0)
    assert memory.priors[1].penalty(measured, SIZE) > 0.5
    assert resolve(FewshotPredictOptions(magnification=1.5), memory).magnification == 1.5

"""What is remembered, and the scores that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from skimage.filters import gaussian
from skimage.measure import label, regionprops

from cellseg.errors import WeightsError
from cellseg.torch.masks import FoundMask
from cellseg_fewshot.memory import COMBINATIONS, Candidates, Memory, combination
from cellseg_fewshot.predict_options import FewshotPredictOptions
from cellseg_fewshot.priors import SHAPE, SIZE, Prior, cut_off, measure
from cellseg_fewshot.remembering import separating
from cellseg_fewshot.similarity import Space, condensed, nearness, unit
from cellseg_fewshot.stored import Stored


def test_size_and_shape_are_those_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    labels = label(np.kron(gaussian(rng.random((60, 60)), 1.5) > 0.51, np.ones((4, 4))))
    regions = [each for each in regionprops(labels) if each.area > 500]
    assert len(regions) > 3
    found = measure([FoundMask(each.image, each.bbox[:2], 1.0) for each in regions])
    for row, each in zip(found, regions, strict=True):
        assert row[0] == pytest.approx(np.log(each.area))
        # their pixels are points, and their hulls are made of pixels
        assert row[1] == pytest.approx(each.solidity, abs=0.03)
        assert row[2] == pytest.approx(each.eccentricity, abs=0.005)


def test_a_rectangle_is_solid_and_a_square_is_round() -> None:
    square, bar = np.ones((9, 9), bool), np.ones((2, 50), bool)
    found = measure([FoundMask(mask, (0, 0), 1.0) for mask in (square, bar)])
    np.testing.assert_allclose(found[:, 1], 1)
    assert found[0, 2] == 0 and found[1, 2] > 0.99


def test_a_prior_is_generous_after_one_example_and_learns_from_many() -> None:
    rng = np.random.default_rng(0)
    typical = np.array([5.0, 0.95, 0.3])
    many = typical + rng.normal(0, (0.05, 0.01, 0.02), (200, 3))
    one, much = Prior.of(typical[None]), Prior.of(many)
    twice = typical + np.array([np.log(2), 0, 0])
    assert 0 < one.penalty(twice[None], SIZE)[0] < 1
    assert much.penalty(twice[None], SIZE)[0] > 4
    for prior in (one, much):
        assert prior.penalty(typical[None], SIZE)[0] == pytest.approx(0, abs=0.01)
        assert prior.penalty(twice[None], SHAPE)[0] == pytest.approx(0, abs=0.2)
        assert prior.penalty(typical[None] + 3, SIZE)[0] > prior.penalty(twice[None], SIZE)[0]
    spoilt = np.concatenate([many[:20], many[:3] + np.array([9, 0, 0])])
    assert Prior.of(spoilt).centre[0] == pytest.approx(5, abs=0.1), "medians bear outliers"


def test_what_the_border_cuts_may_be_small_but_not_large() -> None:
    prior = Prior(np.array([5.0, 0.9, 0.3]), np.array([0.5, 0.1, 0.1]))
    small, large, bent = np.array([[3.0, 0.9, 0.3], [7.0, 0.9, 0.3], [5.0, 0.2, 0.9]])
    for measured, features, less in (
        (small, SIZE, True),
        (large, SIZE, False),
        (bent, SHAPE, True),
    ):
        whole, cut = (
            prior.penalty(measured[None], features, np.array([each]))[0] for each in (False, True)
        )
        assert cut == (0 if less else whole) and whole > 2
    plane = (20, 30)
    masks = [FoundMask(np.ones((5, 5), bool), corner, 1.0) for corner in ((0, 9), (9, 25), (9, 9))]
    assert cut_off(masks, plane).tolist() == [True, True, False]


def test_what_all_descriptors_share_does_not_count() -> None:
    """Raw cosines are above .95 for whatever there is; in the space they tell two kinds apart."""
    rng = np.random.default_rng(0)
    shared, apart = 5 * np.ones(20), rng.normal(size=20)
    loud = rng.normal(size=20)
    groups = [
        shared
        + 0.5 * side * apart
        + rng.normal(size=(60, 1)) * loud
        + 0.2 * rng.normal(size=(60, 20))
        for side in (1, -1)
    ]
    raw = [unit(group) for group in groups]
    assert (raw[0] @ raw[1].T).mean() > 0.9
    space = Space.of(groups[0][:10], groups[1][:40])
    one, other = (space.vectors(group[40:]) for group in groups)
    assert np.median(one @ one.T) > 0.4 > -0.4 > np.median(one @ other.T)


def test_the_nearest_counts_most_and_those_left_out_do_not() -> None:
    known = np.eye(3)
    vector = np.array([[1.0, 0, 0]])
    assert nearness(vector, known)[0] == pytest.approx(1, abs=1e-3)
    left_out = np.array([[True, False, False]])
    assert nearness(vector, known, left_out)[0] == 0
    assert nearness(vector, known[:0]).tolist() == [0]
    assert nearness(vector, -known[:1])[0] == -1


def test_prototypes_are_the_middles_of_clusters() -> None:
    rng = np.random.default_rng(0)
    middles = unit(rng.normal(size=(3, 8)))
    vectors = unit(np.repeat(middles, 7, 0) + 0.01 * rng.normal(size=(21, 8)))
    found = condensed(vectors, 3, seed=0)
    assert found.shape == (3, 8)
    assert (found @ middles.T).max(0).min() > 0.999
    assert condensed(vectors, 0, seed=0) is vectors
    assert condensed(vectors, 21, seed=0) is vectors


def test_the_threshold_lies_between_what_separates() -> None:
    positives, negatives = np.array([0.9, 0.8, 0.85]), np.array([0.1, 0.2])
    limit = separating(positives, negatives)
    assert np.log(limit / (1 - limit)) == pytest.approx(-np.log(4) / 3), "a third from 0.2 to 0.8"
    mixed = separating(np.append(positives, 0.05), negatives)
    assert mixed == pytest.approx(limit), "one example does not pull it down to all else"
    assert 0.05 <= separating(positives, np.zeros(0)) < 0.5
    assert separating(np.array([0.3]), np.array([0.3])) <= 0.95


@pytest.fixture
def memory() -> Memory:
    return Memory(
        kinds=(1, 3),
        prototypes=np.eye(4)[:3],
        prototype_kinds=np.array([1, 1, 3]),
        negatives=np.eye(4)[3:],
        priors={k: Prior(np.array([k, 0.9, 0.5]), np.full(3, 0.5)) for k in (1, 3)},
        space=Space(np.zeros(4), np.eye(4)),
        peaks=np.ones((2, 5)),
        offset=0.25,
        slope=4.0,
        quality=0.8,
        thresholds={combination(*counts): 0.5 for counts in COMBINATIONS},
        diameters=(5.0, 6.5, 8.0),
        areas=(20, 50),
    )


def test_each_term_of_a_score_can_be_left_out(memory: Memory) -> None:
    typical = np.array([[1, 0.9, 0.5]])
    good = Candidates(np.eye(4)[:1], typical, np.array([0.8]))
    (score,) = memory.scores(good, True, True)[:, 0]
    assert score == pytest.approx(1 / (1 + np.exp(-4 * 0.75)), abs=1e-3)
    large = replace(good, measured=typical + np.array([1, 0, 0]))
    bent = replace(good, measured=typical - np.array([0, 0.5, 0]))
    poor = replace(good, quality=np.array([0.7]))
    for other, counts in ((large, (False, True)), (bent, (True, False))):
        assert memory.scores(other, True, True)[0, 0] < score - 0.01
        assert memory.scores(other, *counts)[0, 0] == pytest.approx(score)
    assert memory.scores(poor, True, True)[0, 0] < score - 0.01
    assert memory.scores(good, True, True)[0, 1] < 0.3, "of the other class"
    avoided = replace(good, descriptors=np.eye(4)[3:])
    assert memory.scores(avoided, True, True)[0, 0] < 0.05


def test_a_memory_comes_back_as_it_was(memory: Memory, tmp_path: Path) -> None:
    crop = replace(memory, space=None, peaks=None, negatives=np.zeros((0, 4)), occupancy=0.2)
    for name, each in (("dense", memory), ("crop", crop)):
        Stored({"kind": name}, {}, each, ("background", "a"), "bf16").save(tmp_path / name)
        again = Stored.load(tmp_path / name)
        assert (again.encoder, again.classes, again.precision) == (
            {"kind": name},
            ("background", "a"),
            "bf16",
        )
        looked = Candidates(np.eye(4), np.ones((4, 3)), np.full(4, 0.7))
        for counts in COMBINATIONS:
            np.testing.assert_array_equal(
                again.memory.scores(looked, *counts), each.scores(looked, *counts)
            )
        assert again.memory.mode == name and again.memory.areas == (20, 50)
        assert again.memory.thresholds == each.thresholds


def test_a_model_without_the_tensors_of_its_encoder_is_not_whole(
    memory: Memory, tmp_path: Path
) -> None:
    Stored({"kind": "sam"}, {"a": torch.ones(2)}, memory).save(tmp_path)
    assert Stored.load(tmp_path).state["a"].tolist() == [1, 1]
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"encoder\.safetensors is missing"):
        Stored.load(tmp_path)


def test_with_other_priors_the_threshold_is_theirs() -> None:
    stored = {"similarity_threshold": 0.4, "min_mask_area": 3}
    over = FewshotPredictOptions.over
    assert over(stored, {"size_prior": False}) == {"min_mask_area": 3, "size_prior": False}
    assert over(stored, {"blobs": False}) == {**stored, "blobs": False}
    assert (
        over(stored, {"size_prior": False, "similarity_threshold": 0.1})["similarity_threshold"]
        == 0.1
    )

"""The encoder without weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellseg.torch.masks import FoundMask, suppress_masks
from cellseg_fewshot.encoders.filters import FilterEncoder
from cellseg_fewshot.filter_view import _without_notches
from cellseg_fewshot.views import Shown

torch.set_num_threads(1)
CPU = torch.device("cpu")


def discs(seed: int, count: int = 14, side: int = 128) -> tuple[np.ndarray, list[np.ndarray]]:
    """Bright discs on a noisy gradient, and each of them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    image = random.normal(0.1, 0.02, (side, side)) + 0.1 * x / side
    masks: list[np.ndarray] = []
    while len(masks) < count:
        cy, cx = random.uniform(8, side - 8, 2)
        mask = np.hypot(y - cy, x - cx) < random.uniform(5, 7)
        near = np.hypot(y - cy, x - cx) < 9
        if not any((near & other).any() for other in masks):
            masks.append(mask)
            image[mask] += random.uniform(0.4, 0.7)
    return image[None].astype(np.float32), masks


def cut(mask: np.ndarray) -> FoundMask:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return FoundMask(box.copy(), (int(rows[0]), int(columns[0])), 1.0)


def whole(one: FoundMask, size: tuple[int, int]) -> np.ndarray:
    out = np.zeros(size, bool)
    (top, left), (height, width) = one.corner, one.mask.shape
    out[top : top + height, left : left + width] = one.mask
    return out


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def middles(masks: list[np.ndarray]) -> np.ndarray:
    return np.array([np.argwhere(mask).mean(0) + 0.5 for mask in masks], np.float32)


@pytest.fixture(scope="module")
def fitted() -> FilterEncoder:
    plane, masks = discs(0)
    encoder = FilterEncoder.create(CPU)
    encoder.fit([(plane, [Shown(cut(mask), 1) for mask in masks[:6]])], 0)
    return encoder


def test_objects_of_another_image_are_found(fitted: FilterEncoder) -> None:
    plane, masks = discs(1)
    view = fitted.view([plane])[0]
    y, x = np.mgrid[2:128:4, 2:128:4]
    found = view.answer(np.stack([y.ravel(), x.ravel()], 1).astype(np.float32))
    good = [one for one in found if one.score >= 0.5]
    kept = [whole(good[i], view.size) for i in suppress_masks(good, 0.3)]
    hits = [max((iou(mask, one) for one in kept), default=0) >= 0.5 for mask in masks]
    assert sum(hits) >= 13
    assert len(kept) <= 17


def test_answers_hold_their_point_and_the_best_one_is_the_object(fitted: FilterEncoder) -> None:
    plane, masks = discs(2)
    view = fitted.view([plane])[0]
    right = 0
    for mask, point in zip(masks, middles(masks), strict=True):
        found = view.answer(point[None])
        assert 0 < len(found) <= 8
        assert all(whole(one, view.size)[tuple(point.astype(int))] for one in found)
        assert all(0 <= one.score <= 1 for one in found)
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        right += iou(whole(found[0], view.size), mask) >= 0.5
    assert right >= 13


def test_no_points_have_no_answer(fitted: FilterEncoder) -> None:
    view = fitted.view([discs(1)[0]])[0]
    assert view.answer(np.zeros((0, 2), np.float32)) == []
    assert len(view.describe([])) == 0


def test_a_point_becomes_an_object_without_examples() -> None:
    plane, masks = discs(3)
    view = FilterEncoder.create(CPU).view([plane])[0]
    best = [view.answer(point[None])[0] for point in middles(masks)]
    good = [iou(whole(one, view.size), mask) for one, mask in zip(best, masks, strict=True)]
    assert np.median(good) >= 0.5


def test_order_of_planes_and_examples_does_not_matter() -> None:
    shown = []
    for seed in (4, 5):
        plane, masks = discs(seed, 5, 64)
        shown.append((plane, [Shown(cut(m), k) for m, k in zip(masks, (1, 1, 2, 0), strict=False)]))
    one, other = FilterEncoder.create(CPU), FilterEncoder.create(CPU)
    one.fit(shown, 3)
    other.fit([(plane, examples[::-1]) for plane, examples in shown[::-1]], 3)
    first, second = one.state(), other.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_restored_encoder_says_the_same(fitted: FilterEncoder) -> None:
    again = FilterEncoder.restore(fitted.state(), CPU)
    plane, masks = discs(6)
    one, other = fitted.view([plane])[0], again.view([plane])[0]
    assert torch.equal(one.features.values, other.features.values)
    points = middles(masks)
    first, second = one.answer(points), other.answer(points)
    assert [x.score for x in first] == [x.score for x in second]
    assert torch.equal(one.describe(first), other.describe(second))


def test_an_encoder_without_examples_is_restored() -> None:
    state = FilterEncoder.create(CPU).state()
    assert len(state) == 0
    plane = discs(6, 4, 64)[0]
    answers = FilterEncoder.restore(state, CPU).view([plane])[0].answer(np.full((1, 2), 32.0))
    assert isinstance(answers, list)


def test_only_what_is_to_be_left_alone_teaches_nothing() -> None:
    plane, masks = discs(0, 3, 64)
    with pytest.raises(ValueError, match="no example"):
        FilterEncoder.create(CPU).fit([(plane, [Shown(cut(masks[0]), 0)])], 0)


def test_descriptors_tell_objects_from_background(fitted: FilterEncoder) -> None:
    plane, masks = discs(7)
    view = fitted.view([plane])[0]
    shifted = [np.roll(mask, 25, axis) for mask in masks for axis in (0, 1)]
    free = [one for one in shifted if not (one & np.logical_or.reduce(masks)).any()]
    assert len(free) >= 3
    inside, outside = (view.describe([cut(m) for m in some]).numpy() for some in (masks, free))
    assert inside.shape == (len(masks), 2 * len(view.features.values))
    apart = np.linalg.norm(inside.mean(0) - outside.mean(0))
    assert apart > 2 * np.linalg.norm(inside - inside.mean(0), axis=1).mean() ** 0.5
    nearer = np.linalg.norm(inside - inside.mean(0), axis=1) < np.linalg.norm(
        inside - outside.mean(0), axis=1
    )
    assert nearer.all()


def test_the_grid_covers_planes_of_any_size_and_number_of_channels() -> None:
    encoder = FilterEncoder.create(CPU)
    random = np.random.default_rng(0)
    for shape in ((1, 33, 47), (3, 16, 20), (2, 3, 5), (1, 1, 9)):
        view = encoder.view([random.random(shape).astype(np.float32)])[0]
        grid = view.features
        cells = np.array(grid.values.shape[1:]) * grid.step
        assert (cells >= shape[1:]).all()
        assert grid.values.dtype == torch.float32
        assert torch.isfinite(grid.values).all()
        for one in view.answer(np.array([[0.5, 0.5]], np.float32)):
            assert one.mask.any()
    assert encoder.calls == 4


def test_large_objects_are_seen_at_a_lower_resolution() -> None:
    y, x = np.mgrid[:301, :203]
    masks = [np.hypot(y - cy, x - cx) < 40 for cy, cx in ((60, 60), (180, 140), (250, 50))]
    noise = np.random.default_rng(0).normal(0, 0.02, y.shape)
    plane = (np.logical_or.reduce(masks) * 0.8 + noise).astype(np.float32)[None]
    encoder = FilterEncoder.create(CPU)
    encoder.fit([(plane, [Shown(cut(mask), 1) for mask in masks])], 0)
    view = encoder.view([plane])[0]
    assert view.features.step[0] > 2
    for mask, point in zip(masks, middles(masks), strict=True):
        found = view.answer(point[None])
        assert max(iou(whole(one, view.size), mask) for one in found) > 0.9
        assert all(np.less_equal(np.add(one.corner, one.mask.shape), view.size).all()
                   for one in found)  # fmt: skip


def test_crops_are_encoded_at_one_size() -> None:
    encoder = FilterEncoder.create(CPU)
    crops = [np.random.default_rng(0).random((2, s, s)).astype(np.float32) for s in (20, 90)]
    small, large = encoder.encode_crops(crops)
    assert small.values.shape == large.values.shape
    assert small.values.shape[1] * small.step[0] == pytest.approx(20)
    assert large.values.shape[1] * large.step[0] == pytest.approx(90)
    assert encoder.calls == 2


def test_larger_objects_are_found_where_it_is_known_that_they_are(fitted: FilterEncoder) -> None:
    plane, masks = discs(1)
    large = np.kron(plane[0], np.ones((4, 4), np.float32))[None]
    wanted = [np.kron(mask, np.ones((4, 4), bool)) for mask in masks]
    hits = {}
    for larger in (1.0, 4.0):
        view = fitted.view([large], [larger])[0]
        best = [view.answer(point[None])[:1] for point in middles(wanted)]
        hits[larger] = sum(
            bool(found) and iou(whole(found[0], view.size), mask) >= 0.5
            for found, mask in zip(best, wanted, strict=True)
        )
    assert hits[4.0] >= 13 and hits[1.0] < 5


def test_examples_without_anything_around_them_can_be_learned_from() -> None:
    random = np.random.default_rng(0)
    plane = random.normal(0.5, 0.1, (1, 32, 32)).astype(np.float32)
    plane[0, 15:17] += 1
    plane[0, :, 15:17] += 1
    quarters = [FoundMask(np.ones((16, 16), bool), (y, x), 1.0) for y in (0, 16) for x in (0, 16)]
    encoder = FilterEncoder.create(CPU)
    encoder.fit([(plane, [Shown(one, 1) for one in quarters])], 0)
    view = encoder.view([plane])[0]
    assert view.describe(quarters).isfinite().all()


def test_notches_are_closed_and_bays_are_not() -> None:
    image = np.zeros((30, 40), np.uint8)
    image[5:25, 5:35] = 1
    notched = image.copy()
    notched[5:20, 20] = 0
    notched[12:15, 10:13] = 0
    assert (_without_notches(notched, 1) != image).sum() <= 1  # its mouth
    bay = image.copy()
    bay[5:20, 15:25] = 0
    assert (_without_notches(bay, 1) != bay).sum() <= 4  # its corners

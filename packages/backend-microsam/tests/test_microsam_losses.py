"""What the decoder learns, and what training makes small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.classes import UNKNOWN, encoded  # noqa: E402
from cellseg.torch.frames import Frame  # noqa: E402
from cellseg_microsam.losses import AnswerLoss, MapsDice, maps_loss  # noqa: E402
from cellseg_microsam.targets import Truth, distance_maps  # noqa: E402


def cells(seed: int = 0, shape: tuple[int, int] = (96, 80), count: int = 25) -> Any:
    """Ellipses that overlap, touch and are cut by the edge, and a horseshoe around its centroid."""
    import cv2

    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    for number in range(1, count + 1):
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        axes = (int(rng.integers(2, 14)), int(rng.integers(1, 9)))
        drawn = np.zeros(shape, np.uint8)
        cv2.ellipse(drawn, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        labels[(drawn > 0) & (labels == 0)] = number
    y, x = np.indices(shape)
    away = np.hypot(y - 40, x - 40)
    labels[(away > 9) & (away < 13) & (x > 34)] = count + 1
    return labels


# Targets


def test_the_maps_are_those_that_micro_sam_trains_on() -> None:
    from torch_em.transform.label import PerObjectDistanceTransform

    theirs = PerObjectDistanceTransform(
        distances=True, boundary_distances=True, foreground=True, instances=True, min_size=0
    )
    for seed in range(4):
        expected = theirs(cells(seed))
        truth = Truth.of(cells(seed), smallest=0)
        assert truth.labels.max() == expected[0].max() > 10
        np.testing.assert_array_equal(truth.labels > 0, expected[0] > 0)
        maps = distance_maps(truth.labels)
        deep = np.unique(truth.labels[(truth.labels > 0) & (maps[2] > 0)])
        # The centre of an object that is all rim may lie outside of it there.
        same = (truth.labels == 0) | np.isin(truth.labels, deep)
        assert same.mean() > 0.9
        np.testing.assert_allclose(maps[:, same], expected[1:, same], atol=1e-6)


def test_maps_of_nothing_and_of_an_object_that_fills_the_patch() -> None:
    empty = distance_maps(np.zeros((8, 9), np.int32))
    np.testing.assert_array_equal(empty, np.stack([np.zeros((8, 9)), *[np.ones((8, 9))] * 2]))
    full = distance_maps(np.ones((8, 9), np.int32))
    assert full[0].all() and full[1].max() == pytest.approx(1) and not full[2].any()


def test_pieces_of_an_object_are_objects_and_small_ones_are_not_known() -> None:
    labels = np.zeros((20, 20), np.uint32)
    labels[2:8, 2:8] = labels[12:18, 12:18] = 7
    labels[0, 18:] = 8
    labels[10] = UNKNOWN
    truth = Truth.of(labels, smallest=5)
    assert sorted(np.unique(truth.labels)) == [0, 1, 2]
    expected = np.ones((20, 20), bool)
    expected[0, 18:] = expected[10] = False
    np.testing.assert_array_equal(truth.known, expected)
    assert Truth.of(labels, smallest=2).labels.max() == 3


def test_classes_of_objects_do_not_matter() -> None:
    labels = cells()
    coded = np.where(labels % 2 == 1, encoded(labels, 1), encoded(labels, 2))
    np.testing.assert_array_equal(Truth.of(labels, 4).labels > 0, Truth.of(coded, 4).labels > 0)
    assert Truth.of(labels, 4).labels.max() == Truth.of(coded, 4).labels.max()


# The decoder's loss


def batch(count: int = 2) -> tuple[Any, Any]:
    wanted = np.stack([distance_maps(Truth.of(cells(seed), 0).labels) for seed in range(count)])
    maps = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(0))
    return maps, torch.from_numpy(wanted)


def test_the_loss_is_that_of_micro_sam_where_all_is_known() -> None:
    from torch_em.loss import DiceBasedDistanceLoss

    maps, wanted = batch()
    known = torch.ones(maps.shape[0], *maps.shape[2:], dtype=torch.bool)
    maps.requires_grad_(True)
    ours = maps_loss(maps, wanted, known).sum()
    theirs = DiceBasedDistanceLoss(mask_distances_in_bg=True)(maps, wanted)
    torch.testing.assert_close(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, maps), torch.autograd.grad(theirs, maps)
    torch.testing.assert_close(a, b)


def test_what_is_not_known_has_no_part_in_it() -> None:
    maps, wanted = batch()
    known = torch.ones(maps.shape[0], *maps.shape[2:], dtype=torch.bool)
    known[:, :, 50:] = False
    cut = maps_loss(maps[..., :50], wanted[..., :50], known[..., :50])
    maps.requires_grad_(True)
    losses = maps_loss(maps, wanted, known)
    torch.testing.assert_close(losses, cut)
    (gradient,) = torch.autograd.grad(losses.sum(), maps)
    assert gradient[..., :50].any() and not gradient[..., 50:].any()


def test_the_distances_outside_of_objects_do_not_matter() -> None:
    maps, wanted = batch()
    known = torch.ones(maps.shape[0], *maps.shape[2:], dtype=torch.bool)
    other = maps.clone()
    other[:, 1:] = torch.where(wanted[:, :1] > 0, maps[:, 1:], 1 - maps[:, 1:])
    torch.testing.assert_close(maps_loss(maps, wanted, known), maps_loss(other, wanted, known))


def test_a_patch_without_objects_gives_no_gradient() -> None:
    wanted = torch.ones(1, 3, 8, 8)
    wanted[:, 0] = 0
    maps = torch.rand(1, 3, 8, 8).requires_grad_(True)
    losses = maps_loss(maps, wanted, torch.ones(1, 8, 8, dtype=torch.bool))
    losses.sum().backward()
    assert losses.tolist() == [1, 1, 1] and not maps.grad.any()


def test_the_right_maps_score_one_and_patches_are_told_apart() -> None:
    maps, wanted = batch()
    known = torch.ones(maps.shape[0], *maps.shape[2:], dtype=torch.bool)
    maps[0] = wanted[0]
    scores = MapsDice.of(maps, wanted, known, pooled=False).scores
    torch.testing.assert_close(scores[0], torch.ones(3))
    assert (scores[1] < 0.9).all()
    both = MapsDice.of(maps, wanted, known, pooled=True).scores
    assert ((scores[1] < both) & (both < 1)).all()


# The loss of answers

SIDE = 32
FRAME = Frame.fit((SIDE, SIDE), SIDE)


def squares() -> Any:
    objects = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    objects[0, 4:12, 4:12] = objects[1, 16:28, 4:10] = objects[2, 4:30, 20:30] = True
    return objects


def sure(objects: Any) -> Any:
    """Logits at a quarter of the size; the squares begin and end on multiples of 4."""
    masks = torch.nn.functional.interpolate(objects[:, None].float(), scale_factor=0.25)
    return (masks - 0.5) * 60


ALL = torch.ones(SIDE, SIDE, dtype=torch.bool)


def test_right_answers_cost_little_and_wrong_ones_much() -> None:
    objects = squares()
    right = AnswerLoss.of(sure(objects), torch.ones(3, 1), objects, ALL, FRAME)
    wrong = AnswerLoss.of(sure(objects.roll(1, 0)), torch.ones(3, 1), objects, ALL, FRAME)
    assert right.true_iou.min() > 0.7 and right.mask.max() < 0.2
    assert not wrong.true_iou.any() and wrong.mask.min() > 0.9
    torch.testing.assert_close(right.iou, (1 - right.true_iou[:, 0]).square())


def test_of_three_answers_the_best_one_counts_and_alone_learns() -> None:
    objects = squares()
    good = sure(objects)
    three = torch.cat([-good, sure(objects.roll(1, 0)), good], dim=1).requires_grad_(True)
    estimated = torch.tensor([[0.2, 0.4, 0.9]] * 3)
    loss = AnswerLoss.of(three, estimated, objects, ALL, FRAME)
    alone = AnswerLoss.of(good, estimated[:, 2:], objects, ALL, FRAME)
    torch.testing.assert_close(loss.mask, alone.mask)
    expected = (loss.true_iou - estimated).square().mean(1)
    torch.testing.assert_close(loss.iou, expected)
    loss.mask.sum().backward()
    assert three.grad[:, 2].any() and not three.grad[:, :2].any()


def test_answers_where_nothing_is_known_do_not_count() -> None:
    objects = squares()
    known = ALL.clone()
    known[:, :2] = False
    logits = sure(objects)
    other = logits.clone()
    other[:, :, :, 0] = 30  # the first 4 columns of pixels, and half of the next
    objects[:, :, :8] = False
    known[:, :8] = False
    a = AnswerLoss.of(logits, torch.ones(3, 1), objects, known, FRAME)
    b = AnswerLoss.of(other, torch.ones(3, 1), objects, known, FRAME)
    torch.testing.assert_close(a.mask, b.mask)
    torch.testing.assert_close(a.true_iou, b.true_iou)


def test_each_object_has_the_loss_that_it_has_alone() -> None:
    objects = squares()
    logits = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    estimated = torch.rand(3, 3, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([2, 0, 1, 1])
    together = AnswerLoss.of(logits, estimated, objects, ALL, FRAME)
    mixed = AnswerLoss.of(logits[order], estimated[order], objects[order], ALL, FRAME)
    torch.testing.assert_close(mixed.mask, together.mask[order])
    torch.testing.assert_close(mixed.iou, together.iou[order])

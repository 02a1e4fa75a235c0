"""What there is to learn of clips, prompts, and what is made small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.classes import UNKNOWN  # noqa: E402
from cellseg.tracks import Lineage, Track  # noqa: E402
from cellseg_cellsam2.clips import Clip  # noqa: E402
from cellseg_cellsam2.losses import (  # noqa: E402
    Losses,
    heatmap_losses,
    mask_losses,
    presence_losses,
)
from cellseg_cellsam2.matching import soft_iou, swapped  # noqa: E402
from cellseg_cellsam2.prompting import Chances, corrected, on_background, shown  # noqa: E402
from cellseg_cellsam2.slots import Fate, Truth  # noqa: E402
from cellseg_cellsam2.targets import collated, heatmap, item_of  # noqa: E402

SIDE = 64
LINEAGE = Lineage.of(
    [
        Track(50, 3, 4),
        Track(60, 5, 9, 50),
        Track(61, 5, 9, 50),
        Track(62, 5, 9, 50),
        Track(70, 4, 9),
    ]
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def clip(side: int = SIDE, first: int = 3) -> Clip:
    """50 divides into three when frame 5 begins; 70 comes with frame 4; 80 is tiny."""
    labels = np.zeros((3, side, side), np.uint32)
    labels[0, 8:20, 8:20] = labels[1, 8:20, 8:20] = 50
    labels[2, 4:12, 4:12], labels[2, 4:12, 16:26], labels[2, 16:24, 4:10] = 60, 61, 62
    labels[1:, 40:50, 40:50] = 70
    labels[:, 30:33, 30:33] = 80
    labels[:, 60:, :] = UNKNOWN
    images = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    return Clip(images, labels, LINEAGE, first, "movie/3")


def batch(*indices: int, **changes: Any) -> dict[str, Any]:
    return collated([item_of(clip(**changes), SIDE, 25, index) for index in indices or (0,)])


def test_objects_are_numbered_and_small_pieces_are_not_known() -> None:
    item = item_of(clip(), SIDE, 25, 9)
    labels = item["labels"]
    assert labels.dtype == torch.int32 and int(labels.max()) == len(item["present"]) == 5
    assert (labels[:, 30:33, 30:33] == -1).all() and (labels[:, 60:] == -1).all()
    assert int((labels[0] == -1).sum()) == 9 + 4 * SIDE
    mother, late = int(labels[0, 10, 10]) - 1, int(labels[1, 44, 44]) - 1
    assert item["present"][mother].tolist() == [True, True, False]
    assert item["present"][late].tolist() == [False, True, True]
    assert int(item["index"]) == 9 and item["image"].shape == (3, 1, SIDE, SIDE)


def test_the_two_largest_of_three_daughters_count() -> None:
    item = item_of(clip(), SIDE, 25, 0)
    mother = int(item["labels"][0, 10, 10]) - 1
    assert int(item["divides"][mother]) == 2
    largest = [int(item["labels"][2, 8, 20]) - 1, int(item["labels"][2, 8, 8]) - 1]
    assert item["daughters"][mother].tolist() == largest
    others = [n for n in range(5) if n != mother]
    assert (item["divides"][others] == -1).all() and (item["daughters"][others] == -1).all()
    elsewhere = item_of(clip(first=4), SIDE, 25, 0)
    assert int(elsewhere["divides"][mother]) == 1


def test_a_single_daughter_is_the_same_object_and_one_after_a_gap_another() -> None:
    single = [Track(50, 3, 4), Track(60, 5, 9, 50)]
    one = replace(clip(), lineage=Lineage.of(single))
    truth = Truth(collated([item_of(one, SIDE, 25, 0)]))
    mother, daughter = int(truth.batch["labels"][0, 10, 10]), int(truth.batch["labels"][2, 5, 5])
    fate = Fate.of(truth, torch.tensor([mother - 1]), 2)
    assert fate.track.tolist() == [daughter - 1]
    assert fate.present.all() and not fate.divides.any() and not fate.judged.any()
    gap = [Track(50, 3, 3), Track(60, 5, 9, 50), Track(61, 5, 9, 50)]
    apart = item_of(replace(clip(), lineage=Lineage.of(gap)), SIDE, 25, 0)
    assert (apart["divides"] == -1).all()


def test_small_windows_are_enlarged() -> None:
    half = clip(32)
    item = item_of(half, SIDE, 25, 0)
    assert item["image"].shape == (3, 1, SIDE, SIDE)
    mother = int(item["labels"][0, 20, 20])
    found = (item["labels"][0] == mother).nonzero()
    assert found.min(0).values.tolist() == [16, 16] and found.max(0).values.tolist() == [39, 39]


def test_clips_without_objects() -> None:
    empty = Clip(np.zeros((1, 3, SIDE, SIDE), np.float32), np.zeros((3, SIDE, SIDE), np.uint32),
                 Lineage(()), 0, "a")  # fmt: skip
    item = item_of(empty, SIDE, 25, 0)
    assert item["present"].shape == (0, 3) and not item["heat"].any()
    both = collated([item, item_of(clip(), SIDE, 25, 1)])
    assert both["video"].tolist() == [1] * 5
    assert len(collated([item])["label"]) == 0


def test_batches_count_their_objects_on() -> None:
    one, two = batch(0), batch(0, 1)
    assert two["image"].shape[0] == 6 and two["index"].tolist() == [0, 1]
    assert two["video"].tolist() == [0] * 5 + [1] * 5
    assert two["label"].tolist() == [1, 2, 3, 4, 5] * 2
    known = one["daughters"] >= 0
    assert (two["daughters"][:5] == one["daughters"]).all()
    assert (two["daughters"][5:][known] == one["daughters"][known] + 5).all()
    assert (two["daughters"][5:][~known] == -1).all()


def test_the_heatmap_has_one_peak_in_each_object() -> None:
    item = item_of(clip(), SIDE, 25, 0)
    heat, weight = item["heat"], item["heat_weight"]
    assert heat.shape == weight.shape == (3, 16, 16)
    assert [(plane == 1).sum().item() for plane in heat] == [1, 2, 4]
    assert float(heat[0, 3, 3]) == 1 and 0.5 < float(heat[0, 3, 2]) < 0.7
    assert float(heat[0, 3, 1]) == 0, "nothing beyond the object"
    assert set(weight.unique().tolist()) == {0.0, 1.0, 10.0, 50.0}
    assert (weight[:, 15] == 0).all() and float(weight[0, 3, 3]) == 50


def test_the_peak_of_a_ring_lies_on_it() -> None:
    labels = np.zeros((1, 64, 64), np.int32)
    labels[0, 8:40, 8:40], labels[0, 16:32, 16:32] = 1, 0
    heat, _ = heatmap(labels)
    y, x = np.argwhere(heat[0] == 1)[0]
    assert labels[0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].any()


def test_what_becomes_of_objects() -> None:
    truth = Truth(batch())
    mother = int(truth.batch["labels"][0, 10, 10]) - 1
    late = int(truth.batch["labels"][1, 44, 44]) - 1
    tracks = torch.tensor([mother, late, -1])
    stays = Fate.of(truth, tracks, 1)
    assert stays.present.tolist() == [True, True, False] and not stays.divides.any()
    assert stays.judged.tolist() == [True, True, False]
    parts = Fate.of(truth, tracks, 2)
    assert parts.divides.tolist() == [True, False, False]
    assert parts.present.tolist() == [False, True, False]
    assert truth.begun(1).nonzero().flatten().tolist() == [late]
    truth.batch["daughters"][mother, 1] = -1
    alone = Fate.of(truth, tracks, 2)
    assert not alone.divides.any() and alone.present.tolist() == [True, True, False]
    assert alone.track[0] == truth.batch["daughters"][mother, 0]
    assert alone.judged.tolist() == [False, True, False], "half of a division shows nothing"


# Prompts


def test_random_numbers_do_not_depend_on_what_else_is_in_the_batch() -> None:
    alone, other, both = Chances(3, [10]), Chances(3, [11]), Chances(3, [10, 11])
    for _ in range(2):
        a, b = alone.numbers(torch.zeros(4).long(), 2), other.numbers(torch.zeros(3).long(), 2)
        mixed = both.numbers(torch.tensor([0, 1, 0, 0, 1, 1, 0]), 2)
        assert torch.equal(mixed[[0, 2, 3, 6]], a) and torch.equal(mixed[[1, 4, 5]], b)
    assert not torch.equal(a[:3], b)


def squares() -> Any:
    masks = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
    for number in range(6):
        masks[number, 10 * number : 10 * number + 8, 20:30] = True
    return masks


def test_points_lie_on_objects_and_boxes_around_them() -> None:
    masks, video = squares(), torch.zeros(6).long()
    by_point = shown(masks, video, 0.0, 0.1, Chances(0, [0]))
    assert by_point.kinds.tolist() == [[1, -1]] * 6
    x, y = by_point.points[:, 0].long().unbind(1)
    assert masks[torch.arange(6), y, x].all()
    exact = shown(masks, video, 1.0, 0.0, Chances(0, [0]))
    assert exact.kinds.tolist() == [[2, 3]] * 6
    assert exact.points[1].tolist() == [[20, 10], [29, 17]]
    noisy = shown(masks, video, 1.0, 0.5, Chances(0, [0]))
    moved = (noisy.points - exact.points).abs()
    assert moved.max() > 0.5 and (moved[..., 0] <= 4.5).all() and (moved[..., 1] <= 3.5).all()
    mixed = shown(masks.repeat(20, 1, 1), video.repeat(20), 0.5, 0.1, Chances(0, [0]))
    assert 40 < int((mixed.kinds[:, 0] == 1).sum()) < 80


def test_clicks_lie_where_an_answer_is_wrong() -> None:
    masks, video = squares(), torch.zeros(6).long()
    known = torch.ones_like(masks)
    prompts = shown(masks, video, 0.0, 0.0, Chances(0, [0]))
    logits = torch.full((6, 16, 16), 50.0)
    missed, spilt = masks.clone(), masks.clone()
    missed[:, :, 25:] = False
    spilt[:, :, 30:33] = True

    def click(found: Any, **changes: Any) -> tuple[Any, Any]:
        values = {"known": known, "truth_probability": 0.0, **changes}
        chances = torch.rand(6, 2, dtype=torch.float64, generator=torch.manual_seed(0))
        after = corrected(
            prompts,
            masks,
            logits,
            found,
            chances=chances,
            **values,  # type: ignore[arg-type]
        )
        assert after.points.shape == (6, 3, 2) and float(after.masks.max()) == 32
        return after.points[:, 2].long(), after.kinds[:, 2]

    points, kinds = click(missed)
    assert kinds.tolist() == [1] * 6 and (points[:, 0] >= 25).all() and (points[:, 0] < 30).all()
    points, kinds = click(spilt)
    assert kinds.tolist() == [0] * 6 and (points[:, 0] >= 30).all()
    for right in (click(masks), click(spilt, truth_probability=1.0), click(spilt, known=masks)):
        points, kinds = right
        assert kinds.tolist() == [1] * 6
        assert masks[torch.arange(6), points[:, 1], points[:, 0]].all()


def test_peaks_beside_objects_are_shown_as_background_first() -> None:
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int32)
    labels[:32] = 1
    heat = torch.full((16, 16), -9.0)
    heat[3, 3], heat[12, 12], heat[12, 4], heat[7, 8] = 5, 4, 3, 2  # the last one touches
    chances = torch.rand(4, dtype=torch.float64, generator=torch.manual_seed(0))
    points = on_background(labels, heat, 4, chances)
    assert points[:2].tolist() == [[49.5, 49.5], [17.5, 49.5]]
    assert len(points) == 4 and (points[:, 1] >= 34).all()
    assert on_background(labels, heat, 1, chances[:1]).tolist() == [[49.5, 49.5]]
    assert len(on_background(torch.ones_like(labels), heat, 4, chances)) == 0
    assert len(on_background(-torch.ones_like(labels), heat, 4, chances)) == 0, "not known"


# Losses


def test_each_clip_counts_the_same_however_many_objects_it_has() -> None:
    losses = Losses(2, torch.zeros(1))
    losses.add("mask", torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 0, 1]))
    assert float(losses.sums["mask"]) == pytest.approx((2 + 10) / 2)
    losses.add("mask", torch.tensor([4.0]), torch.tensor([1]))
    assert float(losses.sums["mask"]) == pytest.approx(6 + 4 / 2)
    losses.add("mask", torch.zeros(0), torch.zeros(0).long())
    assert float(losses.sums["mask"]) == pytest.approx(8)
    assert float(losses.sums["dice"]) == 0


def test_mask_losses_are_focal_dice_and_the_error_of_the_iou() -> None:
    logits = torch.randn(2, 16, 16, generator=torch.manual_seed(0)) * 3
    objects, known = torch.zeros(2, 16, 16, dtype=torch.bool), torch.ones(2, 16, 16).bool()
    objects[:, 4:10, 4:12] = True
    mask, dice, iou = mask_losses(logits, torch.tensor([0.3, 0.9]), objects, known)
    p, t = logits.sigmoid(), objects.float()
    right = p * t + (1 - p) * (1 - t)
    alpha = 0.25 * t + 0.75 * (1 - t)
    focal = (alpha * (1 - right) ** 2 * -right.log()).mean((1, 2))
    assert torch.allclose(mask, focal, atol=1e-4)
    expected = 1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    assert torch.allclose(dice, expected)
    found = logits > 0
    true = (found & objects).sum((1, 2)) / (found | objects).sum((1, 2))
    assert torch.allclose(iou, (torch.tensor([0.3, 0.9]) - true).abs())


def test_the_iou_of_an_empty_mask_does_not_count() -> None:
    objects = torch.ones(2, 16, 16).bool()
    logits = torch.full((2, 16, 16), -1.0)
    logits[1, 0, 0] = 5.0
    _, _, iou = mask_losses(logits, torch.tensor([0.7, 0.7]), objects, objects)
    assert float(iou[0]) == 0 and float(iou[1]) == pytest.approx(0.7 - 1 / 256)


def test_what_is_not_known_changes_no_loss() -> None:
    objects, known = torch.zeros(1, 32, 32).bool(), torch.ones(1, 32, 32).bool()
    objects[:, 8:16, 8:16], known[:, :, 24:] = True, False
    logits = torch.randn(1, 32, 32, generator=torch.manual_seed(0))
    other = logits.clone()
    other[:, :, 24:] += 7
    one, two = (mask_losses(each, torch.ones(1), objects, known) for each in (logits, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_perfect_answers_cost_nothing() -> None:
    objects = torch.zeros(1, 32, 32).bool()
    objects[:, 8:16, 8:16] = True
    logits = torch.where(objects[:, 2::4, 2::4], 30.0, -30.0)
    terms = mask_losses(logits, torch.ones(1), objects, torch.ones_like(objects))
    assert max(float(each) for each in terms[:2]) < 0.05
    assert float(terms[2]) == pytest.approx(4 / 64), "corners are rounded"
    assert float(presence_losses(torch.tensor([30.0]), torch.tensor([True]))) < 1e-6
    heat = torch.zeros(1, 8, 8)
    heat[0, 3, 3] = 1
    assert float(heatmap_losses(heat * 60 - 30, heat, torch.ones_like(heat))) < 1e-6


def test_daughters_are_matched_in_the_better_order() -> None:
    daughters = torch.zeros(2, 2, 16, 16).bool()
    daughters[:, 0, 2:8, 2:8], daughters[:, 1, 9:15, 9:15] = True, True
    masks = daughters.float() * 0.8 + 0.1
    masks[1] = masks[1].flip(0)
    assert swapped(masks, daughters).tolist() == [False, True]
    assert float(soft_iou(daughters[0, 0].float(), daughters[0, 0])) == pytest.approx(1)
    assert swapped(masks[:0], daughters[:0]).tolist() == []

"""Masks are scored, suppressed and restored as Segment Anything and torchvision do it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from mask_proposals import FRAMES, measured, proposals  # noqa: E402
from torchvision.ops import nms  # noqa: E402

from cellseg.torch import mask_pixels, masks  # noqa: E402
from cellseg.torch.frames import Frame  # noqa: E402
from cellseg.torch.masks import (  # noqa: E402
    FoundMask,
    ranked,
    restore_masks,
    score_masks,
    suppress,
    suppress_masks,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("offset", "threshold"), [(1.0, 0.0), (0.3, -1.5), (0.0, 0.5)])
@pytest.mark.parametrize("name", FRAMES)
def test_scores_are_those_of_segment_anything(name: str, offset: float, threshold: float) -> None:
    logits, frame = proposals(), FRAMES[name]
    stability, full, boxes = measured(logits, frame, offset, threshold)
    found = score_masks(logits, frame, offset, threshold)
    torch.testing.assert_close(found.stability, stability.nan_to_num(), rtol=0, atol=0)
    assert torch.equal(found.areas, full.sum((1, 2)))
    assert torch.equal(found.boxes, boxes.float())
    assert found.areas.max() > 0


@pytest.mark.parametrize("name", FRAMES)
def test_restored_masks_are_the_thresholded_logits(name: str) -> None:
    logits, frame = proposals(), FRAMES[name]
    full = measured(logits, frame, 1.0, 0.0)[1].numpy()
    scores = torch.arange(len(logits)) / 2
    found = restore_masks(logits, frame, scores)
    assert [one.score for one in found] == scores[full.any((1, 2))].tolist()
    for one in found:
        assert np.array_equal(painted(one, frame.size), full[round(one.score * 2)])
        assert one.mask.flags.c_contiguous
        assert all(one.mask.any(axis)[[0, -1]].all() for axis in (0, 1))


def test_real_sizes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = Frame.fit((700, 1024), 1024)
    logits = proposals(7, 256, seed=1)
    stability, full, boxes = measured(logits, frame, 1.0, 0.0)
    monkeypatch.setattr(mask_pixels, "_MASKS", 3)
    monkeypatch.setattr(mask_pixels, "_CELLS", 1000)
    found = score_masks(logits, frame)
    assert torch.equal(found.stability, stability.nan_to_num())
    assert torch.equal(found.areas, full.sum((1, 2)))
    assert torch.equal(found.boxes, boxes.float())


def test_half_precision_is_that_of_its_values() -> None:
    frame = FRAMES["larger and not square"]
    logits = proposals().bfloat16()
    stability, full, _ = measured(logits, frame, 1.0, 0.0)
    found = score_masks(logits, frame)
    assert torch.equal(found.stability, stability.nan_to_num())
    restored = restore_masks(logits, frame, torch.zeros(len(logits)))
    assert [int(one.mask.sum()) for one in restored] == full.sum((1, 2))[
        full.any(2).any(1)
    ].tolist()


def test_no_masks_at_all() -> None:
    frame = FRAMES["one row"]
    found = score_masks(torch.zeros(0, 64, 64), frame)
    assert (found.stability.shape, found.areas.shape) == ((0,), (0,))
    assert found.boxes.shape == (0, 4)
    assert restore_masks(torch.zeros(0, 64, 64), frame, torch.zeros(0)) == []


def boxes_of(kind: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``apart`` overlap rarely, ``copies`` are near-copies of few, ``equal`` have equal scores and
    sides, ``flat`` are partly lines and points, ``sizes`` are of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 2, generator=random) * (5000 if kind == "apart" else 400)
    side = torch.rand(count, 2, generator=random) * 40 + 5
    scores = torch.rand(count, generator=random)
    if kind == "copies":
        middle, side = (middle / 60).round() * 60 + side / 20, side / 10 + 40
    if kind == "equal":
        middle, side, scores = middle.round(), torch.full_like(side, 20), (scores * 5).round() / 5
    if kind == "flat":
        side = side * (torch.rand(count, 2, generator=random) > 0.3)
    if kind == "sizes":
        side = 500 ** torch.rand(count, 2, generator=random)
    corners = torch.cat([middle - side / 2, middle + side / 2], 1)
    return (corners.round() if kind != "sizes" else corners), scores


@pytest.mark.parametrize("kind", ["apart", "copies", "equal", "flat", "sizes"])
def test_suppression_is_torchvisions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_BLOCK", 100)
    monkeypatch.setattr(masks, "_PAIRS", 500)
    for seed, iou in product(range(3), (0.0, 0.1, 0.5, 0.7, 0.9, 1.0)):
        boxes, scores = boxes_of(kind, 700, seed)
        assert torch.equal(suppress(boxes, scores, iou), nms(boxes, scores, iou))


def test_suppression_at_the_threshold() -> None:
    # Overlaps of 0.1 and 0.5, which float32 cannot say, and can.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 9, 10, 10], [50, 0, 60, 2], [50, 0, 60, 1]]).float()
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for iou, kept in ((0.1, [0, 2]), (0.10000001, [0, 1, 2]), (0.5, [0, 1, 2, 3])):
        assert nms(boxes, scores, iou).tolist() == kept
        assert suppress(boxes, scores, iou).tolist() == kept


@pytest.mark.parametrize(("kind", "count"), [("apart", 20_000), ("copies", 50_000)])
def test_suppression_of_many_boxes(kind: str, count: int) -> None:
    boxes, scores = boxes_of(kind, count, 0)
    assert torch.equal(suppress(boxes, scores, 0.7), nms(boxes, scores, 0.7))


def test_suppression_of_nothing() -> None:
    assert suppress(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def overlapping_masks(seed: int, levels: int = 8) -> list[FoundMask]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(60):
        shape = random.integers(1, 15, 2)
        mask = random.random(shape) < random.choice([0.3, 0.8, 1.0])
        mask.flat[random.integers(mask.size)] = True
        corner = (int(random.integers(0, 25)), int(random.integers(0, 25)))
        found.append(FoundMask(mask, corner, float(random.integers(levels)) / levels))
    return found + [FoundMask(one.mask.copy(), one.corner, one.score / 2) for one in found[:5]]


def suppressed_plainly(found: list[FoundMask], iou: float, containment: float) -> list[int]:
    full = [painted(one, (45, 45)) for one in found]
    kept: list[int] = []
    for index in sorted(range(len(found)), key=lambda i: -found[i].score):
        for other in kept:
            shared = (full[index] & full[other]).sum()
            smaller = min(full[index].sum(), full[other].sum())
            union = (full[index] | full[other]).sum()
            if shared / union > iou or shared / smaller > containment:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("containment", [0.0, 0.4, 0.85, 1.0])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_by_masks(
    seed: int, iou: float, containment: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = overlapping_masks(seed)
    kept = suppressed_plainly(found, iou, containment)
    assert (len(kept) < len(found)) == (iou < 1 or containment < 1)
    assert suppress_masks(found, iou, containment) == kept
    monkeypatch.setattr(masks, "_PAIRS", 50)
    monkeypatch.setattr(masks, "_BLOCK", 20)
    assert suppress_masks(found, iou, containment) == kept


def test_suppression_of_what_lies_in_another() -> None:
    cell = FoundMask(np.ones((10, 10), bool), (0, 0), 0.5)
    inside = FoundMask(np.ones((2, 4), bool), (3, 3), 0.9)
    three_quarters = FoundMask(np.ones((4, 2), bool), (7, 5), 0.1)
    both = [cell, inside, three_quarters]
    assert suppress_masks(both, 0.5) == [1, 0, 2]
    assert suppress_masks(both, 0.5, 0.9) == [1, 2]
    assert suppress_masks(both[::2], 0.5, 0.75) == [0, 1]
    assert suppress_masks(both[::2], 0.5, 0.74) == [0]


def test_ranked_masks_do_not_depend_on_their_order() -> None:
    found = overlapping_masks(7, levels=2)[:60]
    assert len({one.score for one in found}) == 2
    assert [found[i].score for i in ranked(found)] == sorted(x.score for x in found)[::-1]

    def kept(masks: list[FoundMask]) -> list[int]:
        best = [masks[i] for i in ranked(masks)]
        return [id(best[i]) for i in suppress_masks(best, 0.3, 0.8)]

    expected = kept(found)
    random = np.random.default_rng(0)
    for _ in range(5):
        assert kept([found[i] for i in random.permutation(len(found))]) == expected
    equal = [FoundMask(np.ones(shape, bool), corner, 1.0) for shape, corner in (
        ((2, 2), (0, 5)), ((1, 4), (0, 5)), ((2, 2), (0, 4)), ((3, 2), (9, 9)))]  # fmt: skip
    assert ranked(equal) == [3, 2, 1, 0]


def test_suppression_by_no_masks() -> None:
    assert suppress_masks([], 0.5) == []
    assert suppress_masks([], 0.5, 0.5) == []
    nothing = FoundMask(np.zeros((3, 3), bool), (0, 0), 1.0)
    assert suppress_masks([nothing] * 2, 0.0, 0.0) == [0, 1]


def painted(one: FoundMask, size: tuple[int, int]) -> np.ndarray:
    full = np.zeros(size, bool)
    (y, x), (height, width) = one.corner, one.mask.shape
    full[y : y + height, x : x + width] = one.mask
    return full


def test_what_better_masks_cover_is_left_out_and_covers_nothing() -> None:
    from cellseg.torch.mask_painting import uncovered

    def bar(start: int, length: int) -> FoundMask:
        return FoundMask(np.ones((2, length), bool), (1, start), 0.5)

    found = [bar(0, 10), bar(4, 10), bar(9, 10)]  # 6 of 10 pixels of the second are covered
    assert uncovered(found, (4, 20), 0.5) == [0, 2]
    assert uncovered(found, (4, 20), 0.6) == [0, 1, 2]
    assert uncovered(found[:1], (4, 20), 0.0) == [0]
    assert uncovered([], (4, 20), 0.0) == []

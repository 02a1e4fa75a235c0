"""Average precision, recall and F1 of boxes, against what is computed by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cellseg_cellsam.box_scores import (  # noqa: E402
    average_precision,
    box_scores,
    pooled_average_precision,
)

TRUTH = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
MISS = torch.tensor([[80.0, 80, 90, 90]])


def test_by_hand() -> None:
    # right, wrong, right, twice the same, right: precision 1, 1/2, 2/3, 1/2, 3/5 at recall
    # 1/4, 1/4, 1/2, 1/2, 3/4; so 26 recalls with 1, 25 with 2/3, 25 with 3/5, and 25 with 0.
    boxes = torch.cat([TRUTH[:1], MISS, TRUTH[1:2], TRUTH[:1], TRUTH[2:3]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    wanted = (26 + 25 * 2 / 3 + 25 * 3 / 5) / 101
    assert average_precision(scores, boxes, TRUTH) == pytest.approx(wanted)
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    assert average_precision(scores[shuffled], boxes[shuffled], TRUTH) == pytest.approx(wanted)
    found = box_scores([(scores, boxes, TRUTH)])
    assert found.recall == 0.75
    assert (found.f1, found.threshold) == (pytest.approx(6 / 9), pytest.approx(0.5))


def test_pooled_boxes_compete_over_all_images() -> None:
    first = (torch.tensor([0.9, 0.2]), TRUTH[:2], TRUTH[:2])
    second = (torch.tensor([0.8, 0.1]), torch.cat([MISS, TRUTH[:1]]), TRUTH[:1])
    # Right, wrong, right, right: precision 1, 1/2, 2/3, 3/4 at recall 1/3, 1/3, 2/3, 1.
    wanted = (34 + 67 * 3 / 4) / 101
    assert pooled_average_precision([first, second]) == pytest.approx(wanted)


def test_all_and_nothing() -> None:
    ones = torch.ones(4)
    assert average_precision(ones, TRUTH, TRUTH) == pytest.approx(1)
    assert average_precision(ones[:0], TRUTH[:0], TRUTH) == 0
    assert average_precision(ones, TRUTH, TRUTH[:0]) == 0


def test_iou_decides() -> None:
    moved = TRUTH + torch.tensor([2.0, 0, 2, 0])  # IoU 2/3
    assert average_precision(torch.ones(4), moved, TRUTH, 0.66) == pytest.approx(1)
    assert average_precision(torch.ones(4), moved, TRUTH, 0.67) == 0


def test_ignored_boxes_are_not_wrong() -> None:
    boxes, scores = torch.cat([MISS, TRUTH]), torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5])
    ignored = torch.tensor([True, True, False, False, False])
    assert box_scores([(scores, boxes, TRUTH)]).f1 == pytest.approx(8 / 9)
    found = box_scores([(scores, boxes, TRUTH)], ignored=[ignored])
    assert found.f1 == found.recall == 1

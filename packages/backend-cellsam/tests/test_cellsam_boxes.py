"""Boxes end where the image does, and their masks do not depend on how many come at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cellsam_drawn import Drawn, drawn_encoder
from sam_fakes import draw_weights, sharpen, small_architecture

from cellseg.torch.frames import Frame
from cellseg.torch.sam.architecture import Architecture
from cellseg_cellsam.boxes import (
    apart,
    boxes_at_once,
    decode_boxes,
    detected,
    masks_of,
    proposed,
)
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.predict_options import CellSamPredictOptions
from cellseg_cellsam.sizes import DetectorSizes

BLANK = torch.zeros(1, 1, 64, 64)


def test_boxes_end_with_the_image_and_those_beyond_it_go() -> None:
    encoder = drawn_encoder()
    encoder.model.found = [
        (0.5, (40, 10, 60, 20)),  # ends beyond the image
        (0.9, (-8, -8, 8, 8)),  # begins before it
        (0.8, (10, 33, 30, 60)),  # in the padding
        (0.7, (33, 4, 60, 9)),  # the same, to the right
        (0.6, (2, 30, 9, 40)),
    ]
    frame = Frame((32, 33), (32, 33), 64)
    ((scores, boxes),) = proposed(encoder, BLANK, frame, 0.1)
    assert scores.tolist() == pytest.approx([0.9, 0.6])
    assert boxes.tolist() == [[0, 0, 8, 8], [2, 30, 9, 32]]


def test_each_image_has_its_own_boxes_and_threshold() -> None:
    encoder = drawn_encoder()
    features = torch.zeros(3, 1, 64, 64)
    features[1, 0, 10:20, 30:40] = 0.9
    features[2, 0, 10:20, 30:40] = 0.3
    features[2, 0, 40:60, 0:10] = 0.7
    options = CellSamPredictOptions(box_threshold=0.5)
    none, one, other = detected(encoder, features, Frame.fit((64, 64), 64), options)
    assert none[0].shape == (0,) and none[1].shape == (0, 4)
    assert one[1].tolist() == [[30, 10, 40, 20]] and other[1].tolist() == [[0, 40, 10, 60]]
    assert other[0].tolist() == pytest.approx([0.7])


def test_of_two_boxes_that_overlap_the_better_one_stays() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 20, 20]]).float()
    scores, kept = apart((torch.tensor([0.5, 0.8, 0.4]), boxes), 0.7)
    assert scores.tolist() == pytest.approx([0.8, 0.4]) and kept[0].tolist() == [0, 0, 10, 9]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@torch.no_grad()
def test_masks_do_not_depend_on_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CellSam(small_architecture(), DetectorSizes.named("tiny")).eval()
    draw_weights(model.sam)
    sharpen(model)
    a = model.architecture
    torch.manual_seed(0)
    embedding = torch.randn(1, a.out_channels, a.grid, a.grid)
    corners = torch.rand(7, 2, 2).sort(1).values.flatten(1) * a.side
    whole, iou = model.answer(embedding, boxes=corners, multimask=False)
    sizes = []
    answer = type(model).answer

    def spied(self, embedding, **given):
        sizes.append(len(given["boxes"]))
        return answer(self, embedding, **given)

    monkeypatch.setattr(type(model), "answer", spied)
    parts = list(decode_boxes(model, embedding, corners, chunk))
    assert max(sizes) <= chunk and sum(sizes) == 7
    found = [torch.cat(each) for each in zip(*parts, strict=True)]
    scale = float(whole.abs().max())
    torch.testing.assert_close(found[0], whole[:, 0], atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(found[1], iou[:, 0], atol=1e-4, rtol=0)
    assert not list(decode_boxes(model, embedding, corners[:0], chunk))


def test_masks_lie_where_their_boxes_do_in_images_that_are_not_square() -> None:
    model = Drawn()
    frame = Frame.fit((100, 200), 64)
    boxes = torch.tensor([[8, 4, 24, 20], [40, 16, 64, 32]]).float()  # x0 y0 x1 y1
    found = torch.tensor([0.9, 0.8]), boxes
    ((one, other),), ious = masks_of(model, BLANK, found, frame, (0.5,), 1)
    assert one is not None and other is not None and ious.tolist() == pytest.approx([0.9, 0.9])
    assert [one.score, other.score] == pytest.approx([0.9, 0.8])
    for mask, box in ((one, (25, 12.5, 75, 62.5)), (other, (125, 50, 200, 100))):
        (y, x), (height, width) = mask.corner, mask.mask.shape
        np.testing.assert_allclose((x, y, x + width, y + height), box, atol=4)


def test_each_threshold_has_its_masks_and_empty_ones_are_none() -> None:
    model, frame = Drawn(), Frame.fit((64, 64), 64)
    boxes = torch.tensor([[8, 8, 40, 40], [9, 9, 9.5, 9.5]]).float()
    found = torch.tensor([0.9, 0.8]), boxes
    (low, high), _ = masks_of(model, BLANK, found, frame, (0.2, 0.8), 8)
    assert low[0] is not None and high[0] is not None and high[1] is None
    assert low[0].mask.sum() > high[0].mask.sum()
    (none,), ious = masks_of(model, BLANK, (torch.zeros(0), torch.zeros(0, 4)), frame, (0.5,), 8)
    assert none == [] and ious.shape == (0,)


def test_how_many_boxes_are_taken_at_once() -> None:
    large, small = Architecture.named("vit_b"), Architecture.named("small")
    cpu = torch.device("cpu")
    assert boxes_at_once(large, cpu, 7) == 7
    assert 1 <= boxes_at_once(large, cpu, None) <= boxes_at_once(small, cpu, None) <= 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_takes_what_fits() -> None:
    assert boxes_at_once(Architecture.named("vit_b"), torch.device("cuda", 0), None) >= 1

"""Generated masks are those of Segment Anything's own generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from segment_anything import SamAutomaticMaskGenerator  # noqa: E402
from segment_anything.modeling import ImageEncoderViT, Sam  # noqa: E402
from segment_anything.utils.amg import build_point_grid  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from cellseg.torch import mask_generation  # noqa: E402
from cellseg.torch.frames import Frame  # noqa: E402
from cellseg.torch.mask_generation import (  # noqa: E402
    Proposals,
    generate_masks,
    point_grid,
    propose_masks,
)

SIDE, SAMPLES = 128, 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answers(points: Tensor) -> tuple[Tensor, Tensor]:
    """Three ragged discs for each point, some empty: the same for the same point."""
    places = (points.float() * 16).round() / 16 / SIDE * SAMPLES
    y, x = torch.meshgrid(*[torch.arange(SAMPLES)] * 2, indexing="ij")
    random = torch.Generator().manual_seed(1)
    ragged = torch.randn(3, SAMPLES, SAMPLES, generator=random)
    middles = (places / 5).round() * 5
    away = ((x - middles[:, :1, None]) ** 2 + (y - middles[:, 1:, None]) ** 2).sqrt()
    radii = torch.tensor([2.5, 5.0, 9.0])[:, None, None]
    # Some of the masks around one middle are stable, the others are not.
    shift = (places - middles).sum(1)[:, None, None, None] / 4
    sharp = 1 + 30 * (torch.sin(places.sum(1) * 7) > 0)[:, None, None, None]
    logits = (radii - away[:, None] + shift + ragged * 0.3) * sharp
    logits[places[:, 1] < SAMPLES * 0.1] -= 60
    waves = places[:, :1] * torch.tensor([3, 5, 7]) + places[:, 1:] * torch.tensor([11, 13, 17])
    ious = 0.75 + 0.25 * torch.sin(waves)
    return logits, ious


class Points(nn.Module):
    """A prompt encoder that hands on the points."""

    def get_dense_pe(self) -> Tensor:
        return torch.zeros(1)

    def forward(self, points: Any, boxes: Any, masks: Any) -> tuple[Tensor, Tensor]:
        return points[0], torch.zeros(1)


class Answers(nn.Module):
    """A mask decoder that has learned ``answers``."""

    def forward(self, *, sparse_prompt_embeddings: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        return answers(sparse_prompt_embeddings[:, 0])


@pytest.fixture(scope="module")
def sam() -> Sam:
    encoder = ImageEncoderViT(
        depth=1, embed_dim=4, img_size=SIDE, num_heads=1, out_chans=4, mlp_ratio=1
    )
    return Sam(encoder, Points(), Answers()).eval()


@pytest.mark.parametrize("size", [(128, 128), (96, 75), (150, 260)])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, "stability_score_offset": 2.0},
        {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.9, "box_nms_thresh": 0.3},
        {"stability_score_thresh": 0.7, "box_nms_thresh": 1.0},
    ],
)
def test_masks_are_those_of_segment_anything(
    sam: Sam, size: tuple[int, int], given: dict[str, float]
) -> None:
    peer = SamAutomaticMaskGenerator(sam, points_per_side=7, points_per_batch=20, **given)
    expected = peer.generate(np.zeros((*size, 3), np.uint8))
    found = generate_masks(
        answers, Frame.fit(size, SIDE), points_per_side=7, points_per_batch=10, **given
    )
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        assert one.score == other["predicted_iou"]
        (y, x), (height, width) = one.corner, one.mask.shape
        assert other["bbox"] == [x, y, width - 1, height - 1]
        full = np.zeros(size, bool)
        full[y : y + height, x : x + width] = one.mask
        assert np.array_equal(full, other["segmentation"])


def test_thresholds_of_zero_keep_all_that_is_there() -> None:
    given = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}

    def decode(points: Tensor) -> tuple[Tensor, Tensor]:
        logits, ious = answers(points)
        return logits, ious - 2

    found = generate_masks(decode, Frame.fit((128, 100), SIDE), points_per_side=7, **given)
    filled = (answers(point_grid(7) * torch.tensor([100, 128]))[0] > 0).any(3).any(2)
    assert len(found) == filled.sum() < 7 * 7 * 3
    assert all(one.mask.any() and one.score < 0 for one in found)


def test_no_mask_is_good_enough() -> None:
    frame = Frame.fit((128, 100), SIDE)
    assert generate_masks(answers, frame, points_per_side=3, pred_iou_thresh=1.5) == []
    assert generate_masks(answers, frame, points_per_side=3, stability_score_thresh=1.5) == []


def test_points_come_in_batches_and_lie_in_the_image() -> None:
    seen = []

    def decode(points: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(points)
        return answers(points)

    generate_masks(decode, Frame.fit((100, 50), SIDE), points_per_side=5, points_per_batch=8)
    assert [len(points) for points in seen] == [8, 8, 8, 1]
    grid = build_point_grid(5) * [64, 128]
    np.testing.assert_allclose(torch.cat(seen), grid, rtol=1e-6)
    assert seen[0].dtype == torch.float32


def test_only_the_masks_that_are_left_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    restored = mask_generation.restored
    monkeypatch.setattr(
        mask_generation, "restored", lambda *given: made.append(given) or restored(*given)
    )
    found = generate_masks(answers, Frame.fit((128, 100), SIDE), points_per_side=7)
    assert len(made) == len(found) < 7 * 7 * 3 / 2
    assert all(part.base is None for part, *_ in made)


def test_grid_is_that_of_segment_anything() -> None:
    for per_side in (1, 3, 16, 32):
        np.testing.assert_allclose(point_grid(per_side), build_point_grid(per_side), rtol=1e-7)


def test_impossible_grids() -> None:
    with pytest.raises(ValueError, match="0 points per side"):
        point_grid(0)
    with pytest.raises(ValueError, match="0 points per batch"):
        generate_masks(answers, Frame.fit((9, 9), SIDE), points_per_batch=0)


FRAME = Frame.fit((128, 100), SIDE)
ANYWHERE = torch.tensor([[63.5, 20.0], [10.0, 90.0], [63.5, 20.0], [80.0, 110.0], [0.0, 0.0]])


def proposed(points: Tensor, **given: Any) -> Proposals:
    return propose_masks(answers, FRAME, points, points_per_batch=2, **given)


def test_points_anywhere_are_answered_in_their_order() -> None:
    """With everything kept, what is there of the masks that the model gives."""
    found = proposed(ANYWHERE, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    logits, ious = (values.flatten(0, 1) for values in answers(ANYWHERE))
    full = FRAME.restore(logits[:, None])[:, 0] > 0
    there = full.any(2).any(1)
    assert len(found) == there.sum() > 8
    assert found.iou.tolist() == ious[there].tolist()
    for one, expected, score in zip(found.select(), full[there], found.iou.tolist(), strict=True):
        placed = np.zeros((128, 100), bool)
        (y, x), (height, width) = one.corner, one.mask.shape
        placed[y : y + height, x : x + width] = one.mask
        assert np.count_nonzero(placed != expected.numpy()) <= 1, "up to rounding"
        assert one.score == score


@pytest.mark.parametrize("iou", [0.6, 0.9])
@pytest.mark.parametrize("stability", [0.5, 0.95])
@pytest.mark.parametrize("nms", [0.4, None])
def test_thresholds_are_tried_on_what_was_proposed(
    iou: float, stability: float, nms: float | None
) -> None:
    points, given = point_grid(7) * torch.tensor([100, 128]), {"pred_iou_thresh": iou}
    given["stability_score_thresh"] = stability
    kept = proposed(points, pred_iou_thresh=0.5, stability_score_thresh=0.3)
    again = proposed(points, **given)
    one, other = kept.select(**given, box_nms_thresh=nms), again.select(box_nms_thresh=nms)
    assert 0 < len(one) == len(other) <= len(again) < len(kept)
    assert (len(one) < len(again)) == (nms is not None)
    for a, b in zip(one, other, strict=True):
        assert (a.corner, a.score) == (b.corner, b.score) and np.array_equal(a.mask, b.mask)


def test_proposals_keep_no_more_than_their_boxes_need() -> None:
    found = proposed(point_grid(7) * torch.tensor([100, 128]), stability_score_thresh=0.0)
    whole = len(found) * SAMPLES**2
    assert all(part.base is None for part in found.parts)
    assert sum(part.size for part in found.parts) < whole / 3


def test_no_points_are_no_proposals() -> None:
    def decode(points: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("nothing is asked")

    found = propose_masks(decode, FRAME, torch.zeros(0, 2))
    assert len(found) == 0 and found.select(box_nms_thresh=0.5) == found.select() == []
    assert found.boxes.shape == (0, 4)

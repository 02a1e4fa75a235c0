"""Boxes as drawings: what is drawn, and that models from random weights learn by it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_cellsam.model import CellSam, drawing  # noqa: E402
from cellseg_cellsam.sizes import DetectorSizes  # noqa: E402


def model_of(*, draws_boxes: bool) -> CellSam:
    with seeded(0):
        return CellSam(Architecture.named("tiny"), DetectorSizes.named("tiny"), draws_boxes).eval()


def question(model: CellSam) -> tuple[torch.Tensor, torch.Tensor]:
    a = model.architecture
    with seeded(1):
        embedding = torch.randn(1, a.out_channels, a.grid, a.grid)
    return embedding, torch.tensor([[3.0, 5.0, 30.0, 41.5], [20.0, 8.0, 50.0, 20.0]])


def test_a_drawing_has_shares_of_pixels_at_the_edges() -> None:
    # A pixel of the picture is 2 pixels of the square: x .75 to 2, y 1 to 1.625.
    (picture,) = drawing(torch.tensor([[1.5, 2.0, 4.0, 3.25]]), side=8, pixels=4)
    x, y = torch.tensor([0.25, 1, 0, 0]), torch.tensor([0, 0.625, 0, 0])
    torch.testing.assert_close(picture[0], 2 * y[:, None] * x - 1)


@pytest.mark.parametrize(
    "box", [(0, 0, 8, 8), (2.1, 2.3, 3.4, 3.9), (7.5, 0, 8, 8), (1.9, 0.2, 6.3, 7.7), (3, 3, 3, 5)]
)
def test_a_drawing_keeps_the_area_of_its_box(box: tuple[float, ...]) -> None:
    picture = drawing(torch.tensor([box], dtype=torch.float64), side=8, pixels=4)
    assert picture.shape == (1, 1, 4, 4) and float(picture.abs().max()) <= 1
    area = float((picture + 1).sum()) / 2 * (8 / 4) ** 2
    assert area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))


def test_boxes_are_drawn_each_by_itself() -> None:
    boxes = torch.rand(5, 2, 2).sort(1).values.flatten(1) * 64
    together = drawing(boxes, 64, 32)
    assert together.shape == (5, 1, 32, 32)
    torch.testing.assert_close(together, torch.cat([drawing(box[None], 64, 32) for box in boxes]))
    assert drawing(boxes[:0], 64, 32).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("draws", [True, False])
def test_a_gradient_reaches_what_reads_the_prompt(draws: bool) -> None:
    model = model_of(draws_boxes=draws)
    logits, iou = model.segment(*question(model))
    side = model.architecture.mask_side
    assert logits.shape == (2, side, side) and iou.shape == (2,)
    logits.square().sum().backward()
    prompts = model.sam.prompt_encoder
    of_drawing = [each.grad for each in prompts.mask_downscaling.parameters()]
    of_none = prompts.no_mask_embed.weight.grad
    read, unread = (of_drawing, [of_none]) if draws else ([of_none], of_drawing)
    assert all(each is not None and each.any() for each in read)
    assert all(each is None for each in unread)


def test_drawings_change_the_answer_and_depend_on_the_side_of_the_square() -> None:
    drawn, plain = model_of(draws_boxes=True), model_of(draws_boxes=False)
    plain.load_state_dict(drawn.state_dict())
    embedding, boxes = question(drawn)
    with torch.no_grad():
        one, other = (model.segment(embedding, boxes)[0] for model in (drawn, plain))
        a = drawn.architecture
        masks = drawing(boxes, a.side, a.mask_side)
        wanted, _ = plain.answer(embedding, boxes=boxes, masks=masks, multimask=False)
        chunked = torch.cat([drawn.segment(embedding, box[None])[0] for box in boxes])
    assert not torch.allclose(one, other)
    torch.testing.assert_close(one, wanted[:, 0])
    torch.testing.assert_close(one, chunked, atol=1e-5, rtol=1e-4)

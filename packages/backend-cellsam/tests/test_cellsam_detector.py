"""The detector: where its boxes start, what it can take, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cellseg_cellsam.attention import DeformableAttention, sampled, sines  # noqa: E402
from cellseg_cellsam.detector import Detected, Detector  # noqa: E402
from cellseg_cellsam.sizes import DetectorSizes  # noqa: E402

TINY = DetectorSizes.named("tiny")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def test_boxes_start_square_around_a_regular_grid() -> None:
    detected = Detector(32, TINY)(torch.randn(2, 32, 8, 8))
    assert detected.logits.shape == (2, 2, TINY.queries)
    assert detected.boxes.shape == (2, 2, TINY.queries, 4)
    middles = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    grid = torch.stack([x, y], dim=-1).reshape(-1, 2)
    torch.testing.assert_close(detected.boxes[..., :2], grid.expand(2, 2, -1, 2))
    torch.testing.assert_close(detected.boxes[..., 2:], torch.full((2, 2, 64, 2), 0.25))
    torch.testing.assert_close(detected.logits.sigmoid(), torch.full((2, 2, 64), 0.01))


@pytest.mark.parametrize("queries", [1, 2, 7, 30, 64])
def test_any_number_of_queries_is_spread_evenly(queries: int) -> None:
    sizes = DetectorSizes.of({**TINY.to_dict(), "queries": queries})
    anchors = Detector(8, sizes).anchors
    assert anchors.shape == (queries, 2)
    assert len(anchors.unique(dim=0)) == queries
    assert ((anchors > 0) & (anchors < 1)).all()
    torch.testing.assert_close(anchors.mean(0), torch.full((2,), 0.5), atol=0.04, rtol=0)


@pytest.mark.parametrize("grid", [(4, 4), (3, 9), (1, 1)])
def test_grids_of_any_size_are_taken(grid: tuple[int, int]) -> None:
    features = torch.randn(1, 16, *grid).to(memory_format=torch.channels_last)
    detected = Detector(16, TINY)(features)
    assert detected.boxes.isfinite().all()
    assert detected.logits.isfinite().all()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    detector = Detector(16, TINY)
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    features = torch.randn(3, 16, 6, 6)
    together, alone = detector(features), detector(features[1:2])
    torch.testing.assert_close(together.boxes[:, 1:2], alone.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.logits[:, 1:2], alone.logits, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_finite_gradient() -> None:
    detector = Detector(16, TINY)
    for layer in detector.decoder:
        torch.nn.init.normal_(layer.score.weight)
        torch.nn.init.normal_(layer.box[-1].weight, std=0.1)
    features = torch.randn(2, 16, 6, 6, requires_grad=True)
    detected = detector(features)
    (detected.logits.square().sum() + detected.boxes.square().sum()).backward()
    gradients = {name: each.grad for name, each in detector.named_parameters()}
    assert [name for name, each in gradients.items() if each is None] == []
    assert all(each.isfinite().all() for each in [*gradients.values(), features.grad])
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_half_precision_gives_boxes_in_full() -> None:
    detector = Detector(16, TINY)
    with torch.autocast("cpu", torch.bfloat16):
        detected = detector(torch.randn(1, 16, 6, 6))
    assert detected.boxes.dtype == torch.float32
    assert detected.logits.isfinite().all()


def test_best_is_the_last_layer_clipped_to_the_square() -> None:
    logits = torch.tensor([[[9.0]], [[0.0]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.1, 0.1]]], [[[0.9, 0.2, 0.4, 0.2]]]])
    scores, found = Detected(logits, boxes).best()
    assert scores.tolist() == [[0.5]]
    torch.testing.assert_close(found, torch.tensor([[[0.7, 0.1, 1.0, 0.3]]]))


def test_attention_sees_only_what_is_around_its_box() -> None:
    attention = DeformableAttention(8, 2)
    features = torch.zeros(1, 8, 16, 16)
    features[..., 2:5, 10:13] = 1.0
    queries = torch.zeros(1, 2, 8)
    boxes = torch.tensor([[[11.5 / 16, 3.5 / 16, 0.1, 0.1], [0.2, 0.8, 0.1, 0.1]]])
    changed = attention(queries, boxes, features) - attention(queries, boxes, 0 * features)
    assert changed[0, 0].abs().sum() > 0
    assert not changed[0, 1].any()


def test_points_are_sampled_between_cells() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    points = torch.tensor([[[0.125, 0.5], [0.5, 0.1], [0.875, 0.9]]])
    torch.testing.assert_close(sampled(ramp, points)[0, :, 0], torch.tensor([0.0, 1.5, 3.0]))


def test_codes_tell_places_apart() -> None:
    codes = sines(torch.rand(50, 2), 16)
    assert codes.shape == (50, 32)
    assert torch.cdist(codes, codes).fill_diagonal_(1).min() > 1e-3

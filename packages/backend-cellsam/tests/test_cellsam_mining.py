"""Which prompts are hard, and how much they count; and the boxes that prompt."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cellseg_cellsam.mining import LEAST, MOST, mining_weights  # noqa: E402
from cellseg_cellsam.prompts import MOVED, drawn, noisy  # noqa: E402
from cellseg_cellsam.targets import Objects  # noqa: E402


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "share", "hard"), [(1, 0.1, 1), (5, 0.1, 1), (10, 0.1, 1),
                                                      (11, 0.1, 2), (30, 0.1, 3), (4, 1.0, 4),
                                                      (3, 1e-9, 1)])  # fmt: skip
def test_the_hardest_share_counts_more(count: int, share: float, hard: int) -> None:
    losses = torch.rand(count, generator=generator(), requires_grad=True)
    weights = mining_weights(losses, share, 3.0)
    assert not weights.requires_grad
    assert sorted(weights.tolist()) == [1.0] * (count - hard) + [3.0] * hard
    assert weights[losses >= losses.sort().values[-hard]].eq(3).all()


def test_weights_rise_in_proportion_to_the_loss() -> None:
    losses = torch.tensor([0.1, 4.0, 1.0, 2.0, 0.3, 0.2])
    weights = mining_weights(losses, 0.5, weighted=True)
    middle = LEAST + (MOST - LEAST) / 3
    assert weights.tolist() == pytest.approx([1, MOST, LEAST, middle, 1, 1])


def test_prompts_that_are_equally_hard_count_most() -> None:
    assert mining_weights(torch.ones(3), 1.0, weighted=True).tolist() == [MOST] * 3
    assert mining_weights(torch.tensor([1.0, 2.0]), 0.1, weighted=True).tolist() == [1, MOST]


def test_no_prompts_have_no_weights() -> None:
    assert mining_weights(torch.zeros(0), 0.1).shape == (0,)


def some(count: int) -> Objects:
    boxes = torch.arange(4.0 * count).view(count, 4)
    return Objects(torch.arange(1, count + 1), boxes)


def test_objects_are_drawn_without_repeats_in_order() -> None:
    chosen = drawn(some(20), 6, generator())
    assert len(chosen.ids) == 6
    assert chosen.ids.tolist() == sorted(set(chosen.ids.tolist()))
    assert chosen.boxes.equal(some(20).boxes[chosen.ids - 1])
    assert not chosen.ids.equal(drawn(some(20), 6, generator(1)).ids)
    assert drawn(some(20), 6, generator()).ids.equal(chosen.ids)
    assert drawn(some(5), 6, generator()).ids.tolist() == [1, 2, 3, 4, 5]


def test_edges_move_by_a_share_of_the_side() -> None:
    boxes = torch.tensor([[100.0, 200, 140, 300]]).repeat(1000, 1)
    moved = (noisy(boxes, 0.1, 1024, generator()) - boxes).abs().amax(0)
    torch.testing.assert_close(moved, torch.tensor([4.0, 10, 4, 10]), rtol=0.02, atol=0)
    assert noisy(boxes, 0.0, 1024, generator()).equal(boxes)


def test_edges_move_20_pixels_at_most_and_stay_in_the_square() -> None:
    boxes = torch.tensor([[0.0, 100, 500, 512]]).repeat(1000, 1)
    found = noisy(boxes, 0.5, 512, generator())
    assert (found - boxes).abs().max() <= MOVED
    assert (found - boxes).abs().max() > 0.98 * MOVED
    assert found.min() == 0 and found.max() == 512
    assert (found[:, 2:] > found[:, :2]).all()

"""Answers are matched to cells at the least cost."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cellseg_cellsam.box_pairs import Costs, matching_costs  # noqa: E402
from cellseg_cellsam.detector import Detected  # noqa: E402
from cellseg_cellsam.matching import match  # noqa: E402


def drawn(layers: int, images: int, queries: int) -> Detected:
    generator = torch.Generator().manual_seed(5)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.4 + 0.1
    return Detected(torch.randn(layers, images, queries, generator=generator), boxes)


def cells_of(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.rand(count, 4, generator=generator) * 0.4 + 0.1 for count in counts]


def test_matches_are_the_cheapest_of_all() -> None:
    detected, cells = drawn(2, 3, 5), cells_of(3, 0, 2)
    matches = match(detected, cells, Costs())
    padded = torch.nn.utils.rnn.pad_sequence(cells, batch_first=True)
    table = matching_costs(detected.logits, detected.boxes, padded, Costs())
    found = torch.stack([matches.layers, matches.images, matches.queries, matches.cells], 1)
    for layer, image in itertools.product(range(2), range(3)):
        count = len(cells[image])
        here = found[(found[:, 0] == layer) & (found[:, 1] == image)]
        assert sorted(here[:, 3].tolist()) == list(range(count))
        assert len(set(here[:, 2].tolist())) == count
        costs = table[layer, image]
        cheapest = min(
            sum(float(costs[q, k]) for k, q in enumerate(chosen))
            for chosen in itertools.permutations(range(5), count)
        )
        assert float(costs[here[:, 2], here[:, 3]].sum()) == pytest.approx(cheapest, abs=1e-4)


def test_cells_have_several_answers_before_the_last_layer() -> None:
    matches = match(drawn(3, 2, 9), cells_of(2, 5), Costs(), several=4)
    for layer, image, cell in itertools.product(range(3), range(2), range(2)):
        here = (matches.layers == layer) & (matches.images == image) & (matches.cells == cell)
        wanted = 1 if layer == 2 or image == 1 else 4
        assert len(matches.queries[here].unique()) == int(here.sum()) == wanted


def test_costs_weigh_what_they_say() -> None:
    near = torch.tensor([0.5, 0.5, 0.2, 0.2])
    far = torch.tensor([0.7, 0.5, 0.2, 0.2])
    boxes = torch.stack([near, far]).expand(1, 1, 2, 4)
    detected = Detected(torch.tensor([[[-3.0, 3.0]]]), boxes)
    by_class = match(detected, [near[None]], Costs(1.0, 0.0, 0.0))
    by_place = match(detected, [near[None]], Costs(0.0, 1.0, 0.0))
    assert by_class.queries.tolist() == [1]
    assert by_place.queries.tolist() == [0]


def test_more_cells_than_queries_and_none_at_all() -> None:
    few = match(drawn(1, 1, 3), cells_of(7), Costs())
    assert sorted(few.queries.tolist()) == [0, 1, 2]
    assert len(match(drawn(2, 2, 3), cells_of(0, 0), Costs()).queries) == 0


def test_answers_that_are_no_numbers_are_matched_last() -> None:
    detected = drawn(1, 1, 3)
    detected.boxes[0, 0, 1] = torch.nan
    assert 1 not in match(detected, cells_of(2), Costs()).queries
    assert 1 in match(detected, cells_of(3), Costs()).queries

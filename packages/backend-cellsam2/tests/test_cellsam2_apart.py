"""Followed masks in which the heatmap sees several cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from pydantic import ValidationError
from torch import Tensor

from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask
from cellseg_cellsam2.apart import take_apart
from cellseg_cellsam2.candidates import Candidates
from cellseg_cellsam2.parts import Answer, Encoded, Prompts
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

SIDE, GRID = 64, 16
FRAME = Frame.fit((SIDE, SIDE), SIDE)
LEFT, RIGHT = (slice(16, 40), slice(12, 28)), (slice(16, 40), slice(28, 44))


def plane(*boxes: tuple[slice, slice]) -> Tensor:
    """``(side, side)`` bool."""
    drawn = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for box in boxes:
        drawn[box] = True
    return drawn


class Boxes:
    """Answers a point by the box of cells that it lies in."""

    chunk = 2

    def __init__(self, *boxes: tuple[slice, slice]) -> None:
        self.boxes = boxes
        self.asked = 0

    def encoded(self) -> Encoded:
        heat = torch.full((1, GRID, GRID), -8.0)
        for y, x in self.boxes:
            heat[0, (y.start + y.stop) // 8, (x.start + x.stop) // 8] = 4.0
        nothing = torch.zeros(1, 1, 1, 1)
        return Encoded(nothing, nothing, (nothing, nothing), heat)

    def answer(self, encoded: Encoded, image: Tensor, prompts: Prompts) -> Answer:
        self.asked += len(image)
        masks = []
        for x, y in (prompts.points[:, 0] + 0.5).long().tolist():
            (box,) = [
                b for b in self.boxes if b[0].start <= y < b[0].stop and b[1].start <= x < b[1].stop
            ]
            masks.append(torch.where(plane(box), 6.0, -6.0))
        small = torch.nn.functional.avg_pool2d(torch.stack(masks)[:, None], 4)
        count = len(image)
        return Answer(
            small.expand(-1, 4, -1, -1),
            torch.full((count, 4), 0.9),
            torch.full((count,), 5.0),
            torch.full((count,), -5.0),
            torch.zeros(count, 4, 2),
        )


def followed(*masks: Tensor) -> Candidates:
    """What objects 0, 1, ... are propagated to."""
    found = []
    for mask in masks:
        rows, columns = (np.flatnonzero(mask.numpy().any(axis)) for axis in (1, 0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        corner = (int(rows[0]), int(columns[0]))
        found.append(FoundMask(mask=mask.numpy()[box], corner=corner, score=0.8))
    return Candidates(
        np.arange(len(masks)),
        np.zeros(len(masks), np.int64),
        quarter(*masks) * 12.0 - 6.0,
        torch.zeros(len(masks), 2),
        np.full(len(masks), 0.8),
        tuple(found),
    )


def quarter(*masks: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(torch.stack(masks)[:, None].float(), 4)[:, 0]


def apart(
    model: Boxes,
    found: Candidates,
    before: Tensor,
    lost: bool = False,
    grown: bool = True,
    **given: Any,
) -> Candidates:
    options = CellSam2PredictOptions(**given)
    seen = quarter(before) > 0.5
    encoded: Any = model.encoded()
    states = np.array([lost]), np.array([grown])
    return take_apart(model, encoded, FRAME, options, found, seen, *states)  # type: ignore[arg-type]


def test_two_cells_where_the_one_was_are_its_daughters() -> None:
    both = plane(LEFT, RIGHT)
    found = apart(Boxes(LEFT, RIGHT), followed(both), before=both)
    assert found.owner.tolist() == [0, 0] and sorted(found.token) == [1, 2]
    shown = sum(np.count_nonzero(mask.mask) for mask in found.masks)
    assert 0.98 * both.sum() <= shown <= both.sum()  # corners are rounded


def test_of_a_mask_that_leaked_onto_a_neighbour_the_old_part_goes_on() -> None:
    found = apart(Boxes(LEFT, RIGHT), followed(plane(LEFT, RIGHT)), before=plane(LEFT))
    assert found.owner.tolist() == [0] and found.token.tolist() == [0]
    (mask,) = found.masks
    assert mask.corner == (16, 12) and mask.mask.shape == (24, 16) and mask.mask.mean() > 0.98


def test_a_young_daughter_does_not_divide_again() -> None:
    both = plane(LEFT, RIGHT)
    found = apart(Boxes(LEFT, RIGHT), followed(both), before=both, grown=False)
    assert found.owner.tolist() == [0] and found.token.tolist() == [0]


def test_one_peak_changes_nothing_and_asks_nothing() -> None:
    model, mask = Boxes(LEFT, RIGHT), followed(plane(LEFT))
    assert apart(model, mask, before=plane(LEFT)) is mask
    assert model.asked == 0


def test_what_was_lost_is_left_alone() -> None:
    both = plane(LEFT, RIGHT)
    found = followed(both)
    assert apart(Boxes(LEFT, RIGHT), found, before=both, lost=True) is found


def test_two_peaks_in_one_cell_are_one_cell() -> None:
    both = plane(LEFT, RIGHT)
    model = Boxes((LEFT[0], slice(12, 44)))
    encoded = model.encoded()
    encoded.heat[0, 7, 4] = encoded.heat[0, 7, 10] = 4.0
    model.encoded = lambda: encoded  # type: ignore[method-assign]
    found = followed(both)
    after = apart(model, found, before=both)
    assert len(after) == 1 and model.asked == 3
    assert after.token.tolist() == [0]


def test_a_much_smaller_part_is_no_daughter() -> None:
    small = (slice(16, 40), slice(36, 41))
    found = apart(Boxes(LEFT, small), followed(plane(LEFT, small)), plane(LEFT, small), min_size=1)
    assert found.owner.tolist() == [0]
    assert found.masks[0].mask.shape == (24, 16)


def test_without_the_heatmap_there_is_nothing_to_switch_off() -> None:
    with pytest.raises(ValidationError, match="--split-by-heatmap"):
        CellSam2PredictOptions(use_heatmap=False, split_by_heatmap=False)

"""New objects: peaks, grids, and which of the answers are objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask
from cellseg_cellsam2.births import choose_new, find_peaks, points_to_ask
from cellseg_cellsam2.candidates import Candidates, best, choose, painted
from cellseg_cellsam2.encoding import in_image, in_square
from cellseg_cellsam2.parts import Answer
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

torch.set_num_threads(1)
NOTHING = np.zeros((48, 64), bool)
FRAME = Frame((48, 64), (48, 64), 64)


def options(**given: Any) -> CellSam2PredictOptions:
    return CellSam2PredictOptions(**{"min_size": 0, **given})


def box(y: int, x: int, height: int, width: int, score: float) -> FoundMask:
    return FoundMask(np.ones((height, width), bool), (y, x), score)


def candidates(*masks: FoundMask) -> Candidates:
    count = len(masks)
    return Candidates(
        np.arange(count),
        np.zeros(count, np.int64),
        torch.zeros(count, 16, 16),
        torch.zeros(count, 4),
        np.array([one.score for one in masks]),
        masks,
    )


def test_peaks_are_the_highest_of_their_neighbours() -> None:
    heat = torch.full((16, 16), -9.0)
    heat[3, 4], heat[3, 6], heat[10, 15], heat[12, 2] = 2.0, 1.0, 3.0, -3.0
    places, likely = find_peaks(heat, 0.1)
    assert places.tolist() == [[15.0, 10.0], [4.0, 3.0]]
    assert torch.equal(likely, torch.tensor([3.0, 2.0]).sigmoid())
    assert len(find_peaks(heat, 0.04)[0]) == 3


def test_a_plateau_is_one_peak() -> None:
    heat = torch.full((16, 16), -9.0)
    heat[4:7, 4:7] = 2.0
    assert len(find_peaks(heat, 0.1)[0]) == 1


def test_points_lie_on_what_is_hot() -> None:
    """Whatever the scale, and in images that are not square."""
    size = (30, 50)
    frame = Frame.fit(size, 64, 40)
    heat = torch.full((16, 16), -9.0)
    heat[5, 8] = 2.0
    points, _ = points_to_ask(heat, frame, options(), np.zeros(size, bool))
    factor = 64 / 50
    pixel = in_image(points, frame)[0].tolist()
    assert pixel == pytest.approx([34 / factor, 22 / factor], abs=0.5)
    assert torch.allclose(in_square(in_image(points, frame), frame), points)


def test_nobody_asks_beside_the_image_or_on_known_objects() -> None:
    heat = torch.full((16, 16), -9.0)
    heat[14, 8] = heat[2, 2] = heat[2, 12] = 2.0
    taken = NOTHING.copy()
    taken[8:12, 8:12] = True
    points, likely = points_to_ask(heat, FRAME, options(), taken)
    assert points.tolist() == [[49.5, 9.5]] and len(likely) == 1


def test_a_grid_covers_the_image() -> None:
    asked = options(use_heatmap=False, points_per_side=4)
    points, likely = points_to_ask(torch.zeros(16, 16), FRAME, asked, NOTHING)
    assert len(points) == 16 and likely.eq(1).all()
    assert in_image(points, FRAME)[0].tolist() == [8.0, 6.0]
    assert in_image(points, FRAME)[-1].tolist() == [56.0, 42.0]


def test_the_better_of_two_answers_stays() -> None:
    found = candidates(box(0, 0, 10, 10, 0.6), box(1, 1, 10, 10, 0.8), box(20, 20, 9, 9, 0.5))
    born = choose_new(found, FRAME, options(), NOTHING)
    assert born is not None
    assert [one.score for one in born.found.masks] == [0.8, 0.5]
    assert np.bincount(born.labels.ravel()).tolist()[1:] == [100, 81]


def test_pixels_of_known_objects_stay_theirs() -> None:
    taken = NOTHING.copy()
    taken[:, :4] = True
    born = choose_new(candidates(box(0, 0, 10, 10, 0.6)), FRAME, options(), taken)
    assert born is not None and (born.labels > 0).sum() == 60
    taken[:, :6] = True
    assert choose_new(candidates(box(0, 0, 10, 10, 0.6)), FRAME, options(), taken) is None


def test_the_background_is_no_object() -> None:
    found = candidates(box(0, 0, 48, 40, 0.9), box(0, 50, 9, 9, 0.5))
    born = choose_new(found, FRAME, options(use_heatmap=False), NOTHING)
    assert born is not None and [one.score for one in born.found.masks] == [0.5]
    born = choose_new(found, FRAME, options(), NOTHING)
    assert born is not None and len(born.found) == 2, "a peak says that it is one"


def test_what_is_cut_off_is_background() -> None:
    labels = painted([box(0, 6, 10, 4, 0.9), box(2, 0, 4, 20, 0.8)], (48, 64))
    assert (labels == 1).sum() == 40
    assert (labels == 2).sum() == 40, "the larger of two pieces"
    assert labels[3, 15] == 2 and labels[3, 2] == 0


def test_those_that_were_lost_go_last() -> None:
    found = candidates(box(0, 0, 10, 10, 0.9), box(0, 0, 10, 10, 0.2), box(20, 0, 10, 10, 0.1))
    assert best(found, options()) == [0, 2]
    assert best(found, options(), np.array([True, False, False])) == [1, 2]


def test_long_cells_side_by_side_are_two() -> None:
    """Their boxes overlap, and they do not."""
    rod = np.eye(20, dtype=bool) | np.eye(20, k=1, dtype=bool) | np.eye(20, k=-1, dtype=bool)
    masks = (FoundMask(rod, (0, 0), 0.9), FoundMask(rod, (0, 4), 0.8))
    assert best(candidates(*masks), options()) == [0, 1]


@pytest.mark.parametrize(
    ("presence", "ious", "shown"),
    [
        ([4.0, 4.0], [0.9, 0.8], [0, 1]),
        ([-4.0, 4.0], [0.9, 0.8], [1]),
        ([4.0, 4.0], [0.9, 0.6], [0]),
        ([-4.0, 4.0], [0.9, 0.6], []),
    ],
)
def test_good_masks_of_present_objects_are_chosen(
    presence: list[float], ious: list[float], shown: list[int]
) -> None:
    masks = torch.full((2, 4, 16, 16), -5.0)
    masks[0, 0, 2:5, 2:5] = masks[1, 0, 8:11, 8:11] = 5.0
    estimated = torch.zeros(2, 4)
    estimated[:, 0] = torch.tensor(ious)
    nothing = torch.zeros(2, 4, 4)
    answer = Answer(masks, estimated, torch.tensor(presence), torch.full((2,), 9.0), nothing)
    found = choose(answer, FRAME, options())
    assert found.owner.tolist() == shown and not found.token.any()
    for place, owner in enumerate(shown):
        score = torch.tensor(presence[owner]).sigmoid() * ious[owner]
        assert found.masks[place].score == pytest.approx(float(score))


def test_masks_come_in_one_piece_and_without_small_holes() -> None:
    logits = torch.full((1, 4, 64, 64), -5.0)
    logits[0, 0, 4:24, 4:24] = logits[0, 0, 30:36, 30:36] = 5.0
    logits[0, 0, 10:13, 10:13] = logits[0, 0, 14:22, 14:22] = -5.0
    answer = Answer(logits, torch.ones(1, 4), torch.ones(1), torch.zeros(1), torch.zeros(1, 4, 4))
    frame = Frame((64, 64), (64, 64), 64)
    (mask,) = choose(answer, frame, options(max_hole=9)).masks
    assert mask.corner == (4, 4) and mask.mask.shape == (20, 20)
    assert mask.mask.sum() == 400 - 64
    (mask,) = choose(answer, frame, options(max_hole=0)).masks
    assert mask.mask.sum() == 400 - 64 - 9


def test_options_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="--points-per-side"):
        CellSam2PredictOptions(points_per_side=16)
    with pytest.raises(ValueError, match="--heat-threshold"):
        CellSam2PredictOptions(use_heatmap=False, heat_threshold=0.5)


def test_what_was_calibrated_for_the_heatmap_does_not_bind_a_grid() -> None:
    stored = {"heat_threshold": 0.3, "pred_iou": 0.5}
    over = CellSam2PredictOptions.over
    assert over(stored, {"use_heatmap": False}) == {"use_heatmap": False, "pred_iou": 0.5}
    assert over(stored, {"min_size": 5}) == {**stored, "min_size": 5}

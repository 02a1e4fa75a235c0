"""Points from the decoder's maps, their answers, and the objects among these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cellseg.torch.frames import Frame
from cellseg.torch.mask_painting import painted
from cellseg.torch.masks import FoundMask, suppress_masks
from cellseg_microsam.ais import Smoothed
from cellseg_microsam.apg import answered, chosen, find_instances, find_points
from cellseg_microsam.model import MicroSam
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved, resolve

Make = Callable[..., Prompted]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def resolved(**values: Any) -> Resolved:
    return resolve(MicrosamPredictOptions(), "apg", "tiny").changed(**values)


@pytest.fixture
def prompted(make_sam: Callable[..., Any]) -> Callable[..., Prompted]:
    """``prompted(size, **options)``: a tiny model that has seen noise."""

    def make(size: tuple[int, int] = (64, 64), **values: Any) -> Prompted:
        model = make_sam()
        frame = model.frame(size)
        embedding = model.encode(model.prepare(noise(size), frame))
        return Prompted(model, embedding, frame, resolved(**values))

    return make


def noise(size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((1, 1, *size), np.float32))


def random_maps(size: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    maps = np.stack([gaussian_filter(rng.random(size), 3) for _ in range(3)])
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ((maps - low) / (high - low)).astype(np.float32)


def seed_maps(seeds: np.ndarray) -> np.ndarray:
    inside = (seeds > 0).astype(np.float32)
    return np.stack([inside, 1 - inside, 1 - inside])


def found(y: int, x: int, height: int, width: int, score: float) -> FoundMask:
    return FoundMask(np.ones((height, width), bool), (y, x), score)


def same(one: FoundMask | None, other: FoundMask | None, rtol: float = 1e-5) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.corner == other.corner
        and np.array_equal(one.mask, other.mask)
        and one.score == pytest.approx(other.score, rel=rtol, abs=1e-6)
    )


def test_each_seed_gives_the_point_deepest_inside() -> None:
    y, x = np.indices((50, 70))
    seeds = np.zeros((50, 70), bool)
    seeds |= (y - 15) ** 2 + (x - 20) ** 2 <= 64
    seeds |= (y - 30) ** 2 + (x - 50) ** 2 <= 100
    seeds[45:48, 2:30] = True
    points = find_points(seed_maps(seeds), resolved())
    assert points.tolist()[:2] == [[15, 20], [30, 50]]
    assert points[2][0] == 46 and 3 <= points[2][1] <= 28


def test_points_keep_off_the_border_of_the_image() -> None:
    seeds = np.zeros((40, 60), bool)
    seeds[0:7, 10:31] = True  # deepest at the border, if that were no end
    seeds[39, 40:50] = True  # all of it lies there
    (y, x), last = find_points(seed_maps(seeds), resolved()).tolist()
    assert (y, x) == (3, 12)
    assert seeds[tuple(last)] and last[0] == 39


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (50, 1), (2, 2)])
def test_points_of_tiny_images(size: tuple[int, int]) -> None:
    assert find_points(seed_maps(np.zeros(size)), resolved()).shape == (0, 2)
    assert len(find_points(seed_maps(np.ones(size)), resolved())) == 1


@pytest.mark.slow
def test_points_are_those_of_micro_sam() -> None:
    from micro_sam.instance_segmentation import _derive_point_prompts

    many = 0
    for seed in range(4):
        maps = random_maps((110, 150), seed)
        options = resolved(center_distance_threshold=0.6, foreground_threshold=0.4)
        points = find_points(maps, options)
        theirs = _derive_point_prompts(
            *maps,
            foreground_threshold=0.4,
            center_distance_threshold=0.6,
            boundary_distance_threshold=options.boundary_distance_threshold,
        )["points"][:, 0, ::-1]
        seen = Smoothed.of(maps, options)
        seeds, joined = seen.seeds(options, 4), seen.seeds(options, 8)
        # Theirs are drawn away from where two touch at a corner, and may lie outside of their
        # seed where all of it lies at the border of the image.
        alone = np.bincount(seeds.ravel())[seeds] == np.bincount(joined.ravel())[joined]
        inner = np.isin(seeds, np.unique(seeds[1:-1, 1:-1])) & (seeds > 0) & alone
        ours = {(int(y), int(x)) for y, x in points if inner[y, x]}
        expected = {(int(y), int(x)) for y, x in theirs if inner[y, x]}
        assert ours == expected
        assert len(points) == len(theirs) == seeds.max()
        many += len(ours)
    assert many > 40


@pytest.mark.slow
@pytest.mark.parametrize("multimask", [False, True])
def test_answers_and_their_choice_are_those_of_micro_sam(
    multimask: bool, monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    """With the same weights, on an image as large as the square."""
    import micro_sam.inference
    from micro_sam.util import _batched_mask_nms, _xywh_to_xyxy
    from segment_anything import SamPredictor
    from segment_anything.utils.transforms import ResizeLongestSide

    image = prompted(multimask=multimask)
    points = find_points(random_maps((64, 64), 1), resolved(foreground_threshold=0.3))
    assert len(points) > 8
    ours = answered(image, points)

    monkeypatch.setattr(
        micro_sam.inference, "ResizeLongestSide", lambda side: ResizeLongestSide(64)
    )
    predictor = SamPredictor(image.model.sam)
    predictor.features, predictor.is_image_set = image.embedding, True
    predictor.original_size = predictor.input_size = (64, 64)
    theirs = micro_sam.inference.batched_inference(
        predictor,
        image=None,
        batch_size=5,
        points=points[:, None, ::-1].copy(),
        point_labels=np.ones((len(points), 1)),
        multimasking=multimask,
        return_instance_segmentation=False,
    )
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        whole = np.zeros((64, 64), bool)
        if one is not None:
            (y, x), (height, width) = one.corner, one.mask.shape
            whole[y : y + height, x : x + width] = one.mask
            score = other["predicted_iou"] * other["stability_score"]
            assert one.score == pytest.approx(score, rel=1e-4, abs=1e-5)
        np.testing.assert_array_equal(whole, other["segmentation"].numpy())

    full = [other for other in theirs if other["area"] > 0]
    scores = torch.tensor([one.score for one in ours if one is not None])
    for threshold in (0.3, 0.6, 0.9):
        kept = suppress_masks([one for one in ours if one is not None], threshold)
        expected = _batched_mask_nms(
            torch.stack([other["segmentation"] for other in full]),
            _xywh_to_xyxy(torch.tensor([other["bbox"] for other in full])),
            scores,
            threshold,
            False,
        )
        assert kept == expected.tolist()


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (40, 90)])
def test_how_many_prompts_are_answered_at_once_changes_nothing(
    size: tuple[int, int], refine: bool, prompted: Make
) -> None:
    points = find_points(random_maps(size, 1), resolved(foreground_threshold=0.3))
    several = [
        answered(prompted(size, prompts_per_batch=count, refine_with_boxes=refine), points)
        for count in (1, 3, 64)
    ]
    assert len(several[0]) == len(points) > 4 and any(several[0])
    for other in several[1:]:
        assert all(same(a, b) for a, b in zip(several[0], other, strict=True))


def test_boxes_end_at_the_width_and_the_height(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    """A second prompt for each answer: the box around it, a hundredth larger on each side."""
    image = prompted((40, 90), refine_with_boxes=True)
    first = [found(10, 20, 10, 20, 0.5), None, found(0, 60, 40, 30, 0.7)]
    given: list[torch.Tensor] = []

    def answers(self: Prompted, points: Any = None, labels: Any = None, boxes: Any = None,
                **rest: Any) -> list[FoundMask | None]:  # fmt: skip
        if boxes is None:
            return list(first)
        given.append(boxes)
        return [found(1, 1, 1, 1, 0.1), found(2, 2, 1, 1, 0.2)]

    monkeypatch.setattr(Prompted, "answers", answers)
    again = answered(image, np.array([[15, 30], [5, 5], [20, 75]]))
    np.testing.assert_allclose(
        given[0], [[20 - 0.2, 10 - 0.1, 40 + 0.2, 20 + 0.1], [60 - 0.3, 0, 90, 40]], rtol=1e-6
    )
    assert [one and one.corner for one in again] == [(1, 1), None, (2, 2)]


def test_nothing_is_asked_where_there_is_no_seed(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    image = prompted()
    monkeypatch.setattr(MicroSam, "answer", None)
    result = find_instances(image, np.zeros((3, 64, 64), np.float32))
    assert result.labels.shape == (1, 64, 64) and not result.labels.any() and not result.scores


def test_of_answers_that_overlap_the_best_one_stays() -> None:
    answers = [
        found(5, 5, 10, 10, 0.6),
        found(5, 5, 10, 11, 0.8),  # IoU 0.91
        found(30, 30, 20, 10, 0.9),
        found(30, 35, 20, 10, 0.5),  # IoU 0.33: both stay
        found(50, 5, 2, 5, 0.99),  # small
        None,
    ]
    result = chosen(answers, (64, 64), resolved(min_size=25))
    assert result.scores == {1: 0.9, 2: 0.8, 3: 0.5}
    labels = result.labels[0]
    assert [(labels == label).sum() for label in (1, 2, 3)] == [200, 110, 100]
    assert labels[35, 37] == 1 and labels[35, 43] == 3
    every = chosen(answers, (64, 64), resolved(min_size=0, nms_threshold=1.0))
    assert every.scores[1] == 0.99 and len(every.scores) == 4, "one is covered completely"


def test_what_an_overlap_cuts_off_is_background_and_what_is_left_may_be_too_small() -> None:
    across = found(0, 10, 30, 4, 0.9)
    under = found(10, 0, 6, 20, 0.5)  # 60 pixels to the left, 36 to the right
    labels = painted([across, under], (30, 30), in_one_piece=True).labels[0]
    assert (labels[10:16, :10] == 2).all() and not labels[10:16, 14:].any()
    labels = painted([across, under], (30, 30)).labels[0]
    assert (labels == 2).sum() == 96
    result = painted([across, under], (30, 30), min_size=61, in_one_piece=True)
    assert set(np.unique(result.labels)) == {0, 1} and result.scores == {1: 0.9}


def test_scores_beyond_their_range_are_cut_off_but_still_rank() -> None:
    answers = [found(0, 0, 5, 5, 1.2), found(0, 0, 5, 4, 1.4), found(10, 0, 5, 5, -0.3)]
    result = chosen(answers, (20, 20), resolved(min_size=0, nms_threshold=0.5))
    assert result.scores == {1: 1.0, 2: 0.0}
    assert (result.labels == 1).sum() == 20


def test_objects_of_noise_are_labels_with_scores(prompted: Make) -> None:
    image = prompted((48, 80), foreground_threshold=0.2, nms_threshold=1.0, min_size=0)
    result = find_instances(image, random_maps((48, 80), 0))
    ids = set(np.unique(result.labels).tolist()) - {0}
    assert result.labels.shape == (1, 48, 80) and len(ids) > 1
    assert ids == set(result.scores) and all(0 <= score <= 1 for score in result.scores.values())
    assert list(result.scores.values()) == sorted(result.scores.values(), reverse=True)


def test_points_are_scaled_as_the_image_is(prompted: Make) -> None:
    """The middle of a pixel comes to lie where it is in the square."""
    image = prompted((32, 16))
    assert image.frame == Frame.fit((32, 16), 64)
    places = image._in_square(torch.tensor([[0.5, 0.5], [16.0, 32.0]]))
    np.testing.assert_allclose(places, [[0.5, 0.5], [31.5, 63.5]])

"""Points and boxes to objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cellseg.data import Prompt
from cellseg_microsam.model import MicroSam
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.prompted import Prompted, find_instances
from cellseg_microsam.thresholds import resolve

Make = Callable[..., Prompted]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def prompted(make_sam: Callable[..., Any]) -> Callable[..., Prompted]:
    """``prompted(size, **options)``: a tiny model that has seen noise."""

    def make(size: tuple[int, int] = (40, 60), **values: Any) -> Prompted:
        model = make_sam()
        frame = model.frame(size)
        noise = torch.from_numpy(np.random.default_rng(0).random((1, 1, *size), np.float32))
        embedding = model.encode(model.prepare(noise, frame))
        options = resolve(MicrosamPredictOptions(), "prompts", "tiny").changed(**values)
        return Prompted(model, embedding, frame, options)

    return make


class Spy:
    """Stands for ``MicroSam.answer``: discs about the points, or the boxes; keeps the prompts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(MicroSam, "answer", self.answer)

    def answer(self, embedding: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(given)
        y, x = torch.meshgrid(*(torch.arange(16) * 4 + 1.5,) * 2, indexing="ij")
        masks, scores = [], []
        points, boxes = given["points"], given["boxes"]
        for index in range(len(boxes if points is None else points)):
            if points is None:
                x0, y0, x1, y1 = boxes[index]
                masks.append((x > x0) & (x < x1) & (y > y0) & (y < y1))
            else:
                px, py = points[index, 0]
                masks.append((x - px) ** 2 + (y - py) ** 2 < 100)
            scores.append(0.5 + 0.01 * len(scores) + 0.1 * len(self.calls))
        logits = torch.stack(masks).float()[:, None] * 2 - 1
        iou = torch.tensor(scores)[:, None]
        if given["multimask"]:
            logits = torch.cat([-logits, logits, -logits], 1)
            iou = torch.cat([iou - 0.2, iou, iou - 0.1], 1)
        return logits, iou


def point(y: float, x: float, *others: tuple[float, float, bool]) -> Prompt:
    places = ((0.5, y, x), *((0.5, a, b) for a, b, _ in others))
    return Prompt(points=places, positive=(True, *(positive for _, _, positive in others)))


def box(y0: float, x0: float, y1: float, x1: float) -> Prompt:
    return Prompt(box=((0.0, y0, x0), (1.0, y1, x1)))


def middle(labels: np.ndarray, number: int) -> tuple[float, float]:
    y, x = np.nonzero(labels == number)
    return float(y.mean() + 0.5), float(x.mean() + 0.5)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (90, 40), (200, 120), (20, 16)])
def test_objects_lie_where_they_are_shown(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    """Also where the image is not square, or of another size than the square."""
    Spy(monkeypatch)
    y, x = size[0] * 0.6, size[1] * 0.3
    result = find_instances(prompted(size), [point(y, x)])
    assert result.labels.shape == (1, *size)
    away = np.subtract(middle(result.labels[0], 1), (y, x)) * 64 / max(size)
    assert np.abs(away).max() < 1.5, "in pixels of the square"
    corners = (size[0] * 0.25, size[1] * 0.5, size[0] * 0.75, size[1] * 1.0)
    labels = find_instances(prompted(size), [box(*corners)]).labels[0]
    inside = np.zeros(size, bool)
    inside[int(corners[0]) : int(corners[2]), int(corners[1]) :] = True
    assert (inside & (labels == 1)).sum() / (inside | (labels == 1)).sum() > 0.75


def test_places_are_told_in_pixels_of_the_square(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    """Whose first one has its middle at 0, as Segment Anything counts."""
    spy = Spy(monkeypatch)
    image = prompted((32, 16))
    find_instances(image, [point(0.5, 0.5, (16, 8, False)), box(0, 0, 32, 16)])
    points, boxes = (call["points"] if call["points"] is not None else call["boxes"]
                     for call in spy.calls)  # fmt: skip
    np.testing.assert_allclose(points, [[[0.5, 0.5], [15.5, 31.5]]])
    np.testing.assert_allclose(boxes, [[-0.5, -0.5, 31.5, 63.5]])
    assert spy.calls[0]["labels"].tolist() == [[1, 0]]


def test_prompts_of_one_kind_are_answered_together_in_chunks(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    spy = Spy(monkeypatch)
    prompts = [point(3 * i + 2, 5 * i + 2) for i in range(5)]
    prompts.insert(2, point(9, 9, (20, 20, False)))
    prompts.insert(1, box(2, 2, 9, 9))
    both = Prompt(points=((0.5, 5.0, 5.0),), positive=(True,), box=box(2, 2, 9, 9).box)
    find_instances(prompted(prompts_per_batch=2), [*prompts, both])

    def shape(values: torch.Tensor | None) -> list[int] | None:
        return None if values is None else list(values.shape)

    told = [(shape(call["points"]), shape(call["boxes"])) for call in spy.calls]
    assert told == [
        ([2, 1, 2], None),
        ([2, 1, 2], None),
        ([1, 1, 2], None),
        (None, [1, 4]),
        ([1, 2, 2], None),
        ([1, 1, 2], [1, 4]),
    ]


def test_three_answers_are_asked_for_single_points_only_and_the_best_is_taken(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    spy = Spy(monkeypatch)
    prompts = [point(20, 30), box(5, 5, 20, 20), point(30, 10, (5, 50, False))]
    alone = find_instances(prompted(), prompts)
    assert [call["multimask"] for call in spy.calls] == [False] * 3
    best = find_instances(prompted(multimask=True), prompts)
    assert [call["multimask"] for call in spy.calls[3:]] == [True, False, False]
    for result in (alone, best):
        assert [(result.labels == i).sum() > 0 for i in (1, 2, 3)] == [True] * 3
    sizes = [(result.labels > 0).sum() for result in (alone, best)]
    assert sizes[0] == sizes[1], "the middle one of three is the disc"


def test_where_two_overlap_the_better_score_wins(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    Spy(monkeypatch)
    result = find_instances(prompted((64, 64)), [point(30, 30), point(30, 36)])
    assert list(result.scores) == [1, 2]
    assert [round(score, 3) for score in result.scores.values()] == [0.61, 0.6]
    assert middle(result.labels[0], 1)[1] > middle(result.labels[0], 2)[1]


def test_answers_of_the_model_do_not_depend_on_who_else_is_asked(prompted: Make) -> None:
    image = prompted()
    prompts = [point(10, 10), box(5, 20, 30, 50), point(30, 40, (5, 5, False)), point(20, 50)]
    every = find_instances(image, prompts)
    alone = [find_instances(image, [one]) for one in prompts]
    scores = sorted(one.scores[1] for one in alone)
    assert all(
        min(abs(score - other) for other in scores) < 1e-5 for score in every.scores.values()
    )
    best = [one for one in alone if one.scores[1] > scores[-1] - 1e-4]
    assert any(((every.labels == 1) == (one.labels == 1)).mean() > 0.998 for one in best)
    assert 1 <= len(every.scores) <= 4


def test_no_prompts_give_no_objects(prompted: Make) -> None:
    result = find_instances(prompted(), [])
    assert result.labels.shape == (1, 40, 60) and not result.labels.any() and not result.scores


def test_an_answer_without_a_pixel_is_no_object(
    monkeypatch: pytest.MonkeyPatch, prompted: Make
) -> None:
    def nothing(self: MicroSam, embedding: torch.Tensor, **given: Any) -> Any:
        return torch.full((len(given["points"]), 1, 16, 16), -1.0), torch.ones(
            len(given["points"]), 1
        )

    monkeypatch.setattr(MicroSam, "answer", nothing)
    result = find_instances(prompted(), [point(10, 10), point(20, 20)])
    assert not result.labels.any() and not result.scores

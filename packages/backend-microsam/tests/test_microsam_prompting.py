"""Prompts for training: where points, boxes and clicks lie, and what a session is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.torch.frames import Frame  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_microsam.interactive import Prompting, Session, painted  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.options import MicrosamOptions  # noqa: E402
from cellseg_microsam.prompts import (  # noqa: E402
    Prompts,
    boxes_of,
    choose_objects,
    clicks,
    first_boxes,
    first_points,
)


def rng(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def objects() -> Any:
    masks = torch.zeros(3, 24, 30, dtype=torch.bool)
    masks[0, 2:6, 3:9] = masks[1, 10:20, 20:30] = True
    masks[2, 23, 0] = True
    return masks


KNOWN = torch.ones(24, 30, dtype=torch.bool)


def at(masks: Any, points: Any) -> Any:
    """The pixels of each mask under its points."""
    return masks[torch.arange(len(masks)), points[:, 1], points[:, 0]]


def test_points_lie_on_their_objects_everywhere_alike() -> None:
    masks = objects()[:1].expand(6000, -1, -1)
    points = first_points(masks, rng()).points[:, 0]
    assert at(masks, points).all()
    places, counts = torch.unique(points, dim=0, return_counts=True)
    assert len(places) == 24 and counts.min() > 150 and counts.max() < 350


def test_boxes_enclose_and_grow_outwards_only() -> None:
    masks = objects()
    tight = torch.tensor([[3, 2, 9, 6], [20, 10, 30, 20], [0, 23, 1, 24]]).float()
    torch.testing.assert_close(boxes_of(masks), tight)
    torch.testing.assert_close(first_boxes(masks, 0.0, rng()).boxes, tight)
    many = torch.cat([first_boxes(masks, 0.5, rng(seed)).boxes[None] for seed in range(200)])
    assert (many[..., :2] <= tight[:, :2]).all() and (many[..., 2:] >= tight[:, 2:]).all()
    assert many.min() >= 0 and (many[..., 2] <= 30).all() and (many[..., 3] <= 24).all()
    low, high = many[:, 0].amin(0), many[:, 0].amax(0)
    assert low[0] < 0.2 and low[1] < 0.2  # half of 6 and of 4 pixels away
    assert high[2] > 11.8 and high[3] > 7.8 and high[2] <= 12 and high[3] <= 8


def test_clicks_land_where_the_answer_is_wrong() -> None:
    masks = objects()
    found = torch.zeros_like(masks)
    found[0, 2:6, 3:7] = True  # misses two columns
    found[0, 12, 12] = found[0, 13, 12] = True  # is wrong in two pixels
    found[1] = masks[1]  # is right
    for seed in range(30):
        points, labels = clicks(masks, found, KNOWN, rng(seed))
        assert labels.tolist() == [[1, 0]] * 3
        assert at(masks, points[:, 0]).all() and not at(masks, points[:, 1]).any()
        (on, off), (_, beside), (lone, _) = points.tolist()
        assert on[0] in (7, 8) and off in ([12, 12], [12, 13])
        assert 17 <= beside[0] < 30 and 7 <= beside[1] < 23, "beside the object, not far off"
        assert lone == [0, 23]


def test_no_click_lands_where_nothing_is_known() -> None:
    masks = objects()
    found = torch.ones_like(masks)
    known = KNOWN.clone()
    known[:, 10:20] = False
    for seed in range(30):
        points, _ = clicks(masks, found, known, rng(seed))
        assert not ((points[:, 1, 0] >= 10) & (points[:, 1, 0] < 20)).any()


def test_an_object_that_is_everywhere_gets_no_point_beside_it() -> None:
    whole = torch.ones(1, 8, 8, dtype=torch.bool)
    _, labels = clicks(whole, whole, torch.ones(8, 8, dtype=torch.bool), rng())
    assert labels.tolist() == [[1, -1]]


def test_some_objects_are_chosen_at_random_without_repeats() -> None:
    labels = torch.zeros(4, 40, dtype=torch.int32)
    for i in range(10):
        labels[:, 4 * i : 4 * i + 4] = i
    few = [choose_objects(labels, 4, rng(seed)) for seed in range(20)]
    assert all(masks.shape == (4, 4, 40) and masks.sum(0).max() == 1 for masks in few)
    assert torch.stack([masks.any(0) for masks in few]).any(0)[:, 4:].all()
    assert not any(masks[:, :, :4].any() for masks in few), "the background is no object"
    assert len(choose_objects(labels, 50, rng())) == 9
    assert len(choose_objects(torch.zeros(4, 4, dtype=torch.int32), 5, rng())) == 0


def test_what_is_random_follows_from_the_generator() -> None:
    masks = objects()

    def draw(seed: int) -> list[Any]:
        points, _ = clicks(masks, ~masks, KNOWN, rng(seed))
        boxes = first_boxes(masks, 0.4, rng(seed)).boxes
        return [first_points(masks, rng(seed)).points, points, boxes]

    assert all(torch.equal(a, b) for a, b in zip(draw(3), draw(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draw(3), draw(4), strict=True))


def test_prompts_reach_the_model_at_the_places_of_the_image() -> None:
    """Segment Anything adds half a pixel to what it is given."""
    frame = Frame.fit((24, 30), 60)
    prompts = Prompts(
        torch.tensor([[[3, 5]]]), torch.ones(1, 1), torch.tensor([[0.0, 2.0, 30.0, 24.0]])
    )
    given = prompts.in_square(frame)
    np.testing.assert_allclose(given["points"] + 0.5, [[[7, 11]]])
    np.testing.assert_allclose(given["boxes"] + 0.5, [[0, 4, 60, 48]])


# Sessions


class Answerer:
    """Answers each prompt with random logits that follow from where it is; keeps the prompts."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def answer(self, embedding: Any, *, multimask: bool, **given: Any) -> tuple[Any, Any]:
        self.asked.append({**given, "multimask": multimask, "embedding": embedding})
        prompts = given["boxes"] if given["boxes"] is not None else given["points"].flatten(1)
        outputs = 3 if multimask else 1
        seeds = (prompts[:, :2] * 100).sum(1).int().tolist()
        logits = torch.stack([torch.randn(outputs, 16, 16, generator=rng(s)) for s in seeds])
        return logits, torch.stack([torch.rand(outputs, generator=rng(s)) for s in seeds])


FRAME = Frame.fit((64, 64), 64)


def image(*boxes: tuple[int, int, int, int]) -> Any:
    labels = torch.zeros(64, 64, dtype=torch.int32)
    for number, (top, bottom, left, right) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = number
    return labels


FULL = image((2, 12, 2, 12), (20, 40, 3, 20), (30, 60, 40, 60))
ONE = image((5, 25, 5, 25))
NONE = image()


def session(
    labels: list[Any], answerer: Any = None, by_boxes: bool = False, seed: int = 0, **options: Any
) -> Session:
    chosen = MicrosamOptions(mode="full", **{"n_sub_iterations": 3, **options})
    count = len(labels)
    return Prompting(answerer or Answerer(), FRAME, chosen)(
        torch.zeros(count, 8, 4, 4),
        torch.stack(labels),
        torch.ones(count, 64, 64, dtype=torch.bool),
        by_boxes=by_boxes,
        generator=rng(seed),
    )


def test_a_session_begins_with_points_and_three_answers_or_with_boxes() -> None:
    points, boxes = Answerer(), Answerer()
    session([FULL], points)
    session([FULL], boxes, by_boxes=True)
    assert [asked["multimask"] for asked in points.asked] == [True, False, False]
    assert [asked["points"].shape[1] for asked in points.asked] == [1, 3, 5]
    assert all(asked["boxes"] is None for asked in points.asked)
    assert [asked["multimask"] for asked in boxes.asked] == [False] * 3
    assert [asked["points"] is None for asked in boxes.asked] == [True, False, False]
    assert [asked["points"].shape[1] for asked in boxes.asked[1:]] == [2, 4]
    assert all(asked["boxes"].shape == (3, 4) for asked in boxes.asked)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 2), (0.5, None)])
def test_answers_come_back_as_prompts_as_often_as_asked(
    probability: float, expected: int | None
) -> None:
    counts = []
    for seed in range(40):
        answerer = Answerer()
        session([FULL], answerer, seed=seed, mask_probability=probability)
        masks = [asked["masks"] for asked in answerer.asked]
        assert masks[0] is None
        assert all(each is None or each.shape == (3, 1, 16, 16) for each in masks)
        counts.append(sum(each is not None for each in masks))
    if expected is None:
        assert 25 < sum(counts) < 55
    else:
        assert set(counts) == {expected}


def test_each_image_has_its_own_number_of_objects() -> None:
    answerer = Answerer()
    came = session([FULL, NONE, ONE], answerer)
    assert [len(asked["points"]) for asked in answerer.asked] == [3] * 3 + [1] * 3
    assert [len(each) for each in came.first] == [3, 1] == [len(each) for each in came.last]
    assert [len(each) for each in came.mask] == [3, 3, 3, 1, 1, 1]
    assert len(session([FULL], n_objects=2).first[0]) == 2


def test_an_image_without_objects_adds_nothing() -> None:
    alone, beside = session([FULL]).losses, session([NONE, FULL, NONE]).losses
    torch.testing.assert_close(alone, beside)
    assert session([NONE]).losses is None


STILL = {"by_boxes": True, "box_distortion": 0.0, "n_sub_iterations": 1}


def test_the_loss_does_not_depend_on_how_many_objects_are_alike() -> None:
    torch.testing.assert_close(
        session([FULL], **STILL).losses, session([FULL, FULL, FULL], **STILL).losses
    )


def test_the_loss_does_not_depend_on_the_order_of_objects() -> None:
    other = torch.where(FULL > 0, 4 - FULL, 0)
    torch.testing.assert_close(session([FULL], **STILL).losses, session([other], **STILL).losses)
    torch.testing.assert_close(
        session([FULL, ONE], **STILL).losses, session([ONE, FULL], **STILL).losses
    )


def test_an_object_weighs_as_much_in_any_image() -> None:
    """Three objects of one image and one of another: a mean over four, not over two."""
    together = session([FULL, ONE], **STILL)
    mask = (session([FULL], **STILL).losses[0] * 3 + session([ONE], **STILL).losses[0]) / 4
    torch.testing.assert_close(together.losses[0], mask)


def test_answers_do_not_learn_through_the_prompts_made_of_them() -> None:
    with seeded(0):
        model = MicroSam(Architecture.named("tiny"))
    embeddings = torch.randn(1, 32, 8, 8, generator=rng()).requires_grad_(True)
    seen: list[Any] = []
    answer = model.answer

    def watched(embedding: Any, **given: Any) -> Any:
        seen.append(given["masks"])
        return answer(embedding, **given)

    model.answer = watched
    options = MicrosamOptions(mode="full", n_sub_iterations=3, mask_probability=1.0)
    came = Prompting(model, model.frame((64, 64)), options)(
        embeddings,
        FULL[None],
        torch.ones(1, 64, 64, dtype=torch.bool),
        by_boxes=False,
        generator=rng(),
    )
    assert [each is None for each in seen] == [True, False, False]
    assert not any(each.requires_grad for each in seen[1:])
    sum(came.losses).backward()
    assert embeddings.grad.any()


def test_the_last_answers_are_painted() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1] = True, True
    assert painted(masks, torch.zeros(4, 4)).tolist() == [[1] * 4, [2] * 4, [0] * 4, [0] * 4]

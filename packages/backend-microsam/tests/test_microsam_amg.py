"""Objects that answer a grid of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cellseg.torch.masks import FoundMask
from cellseg_microsam.amg import chosen, decoder, find_instances, propose, selected
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved, resolve

OPEN = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.3,
    "points_per_side": 6,
    "nms_threshold": 0.95,
    "min_size": 0,
}


Make = Callable[..., Prompted]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def resolved(**values: Any) -> Resolved:
    return resolve(MicrosamPredictOptions(), "amg", "tiny").changed(**values)


@pytest.fixture
def prompted(make_sam: Callable[..., Any]) -> Callable[..., Prompted]:
    """``prompted(size, channels, **options)``: a tiny model that has seen noise."""

    def make(size: tuple[int, int] = (64, 64), channels: int = 1, **values: Any) -> Prompted:
        model = make_sam(sharp=True)
        frame = model.frame(size)
        embedding = model.encode(model.prepare(noise(size, channels), frame))
        return Prompted(model, embedding, frame, resolved(**{**OPEN, **values}))

    return make


def noise(size: tuple[int, int], channels: int) -> torch.Tensor:
    picture = np.random.default_rng(0).integers(0, 256, (1, channels, *size))
    return torch.from_numpy(picture / 255).float()


def found(y: int, x: int, height: int, width: int, score: float) -> FoundMask:
    return FoundMask(np.ones((height, width), bool), (y, x), score)


@pytest.mark.parametrize("threshold", [0.8, 0.98])
def test_objects_are_the_masks_that_segment_anything_generates(
    threshold: float, prompted: Make
) -> None:
    """With the same weights, on an image as large as the square."""
    from segment_anything import SamAutomaticMaskGenerator

    image = prompted(channels=3, nms_threshold=threshold)
    result = find_instances(image)
    generator = SamAutomaticMaskGenerator(
        image.model.sam,
        points_per_side=6,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.3,
        box_nms_thresh=threshold,
    )
    picture = (noise((64, 64), 3)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    theirs = [
        FoundMask(one["segmentation"], (0, 0), one["predicted_iou"])
        for one in generator.generate(picture)
    ]
    assert len(theirs) > 2
    expected = chosen(theirs, (64, 64), image.options)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.scores == pytest.approx(expected.scores, abs=1e-5)
    assert len(result.scores) > 2


def test_masks_of_more_than_half_of_a_tile_are_the_background() -> None:
    masks = [found(0, 0, 40, 33, 0.95), found(0, 0, 40, 32, 0.9), found(5, 5, 6, 6, 0.8)]
    result = chosen(masks[::2], (40, 64), resolved(min_size=0))
    assert result.scores == {1: 0.8}
    result = chosen(masks[1:], (40, 64), resolved(min_size=0))
    assert result.scores == {1: 0.9}, "half is not more, and it covers the small one"


def test_thresholds_and_sizes_leave_masks_out(prompted: Make) -> None:
    image = prompted((48, 64))

    def found_with(**values: Any) -> Any:
        options = image.options.changed(**values)
        return find_instances(Prompted(image.model, image.embedding, image.frame, options))

    every = found_with()
    assert len(every.scores) > 2
    assert not found_with(pred_iou_thresh=2.0).scores
    assert not found_with(stability_score_thresh=1.1).scores
    best = max(every.scores.values())
    assert max(found_with(pred_iou_thresh=best - 1e-4).scores.values()) == best
    sizes = np.sort(np.bincount(every.labels.ravel())[1:])
    some = found_with(min_size=int(sizes[-1]))
    assert 1 <= len(some.scores) < len(every.scores)
    assert np.bincount(some.labels.ravel())[1:].min() >= sizes[-1]


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (9, 2)])
def test_kept_proposals_give_what_asking_anew_gives(size: tuple[int, int], prompted: Make) -> None:
    """For any thresholds from the lowest on."""
    image = prompted(size)
    kept = propose(image, 0.0, 0.2)
    _, iou = decoder(image)(torch.rand(64, 2) * 64)
    high = float(iou.max()) * 0.95
    counts = []
    for threshold in (0.0, high):
        for stability in (0.2, 0.6):
            options = image.options.changed(
                pred_iou_thresh=threshold, stability_score_thresh=stability
            )
            asked = Prompted(image.model, image.embedding, image.frame, options)
            expected = find_instances(asked).labels[0]
            np.testing.assert_array_equal(selected(kept, options).labels[0], expected)
            counts.append(int(expected.max()))
    assert len(set(counts)) > 1 or min(size) < 10


def test_how_many_points_are_answered_at_once_changes_nothing(prompted: Make) -> None:
    one, many = (find_instances(prompted(prompts_per_batch=n)).labels for n in (3, 64))
    assert (one != many).mean() < 0.002 and one.any()

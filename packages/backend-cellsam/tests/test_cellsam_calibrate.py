"""Thresholds come from labelled images, from boxes that were found once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cellsam_drawn import Drawn, drawn_encoder

from cellseg import Tiling
from cellseg.classes import UNKNOWN
from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.events import Event, Note
from cellseg.specs import CalibrateJob
from cellseg_cellsam import calibrate as module
from cellseg_cellsam.calibrate import calibrate, find_box_threshold
from cellseg_cellsam.encoding import Encoder
from cellseg_cellsam.predict_options import CellSamPredictOptions

CELLS = [(0.85, (4, 4, 20, 20)), (0.7, (30, 4, 50, 20)), (0.65, (4, 30, 20, 60))]
DIRT = [(0.45, (30, 30, 40, 40)), (0.4, (50, 50, 60, 60)), (0.3, (54, 4, 60, 12))]
TILING = Tiling(core=(1, 64, 64), halo=(0, 0, 0))
OPTIONS = CellSamPredictOptions(box_threshold=0.9, min_size=0)


def sample(
    cells: list[Any], dirt: list[Any], name: str = "a", unknown: tuple[int, ...] = ()
) -> Sample:
    image = np.zeros((64, 64), np.float32)
    labels = np.zeros((64, 64), np.uint32)
    for number, (value, (x0, y0, x1, y1)) in enumerate([*cells, *dirt], 1):
        image[y0:y1, x0:x1] = value
        if number <= len(cells):
            labels[y0:y1, x0:x1] = number
    if unknown:
        x0, y0, x1, y1 = unknown
        labels[y0:y1, x0:x1] = UNKNOWN
    return Sample(name=name, image=image[None, None], labels=labels[None])


BOTH = [sample(CELLS[:2], DIRT[1:], "a"), sample(CELLS[1:], DIRT[:1], "b")]


def job(**values: Any) -> CalibrateJob[Any]:
    given = values.pop("given", ())
    options = CellSamPredictOptions(**{"box_threshold": 0.9, **values})
    return CalibrateJob(
        options=options, given=frozenset(given), samples=BOTH, tiling=TILING, device="cpu",
        model=Path("somewhere"),
    )  # fmt: skip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    encoder = drawn_encoder()
    monkeypatch.setattr(module.Encoder, "open", lambda *_: encoder)
    return encoder


@pytest.mark.parametrize("masks", [False, True])
def test_the_threshold_lies_between_cells_and_dirt(masks: bool) -> None:
    encoder = drawn_encoder()
    choice = find_box_threshold(encoder, BOTH, TILING, OPTIONS, masks=masks)
    threshold = choice.stored["box_threshold"]
    assert isinstance(threshold, float) and 0.47 < threshold < 0.65, "in the middle"
    assert threshold == choice.options.box_threshold and list(choice.stored) == ["box_threshold"]
    assert choice.after["f1@0.50"] == 1 and choice.before["f1@0.50"] == 0
    assert encoder.model.encoded == [1, 1], "each tile is encoded once"
    assert bool(encoder.model.answered) == masks
    text = str(choice)
    assert f"box_threshold {threshold:.4g}" in text and ("masks" if masks else "boxes") in text


@pytest.mark.parametrize("masks", [False, True])
def test_it_is_the_same_each_time_and_in_any_order(masks: bool) -> None:
    one, other = (
        find_box_threshold(drawn_encoder(), samples, TILING, OPTIONS, masks=masks)
        for samples in (BOTH, BOTH[::-1])
    )
    assert one.stored == other.stored and one.after == other.after


@pytest.mark.parametrize("masks", [False, True])
def test_scores_that_overlap_give_the_best_f1(masks: bool) -> None:
    cells = [(0.8, (4, 4, 20, 20)), (0.35, (30, 4, 50, 20))]
    dirt = [(0.5, (30, 30, 40, 40)), (0.45, (50, 50, 60, 60)), (0.6, (54, 4, 60, 12))]
    choice = find_box_threshold(
        drawn_encoder(), [sample(cells, dirt)], TILING, OPTIONS, masks=masks
    )
    assert choice.after["f1@0.50"] == pytest.approx(2 / 3)
    assert 0.6 < float(str(choice.stored["box_threshold"])) < 0.8


@pytest.mark.parametrize("masks", [False, True])
def test_where_nothing_is_found_the_threshold_stays(masks: bool) -> None:
    encoder = drawn_encoder()
    encoder.model.found = [(0.8, (0, 0, 3, 3))]
    choice = find_box_threshold(encoder, BOTH, TILING, OPTIONS, masks=masks)
    assert choice.stored == {"box_threshold": 0.9} and choice.after == choice.before
    empty = [sample([], DIRT)]
    choice = find_box_threshold(drawn_encoder(), empty, TILING, OPTIONS, masks=masks)
    assert choice.stored == {"box_threshold": 0.9}


def test_where_no_mask_fits_the_threshold_is_that_of_the_boxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module._Search, "measure", lambda *_: {"f1@0.50": 0.0})
    of_boxes, of_masks = (
        find_box_threshold(drawn_encoder(), BOTH, TILING, OPTIONS, masks=masks)
        for masks in (False, True)
    )
    assert of_masks.what == "masks" and of_masks.stored == of_boxes.stored
    assert of_masks.stored != {"box_threshold": OPTIONS.box_threshold}


def test_what_is_unknown_does_not_count() -> None:
    dirt = [(0.8, (30, 30, 40, 40))]
    known = sample(CELLS[1:], dirt)
    unknown = sample(CELLS[1:], dirt, unknown=(30, 30, 45, 45))
    for masks in (False, True):
        scores = [
            find_box_threshold(drawn_encoder(), [one], TILING, OPTIONS, masks=masks).after
            for one in (known, unknown)
        ]
        assert scores[0]["f1@0.50"] == pytest.approx(0.8) and scores[1]["f1@0.50"] == 1


def test_images_without_labels_are_refused() -> None:
    nothing = Sample(name="x", image=np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(DataError, match="x has no labels"):
        find_box_threshold(drawn_encoder(), [nothing], TILING, OPTIONS, masks=False)
    with pytest.raises(DataError, match="no images"):
        find_box_threshold(drawn_encoder(), [], TILING, OPTIONS, masks=True)


def test_all_thresholds_are_found_without_asking_again(opened: Encoder) -> None:
    model = opened.model
    assert isinstance(model, Drawn)
    told: list[Event] = []
    found = calibrate(job(mask_threshold=0.7), told.append)
    assert set(found) == {"box_threshold", "mask_threshold", "box_nms", "min_size"}
    assert 0.47 < float(str(found["box_threshold"])) < 0.65
    assert model.encoded == [1, 1] and sum(model.answered) <= 7
    (note,) = told
    assert isinstance(note, Note) and "f1@0.50 1.000" in note.text


def test_what_the_user_gives_stays(opened: Encoder) -> None:
    given = {"box_threshold": 0.2, "mask_threshold": 0.6, "box_nms": 0.3, "min_size": 3}
    assert calibrate(job(**given, given=given), lambda event: None) == {}
    found = calibrate(job(box_threshold=0.68, given=["box_threshold"]), lambda event: None)
    assert "box_threshold" not in found and "mask_threshold" in found
    assert opened.model.answered[-1] <= 2


def test_a_smaller_size_is_tried_where_cells_are_small(opened: Encoder) -> None:
    found = calibrate(job(min_size=5000), lambda event: None)
    assert float(str(found["min_size"])) <= 256


def test_boxes_that_would_mostly_be_wrong_are_not_segmented() -> None:
    encoder = drawn_encoder()
    cells = [(0.9 - 0.001 * i, box) for i, (_, box) in enumerate(CELLS)]
    many = [(0.8 - 0.01 * i, (i, 22, i + 3, 25)) for i in range(0, 60)]
    encoder.model.found = [*cells, *many]
    choice = find_box_threshold(encoder, [sample(CELLS, [])], TILING, OPTIONS, masks=True)
    assert sum(encoder.model.answered) <= 3 * len(CELLS) + 10
    assert choice.after["f1@0.50"] == 1


def test_a_model_is_needed() -> None:
    with pytest.raises(ConfigError, match="trained models only"):
        calibrate(
            CalibrateJob(options=OPTIONS, given=frozenset(), samples=BOTH, tiling=TILING,
                         device="cpu"),
            lambda event: None,
        )  # fmt: skip


def test_calibrating_leaves_the_gradients_alone() -> None:
    encoder = drawn_encoder()
    before = {name: p.requires_grad for name, p in encoder.model.named_parameters()}
    find_box_threshold(encoder, BOTH, TILING, OPTIONS, masks=True)
    assert before == {name: p.requires_grad for name, p in encoder.model.named_parameters()}
    assert torch.is_grad_enabled()

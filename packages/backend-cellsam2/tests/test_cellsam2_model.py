"""The network: that it says what SAM 2 says, of each object by itself."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from cellsam2_networks import (
    SIDE,
    assert_same,
    encode,
    images,
    make,
    one,
    points,
    remembered,
    zeros,
)
from torch import Tensor, nn

from cellseg.torch.sam2.model import build
from cellseg.torch.weights import seeded
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Answer, Memory, Prompts

torch.set_num_threads(1)


@pytest.fixture
def model() -> CellSam2:
    return make()


@torch.no_grad()
def test_answers_are_those_of_sam_2s_own_predictor(model: CellSam2) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    plane = images(1)[0]
    predictor = SAM2ImagePredictor(model.sam)
    predictor._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    predictor.set_image(plane.expand(3, -1, -1).permute(1, 2, 0).numpy())
    asked = points(3, each=2)
    for multimask in (True, False):
        masks, ious, logits = predictor._predict(
            asked.points, asked.kinds, multimask_output=multimask, return_logits=True
        )
        found = model.answer(encode(model, plane[None]), zeros(3), asked)
        chosen = slice(1, None) if multimask else slice(0, 1)
        low = found.masks[:, chosen]
        assert torch.allclose(low.clamp(-32, 32), logits, atol=1e-5)
        assert torch.allclose(found.ious[:, chosen], ious, atol=1e-5)
        large = nn.functional.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)
        assert torch.allclose(large, masks, atol=1e-5)


@torch.no_grad()
def test_earlier_masks_and_boxes_are_prompts_as_in_sam_2(model: CellSam2) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    plane = images(1)[0]
    predictor = SAM2ImagePredictor(model.sam)
    predictor._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    predictor.set_image(plane.expand(3, -1, -1).permute(1, 2, 0).numpy())
    box = torch.tensor([[20.0, 30.0, 40.0, 60.0], [1.0, 2.0, 30.0, 40.0]])
    with seeded(1):
        earlier = torch.randn(2, 1, 16, 16) * 4
    _, ious, logits = predictor._predict(
        None, None, boxes=box, mask_input=earlier, multimask_output=False
    )
    kinds = torch.tensor([[2, 3], [2, 3]], dtype=torch.int32)
    prompts = Prompts(box.view(2, 2, 2), kinds, earlier[:, 0])
    found = model.answer(encode(model, plane[None]), zeros(2), prompts)
    assert torch.allclose(found.masks[:, :1].clamp(-32, 32), logits, atol=1e-5)
    assert torch.allclose(found.ious[:, :1], ious, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "timed"),
    [
        ("nano", False),
        ("nano", True),
        pytest.param("sam2.1_hiera_tiny", False, marks=pytest.mark.slow),
    ],
)
def test_a_video_is_followed_as_sam_2_follows_it(size: str, timed: bool) -> None:
    """The same memories, pointers and ages, over more frames than are remembered; with objects
    that are there and others that are not."""
    model = make(timed, size)
    atol = 1e-4 if size == "nano" else 2e-3  # eleven frames of rounding
    model.sam.multimask_output_in_sam = False  # SAM 2 then takes token 0 too
    frames = model.sam.num_maskmem + 4
    planes, count = images(frames), 4
    asked = points(count)
    logits = model.answer(encode(model, planes[:1]), zeros(count), asked).presence
    model.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias -= logits.median() + 1e-3
    outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    memory: Memory | None = None
    seen = set()
    for frame in range(frames):
        encoded = encode(model, planes[[frame]])
        time = torch.full((count,), frame)
        shown = asked if frame == 0 else None
        found = model.answer(encoded, zeros(count), shown, memory, time)
        memory = model.remember(
            encoded, zeros(count), found.masks[:, 0], found.tokens[:, 0], found.presence, time,
            memory,
        )  # fmt: skip
        out = model.sam.forward_image(model.prepare(planes[[frame]]))
        for key in ("backbone_fpn", "vision_pos_enc"):
            out[key] = [each.expand(count, -1, -1, -1) for each in out[key]]
        _, features, places, sizes = model.sam._prepare_backbone_features(out)
        wanted = model.sam.track_step(
            frame_idx=frame,
            is_init_cond_frame=frame == 0,
            current_vision_feats=features,
            current_vision_pos_embeds=places,
            feat_sizes=sizes,
            point_inputs=None
            if shown is None
            else {"point_coords": shown.points, "point_labels": shown.kinds},
            mask_inputs=None,
            output_dict=outputs,
            num_frames=frames,
        )
        outputs["cond_frame_outputs" if frame == 0 else "non_cond_frame_outputs"][frame] = wanted
        present = found.presence > 0
        seen |= set(present.tolist())
        assert torch.allclose(found.presence, wanted["object_score_logits"][:, 0], atol=atol)
        assert torch.allclose(found.masks[present, 0], wanted["pred_masks"][present, 0], atol=atol)
        slot = memory.times.eq(frame).nonzero()
        assert torch.allclose(
            memory.features[slot[:, 0], slot[:, 1]], wanted["maskmem_features"], atol=atol
        )
        slot = memory.pointer_times.eq(frame).nonzero()
        assert torch.allclose(memory.pointers[slot[:, 0], slot[:, 1]], wanted["obj_ptr"], atol=atol)
    assert seen == {True, False}


@torch.no_grad()
def test_nothing_that_is_said_of_an_object_depends_on_the_others(model: CellSam2) -> None:
    """Objects of several images, with more or fewer memories and points."""
    encoded = encode(model, images(2))
    image = torch.tensor([0, 1, 1, 0, 1])
    memory = remembered(model, encoded, image, [0, 5, 3, 4, 0])
    asked = points(5, each=3)
    numbers = [1, 3, 2, 1, 0]
    for index, number in enumerate(numbers):
        asked.kinds[index, number:] = -1
    time = torch.full((5,), 6)
    together = model.answer(encoded, image, asked, memory, time)
    kept = model.remember(
        encoded, image, together.masks[:, 0], together.tokens[:, 0], together.presence, time, memory
    )
    for index, number in enumerate(numbers):
        which = torch.tensor([index])
        alone = encode(model, images(2)[image[[index]]])
        found = model.answer(
            alone, zeros(1), one(asked, index, number), memory.select(which), time[:1]
        )
        assert_same(found, Answer(*(getattr(together, f.name)[[index]] for f in fields(Answer))))
        after = model.remember(
            alone, zeros(1), found.masks[:, 0], found.tokens[:, 0], found.presence, time[:1],
            memory.select(which),
        )  # fmt: skip
        assert_same(after, kept.select(which))


@torch.no_grad()
def test_points_that_are_none_change_nothing_wherever_they_stand(model: CellSam2) -> None:
    encoded = encode(model, images(1))
    asked = points(1, each=2)
    places = torch.zeros(1, 4, 2)
    kinds = torch.full((1, 4), -1, dtype=torch.int32)
    places[:, [1, 3]], kinds[:, [1, 3]] = asked.points, asked.kinds
    padded = model.answer(encoded, zeros(1), Prompts(places, kinds))
    assert_same(padded, model.answer(encoded, zeros(1), asked))


def followed(model: CellSam2, planes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What is said of five objects in the third frame, and the gradients of it."""
    model.zero_grad()
    memory: Memory | None = None
    for frame, plane in enumerate(planes):
        encoded = encode(model, plane[None])
        time = torch.full((5,), frame)
        found = model.answer(encoded, zeros(5), None if frame else points(5), memory, time)
        memory = model.remember(
            encoded, zeros(5), found.masks[:, 0], found.tokens[:, 0], torch.ones(5).bool(), time,
            memory,
        )  # fmt: skip
    (found.masks.square().mean() + found.division.sum()).backward()
    return found.masks.detach(), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


def test_chunks_and_recomputing_change_nothing(model: CellSam2) -> None:
    planes = images(3)
    masks, gradients = followed(model, planes)
    model.chunk, model.recompute = 2, True
    again, other = followed(model, planes)
    assert torch.allclose(masks, again, atol=1e-5)
    assert other.keys() == gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, other[name], rtol=1e-3, atol=1e-5 * scale), name


def test_the_first_frame_learns_from_the_last(model: CellSam2) -> None:
    planes = images(3).requires_grad_()
    followed(model, planes)
    assert planes.grad is not None
    norms = planes.grad.flatten(1).norm(dim=1)
    assert torch.isfinite(norms).all() and (norms > 0).all()


@torch.no_grad()
def test_no_objects_have_an_answer_and_a_memory(model: CellSam2) -> None:
    encoded = encode(model, images(1))
    empty = Prompts(torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.int32))
    answer = model.answer(encoded, zeros(0), empty)
    assert answer.masks.shape == (0, 4, 16, 16)
    assert answer.tokens.shape == (0, 4, 64)
    memory = model.remember(
        encoded, zeros(0), answer.masks[:, 0], answer.tokens[:, 0], answer.presence, zeros(0)
    )
    other = remembered(model, encoded, zeros(1), [5])
    assert len(memory) == 0
    assert_same(Memory.joined([memory, other]), other)
    answer = model.answer(encoded, zeros(0), None, memory, zeros(0))
    assert len(answer.presence) == 0


def test_what_cannot_be_taken_is_refused(model: CellSam2) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        model.prepare(torch.rand(1, 2, SIDE, SIDE))
    encoded = encode(model, images(1))
    memory = remembered(model, encoded, zeros(1), [5])
    with pytest.raises(ValueError, match="need the time"):
        model.answer(encoded, zeros(1), None, memory)


def test_a_colour_image_and_a_grey_one_are_standardised_as_in_sam_2(model: CellSam2) -> None:
    grey = images(2)
    assert torch.equal(model.prepare(grey), model.prepare(grey.expand(-1, 3, -1, -1)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    flat = mean.view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    assert model.prepare(flat).abs().max() < 1e-6
    assert torch.allclose(model.prepare(flat + 0.1)[0, :, 0, 0], 0.1 / std, atol=1e-5)
    assert torch.equal(model.prepare(grey + 2), model.prepare(torch.ones_like(grey)))


def test_fresh_heads_expect_what_is_likely() -> None:
    """Masks of present objects, hardly any middle of a cell, hardly any division."""
    with seeded(3):
        model = CellSam2(build("nano", SIDE), "nano").eval()
    encoded = encode(model, images(2))
    answer = model.answer(encoded, zeros(8), points(8))
    assert (answer.presence > 0).all()
    assert (answer.division < -2).all()
    assert encoded.heat.sigmoid().max() < 0.05

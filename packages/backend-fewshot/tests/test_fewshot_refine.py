"""Tuning on the examples: what is learned, what is kept, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cellseg.errors import ConfigError, DataError, InterruptedRunError, WeightsError
from cellseg.events import Event, Progress
from cellseg.torch.masks import FoundMask
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg.torch.sam.weights import Loaded, load_checkpoint
from cellseg.torch.weights import seeded
from cellseg_fewshot import adapters
from cellseg_fewshot.adapters import (
    adapter_tensors,
    add_adapters,
    apply_adapters,
    merge_adapters,
)
from cellseg_fewshot.encoders import (
    EncoderSettings,
    describe_encoder,
    open_encoder,
    restore_encoder,
)
from cellseg_fewshot.encoders import sam as sam_module
from cellseg_fewshot.encoders.sam import SamEncoder
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.refine import _drawn, _scene, refine
from cellseg_fewshot.views import Shown

CPU = torch.device("cpu")
Scenes = list[tuple[NDArray[np.float32], list[Shown]]]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Segment Anything model with random weights, whose masks are not as sharp as those of
    ``tiny_sam_checkpoint``."""
    with seeded(0):
        sam = SegmentAnything(Architecture.named("tiny")).sam
    for network in sam.mask_decoder.output_hypernetworks_mlps:
        for parameter in network.layers[-1].parameters():
            parameter.data.mul_(10)
    path = tmp_path_factory.mktemp("untrained") / "sam.pth"
    torch.save(sam.state_dict(), path)
    return path


def opened(path: Path, **settings: Any) -> SamEncoder:
    open_to_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    encoder = open_encoder(EncoderSettings(checkpoint=path, **open_to_all, **settings), CPU)
    assert isinstance(encoder, SamEncoder)
    return encoder


def disc(centre: tuple[int, int], radius: int) -> FoundMask:
    y, x = np.indices((2 * radius + 1,) * 2) - radius
    corner = (centre[0] - radius, centre[1] - radius)
    return FoundMask(y**2 + x**2 <= radius**2, corner, 1.0)


def whole(found: FoundMask, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    y, x = found.corner
    mask[y : y + found.mask.shape[0], x : x + found.mask.shape[1]] = found.mask
    return mask


def scene(shown: list[Shown], size: tuple[int, int] = (96, 96)) -> Scenes:
    plane = np.random.default_rng(0).normal(0.2, 0.02, (1, *size)).astype(np.float32)
    for one in shown:
        plane[0, whole(one.mask, size)] += 0.5
    return [(plane, shown)]


def options(**values: Any) -> FewshotOptions:
    return FewshotOptions(encoder="sam_vit_b_01ec64", refine=True, **values)


def tuned(encoder: SamEncoder, scenes: Scenes, seed: int = 0, **values: Any) -> list[Progress]:
    events: list[Event] = []
    refine(encoder, scenes, options(**values), seed, events.append, lambda: False)
    return [event for event in events if isinstance(event, Progress)]


def best_iou(encoder: SamEncoder, plane: NDArray[np.float32], shown: Shown) -> float:
    """Of the answers to the middle of an example."""
    size = (plane.shape[1], plane.shape[2])
    wanted = whole(shown.mask, size)
    point = np.argwhere(wanted).mean(0)[None].astype(np.float32) + 0.5
    found = [whole(one, size) for one in encoder.view([plane])[0].answer(point)]
    ious = [np.count_nonzero(one & wanted) / np.count_nonzero(one | wanted) for one in found]
    return max(ious, default=0.0)


def test_masks_of_the_examples_get_better(untrained: Path) -> None:
    encoder = opened(untrained)
    (plane, shown), *_ = scenes = scene([Shown(disc((40, 50), 20), 1)])
    before = best_iou(encoder, plane, shown[0])
    steps = tuned(encoder, scenes, refine_steps=60, refine_learning_rate=0.02, refine_rank=8)
    assert [event.step for event in steps] == list(range(1, 61))
    assert {event.total for event in steps} == {60}
    losses = [event.metrics["loss"] for event in steps]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    for name in ("loss_mask", "loss_dice", "loss_iou"):
        terms = [event.metrics[name] for event in steps]
        assert np.mean(terms[-5:]) < np.mean(terms[:5])
    assert best_iou(encoder, plane, shown[0]) > before + 0.2


def test_the_same_seed_gives_the_same_weights(untrained: Path) -> None:
    scenes = scene([Shown(disc((30, 30), 10), 1), Shown(disc((60, 70), 12), 2)])
    states = []
    for seed in (0, 0, 1):
        encoder = opened(untrained)
        with seeded(len(states)):  # what others drew before changes nothing
            tuned(encoder, scenes, seed, refine_steps=3)
        states.append(encoder.adapters)
    one, same, other = states
    assert one.keys() == same.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_only_attention_of_encoder_and_decoder_changes(untrained: Path) -> None:
    encoder, before = opened(untrained), opened(untrained).state()
    tuned(encoder, scene([Shown(disc((30, 30), 12), 1)]), refine_steps=2)
    after = encoder.state()
    assert after.keys() == before.keys(), "adapters are part of the weights"
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    for name in changed:
        assert name.endswith(".weight") and ("attn" in name or "_proj" in name), name
    for part in ("image_encoder.blocks.0.attn.qkv", "mask_decoder.transformer.layers.1"):
        assert any(part in name for name in changed)
    assert not any(each.requires_grad for each in encoder.model.parameters())
    assert not encoder.model.training and not encoder.model.recompute


def disturbed(model: SegmentAnything) -> None:
    """Adapters that change something."""
    parameters = add_adapters(model.sam, 3, 0)
    generator = torch.Generator().manual_seed(0)
    for each in parameters:
        each.data = torch.randn(each.shape, generator=generator) * 0.1


def answered(model: SegmentAnything, embedding: torch.Tensor) -> torch.Tensor:
    """By the layers themselves."""
    sam = model.sam
    points = torch.tensor([[[30.0, 40.0]], [[80.0, 20.0]]]), torch.ones(2, 1)
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
    logits: torch.Tensor = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )[0]
    return logits


@torch.no_grad()
def test_merged_adapters_give_the_same_and_stored_ones_too(untrained: Path) -> None:
    model, plain = opened(untrained).model, opened(untrained).model
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    disturbed(model)
    embedding = model.encode(image)
    logits = answered(model, embedding)
    assert (embedding - plain.encode(image)).abs().max() > 1e-2, "they do something"
    assert (logits - answered(plain, embedding)).abs().max() > 1e-2, "in the decoder, too"
    tensors = adapter_tensors(model.sam)
    merge_adapters(model.sam)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(model.encode(image), embedding, atol=1e-5)
    assert torch.allclose(answered(model, embedding), logits, atol=1e-5)
    apply_adapters(plain.sam, tensors)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_adapters_of_another_model_are_refused(untrained: Path) -> None:
    model, other = opened(untrained).model, opened(untrained).model
    disturbed(model)
    tensors = adapter_tensors(model.sam)
    first = next(iter(tensors))
    lacking = {name: tensor for name, tensor in tensors.items() if name != first}
    wrong = {**tensors, first: tensors[first][:, :-1]}
    unknown = {name.replace("image_encoder", "other"): each for name, each in tensors.items()}
    for held in (lacking, wrong, unknown):
        with pytest.raises(WeightsError, match="do not fit its encoder"):
            apply_adapters(other.sam, held)


def test_adapters_of_published_weights_are_stored_alone(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(name: str, emit: Callable[[Event], None]) -> Loaded:
        return replace(load_checkpoint(untrained), name=name)

    monkeypatch.setattr(sam_module, "load_published", published)
    encoder = open_encoder(EncoderSettings(name="sam_vit_b_01ec64"), CPU)
    assert isinstance(encoder, SamEncoder)
    scenes = scene([Shown(disc((30, 30), 12), 1)])
    tuned(encoder, scenes, refine_steps=2)
    state = encoder.state()
    assert state and all(".lora_" in name for name in state)
    again = restore_encoder(describe_encoder(encoder), state, EncoderSettings(), CPU)
    assert again.state().keys() == state.keys(), "they can be stored once more"
    for name, value in again.model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, encoder.model.state_dict()[name])


def test_what_was_refined_from_a_file_is_stored_whole(untrained: Path) -> None:
    encoder = opened(untrained)
    scenes = scene([Shown(disc((30, 30), 12), 1)])
    tuned(encoder, scenes, refine_steps=2)
    again = restore_encoder(describe_encoder(encoder), encoder.state(), EncoderSettings(), CPU)
    plane = scenes[0][0]
    one, other = (each.view([plane])[0].features.values for each in (encoder, again))
    assert torch.equal(one, other)


def test_negatives_are_background_and_never_asked_for() -> None:
    shown = [
        Shown(disc((30, 30), 9), 1),
        Shown(disc((60, 60), 9), 0),
        Shown(disc((30, 70), 9), 2),
    ]
    ((plane, examples),) = scene(shown)
    drawn = _scene(plane, examples)
    assert drawn.wanted == (0, 2)
    far = ~np.any([whole(one.mask, (96, 96)) for one in shown], axis=0)
    for index in range(3):
        others = np.any([drawn.masks[i] for i in range(3) if i != index], axis=0)
        assert drawn.near[index][others].all(), "other examples are known"
        assert np.count_nonzero(drawn.near[index] & far) > 0, "and a ring around it"
        assert not drawn.near[index][90:, :10].any(), "and nothing else"


def test_negatives_alone_are_refused(untrained: Path) -> None:
    with pytest.raises(DataError, match="no example shows an object"):
        tuned(opened(untrained), scene([Shown(disc((60, 60), 9), 0)]))


def test_crops_keep_points_masks_and_pixels_together() -> None:
    shown = [Shown(disc((20, 25), 8), 1), Shown(disc((60, 90), 10), 1)]
    ((plane, examples),) = scene(shown, (80, 130))
    drawn = _scene(plane, examples)
    random = np.random.default_rng(0)
    shapes, counts = set(), set()
    for _ in range(40):
        crop, masks, near, points = _drawn(drawn, 0, random)
        assert crop.shape[1:] == masks.shape[1:] == near.shape[1:]
        assert len(masks) == len(near) == len(points)
        assert max(crop.shape[1:]) >= 65
        assert np.count_nonzero(masks[0]) == np.count_nonzero(shown[0].mask.mask), "all of it"
        for mask, (y, x) in zip(masks, points, strict=True):
            assert mask[int(y), int(x)]
            assert crop[0][mask].mean() > 0.6, "the bright pixels are those of the mask"
        assert (near | ~masks).all(), "an example is near itself"
        shapes.add(crop.shape)
        counts.add(len(masks))
    assert len(shapes) > 5 and counts == {1, 2}


def test_an_interrupt_stops_after_the_step(untrained: Path) -> None:
    events: list[Event] = []
    with pytest.raises(InterruptedRunError, match="after step 2 of 9"):
        refine(
            opened(untrained),
            scene([Shown(disc((30, 30), 12), 1)]),
            options(refine_steps=9),
            0,
            events.append,
            lambda: len(events) == 2,
        )
    assert len(events) == 2


def test_one_step_is_enough(untrained: Path) -> None:
    encoder = opened(untrained)
    assert len(tuned(encoder, scene([Shown(disc((30, 30), 12), 1)]), refine_steps=1)) == 1


def test_a_second_refinement_is_refused(untrained: Path) -> None:
    encoder, scenes = opened(untrained), scene([Shown(disc((30, 30), 12), 1)])
    tuned(encoder, scenes, refine_steps=1)
    with pytest.raises(ConfigError, match="refined already"):
        tuned(encoder, scenes, refine_steps=1)


def test_what_cannot_be_refined_is_refused(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = scene([Shown(disc((30, 30), 12), 1)])

    class Filters:
        name = "filters"

    with pytest.raises(ConfigError, match="filters always learns"):
        tuned(Filters(), scenes)  # type: ignore[arg-type]
    encoder = opened(untrained)
    encoder.dtype = torch.float16
    with pytest.raises(ConfigError, match="--precision fp16"):
        tuned(encoder, scenes)
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package peft") as caught:
        tuned(opened(untrained), scenes)
    assert 'uv pip install "cellseg-fewshot[refine]"' in str(caught.value.hint)

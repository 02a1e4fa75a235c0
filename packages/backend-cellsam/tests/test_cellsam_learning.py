"""Which parameters each stage changes: exactly those that it says, and all of them can learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import ConfigError  # noqa: E402
from cellseg.torch.lora import has_lora, merge_lora, merged_name  # noqa: E402
from cellseg_cellsam.detection_learner import DetectionLearner  # noqa: E402
from cellseg_cellsam.learning import adapt, of_stage1, of_stage2  # noqa: E402
from cellseg_cellsam.mask_learner import MaskLearner  # noqa: E402
from cellseg_cellsam.model import CellSam  # noqa: E402
from cellseg_cellsam.options import CellSamOptions  # noqa: E402
from cellseg_cellsam.weights import start  # noqa: E402

SIDE = 64
_TRUNK, _NECK = "sam.image_encoder.", "sam.image_encoder.neck."


def model_of(**options: Any) -> tuple[CellSam, CellSamOptions]:
    chosen = CellSamOptions(model_type="tiny", patch_size=SIDE, **options)
    return start(chosen, 0, print).model, chosen


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    labels[:, 8:24, 8:24], labels[:, 34:50, 30:50] = 1, 2
    image = (labels[:, None] > 0).float() + 0.1 * torch.rand(2, 1, SIDE, SIDE, generator=generator)
    known = torch.ones_like(labels, dtype=torch.bool)
    return {"image": image, "labels": labels, "known": known, "index": torch.arange(2)}


def in_trunk(name: str) -> bool:
    return name.startswith(_TRUNK) and not name.startswith(_NECK)


def test_cellfinder_is_the_whole_detector() -> None:
    model, options = model_of(stage1_type="cellfinder")
    every = {name for name, _ in model.named_parameters()}
    assert set(of_stage1(model, options)) == {n for n in every if n.startswith("detector.")}


def test_image_encoder_is_the_trunk_without_the_neck() -> None:
    model, options = model_of(stage1_type="image_encoder")
    every = {name for name, _ in model.named_parameters()}
    found = set(of_stage1(model, options))
    assert found == {name for name in every if in_trunk(name)}
    assert "sam.image_encoder.pos_embed" in found and not any("neck" in name for name in found)


def test_all_backbones_are_both() -> None:
    model, options = model_of()
    parts = [
        set(of_stage1(model, CellSamOptions(stage1_type=kind)))
        for kind in ("cellfinder", "image_encoder")
    ]
    assert set(of_stage1(model, options)) == parts[0] | parts[1]


def test_head_only_is_scores_boxes_and_anchors() -> None:
    model, options = model_of(stage1_type="head_only")
    found = of_stage1(model, options)
    layers = len(model.detector.decoder)
    assert {"detector.anchors", "detector.side"} <= set(found)
    rest = set(found) - {"detector.anchors", "detector.side"}
    assert rest and {name.split(".")[1] for name in rest} == {"decoder"}
    assert {name.split(".")[2] for name in rest} == {str(i) for i in range(layers)}
    assert {name.split(".")[3] for name in rest} == {"score", "box"}


def test_lora_learns_updates_of_the_trunk_and_leaves_plain_names() -> None:
    model, options = model_of(stage1_type="image_encoder", lora_rank=2)
    before = dict(model.state_dict())
    adapt(model, options, 0)
    found = of_stage1(model, options)
    depth = model.architecture.depth
    assert len(found) == 2 * depth and all(".attn.qkv.lora_" in name for name in found)
    with pytest.raises(ConfigError, match="already"):
        adapt(model, options, 0)
    merged = {merged_name(name) for name in found}
    assert merged == {f"sam.image_encoder.blocks.{i}.attn.qkv.weight" for i in range(depth)}
    merge_lora(model)
    after = model.state_dict()
    assert not has_lora(model) and list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in after), "updates start as zero"


def test_the_neck_alone() -> None:
    model, options = model_of(stage2_type="neck")
    every = {name for name, _ in model.named_parameters()}
    assert set(of_stage2(model, options)) == {name for name in every if name.startswith(_NECK)}


def test_neck_and_decoder_is_what_answers_boxes() -> None:
    model, options = model_of(stage2_type="neck_and_decoder")
    found = set(of_stage2(model, options))
    assert not any(name.startswith("detector.") or in_trunk(name) for name in found)
    prompts = {name for name in found if name.startswith("sam.prompt_encoder.")}
    assert {name.split(".")[2] for name in prompts} == {"point_embeddings", "mask_downscaling"}
    model.draws_boxes = False
    others = set(of_stage2(model, options))
    assert {n for n in others ^ found if "mask_downscaling" not in n} == {
        "sam.prompt_encoder.no_mask_embed.weight"
    }, "without drawings, what stands for none"
    assert any("iou_prediction_head" in name for name in found)
    without = CellSamOptions(stage2_type="neck_and_decoder", iou_loss_weight=0)
    assert not any("iou_prediction_head" in name for name in of_stage2(model, without))


def gradients(learner: Any, steps: int) -> Iterator[tuple[str, bool]]:
    """Which parameters ever have a gradient that is not zero; the first step may leave some out,
    because updates start as zero."""
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    reached = dict.fromkeys((name for name, _ in learner.named_parameters()), False)
    learner.train()
    for _ in range(steps):
        optimiser.zero_grad()
        learner.training_step(batch())["loss"].backward()
        for name, parameter in learner.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            reached[name] |= bool(parameter.grad.any())
        optimiser.step()
    yield from reached.items()


@pytest.mark.parametrize(
    "changes",
    [
        {"stage1_type": "cellfinder"},
        {"stage1_type": "cellfinder", "auxiliary_loss": False},
        {"stage1_type": "image_encoder"},
        {"stage1_type": "all_backbones", "lora_rank": 2},
        {"stage1_type": "head_only"},
        {"stage1_type": "head_only", "auxiliary_loss": False},
    ],
)
def test_every_parameter_of_stage_1_gets_a_gradient(changes: dict[str, Any]) -> None:
    model, options = model_of(**changes)
    adapt(model, options, 0)
    for layer in model.detector.decoder:  # as one that has been trained: new ones start as zero
        torch.nn.init.normal_(layer.score.weight)
        torch.nn.init.normal_(layer.box[-1].weight, std=0.1)
    names = of_stage1(model, options)
    learner = DetectionLearner(model, names, options, model.frame((SIDE, SIDE), SIDE))
    assert [name for name, reached in gradients(learner, 2) if not reached] == []
    frozen = [p for name, p in model.named_parameters() if name not in names]
    assert all(not p.requires_grad and p.grad is None for p in frozen)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stage2_type": "neck_and_decoder"},
        {"stage2_type": "neck_and_decoder", "iou_loss_weight": 0},
    ],
)
def test_every_parameter_of_stage_2_gets_a_gradient(changes: dict[str, Any]) -> None:
    model, options = model_of(**changes)
    names = of_stage2(model, options)
    learner = MaskLearner(model, names, options, model.frame((SIDE, SIDE), SIDE))
    assert [name for name, reached in gradients(learner, 2) if not reached] == []
    frozen = [p for name, p in model.named_parameters() if name not in names]
    assert all(not p.requires_grad and p.grad is None for p in frozen)

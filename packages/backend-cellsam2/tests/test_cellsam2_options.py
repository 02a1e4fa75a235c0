"""Options of training: what is refused, presets, and the names of CellSAM2."""

from __future__ import annotations

from typing import Any

import pytest

from cellseg.errors import ConfigError
from cellseg.options import parse, unaliased
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.workflows.presets import with_preset
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cellsam2.options import WEIGHTS, CellSam2Options


def spec() -> TrainerSpec[Any]:
    return Plugins().get(TrainerSpec, "cellsam2")


def test_the_defaults_are_those_of_cellsam2() -> None:
    options = CellSam2Options()
    assert (options.num_frames, options.max_num_objects, options.max_num_bkgd_objects) == (
        3,
        40,
        10,
    )
    assert (options.resolution, options.batch_size, options.correction_points) == (512, 1, 5)
    assert options.use_lora
    assert (options.lora_rank, options.lora_alpha, options.lora_dropout) == (32, 8, 0.1)
    assert (options.lora_lr, options.base_lr, options.vision_lr) == (1e-3, 5e-6, 3e-6)
    assert (options.weight_decay, options.clip, options.layer_decay) == (0.1, 0.1, 0.9)
    assert [getattr(options, name) for name in WEIGHTS] == [20, 1, 1, 1, 1, 1]
    assert "learning_rate" not in CellSam2Options.model_fields, "it would do nothing"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"base_lr": 1e-4}, "--base-lr: only with --no-use-lora"),
        ({"layer_decay": 0.5}, "--layer-decay: only with --no-use-lora"),
        ({"use_lora": False, "lora_rank": 4}, "--lora-rank: only with --use-lora"),
        ({"use_lora": False, "freeze_encoder": True, "vision_lr": 1e-4}, "--vision-lr"),
        ({"num_frames": 1, "division_share": 0.5}, "--division-share: --num-frames 1"),
        ({"correction_points": 0, "truth_click_probability": 0.5}, "--truth-click-probability"),
        ({"box_probability": 0, "box_noise": 0.2}, "--box-noise"),
        ({"illumination_probability": 0, "illumination_range": 0.2}, "--illumination-range"),
        ({"strategy": "fsdp"}, "--strategy fsdp"),
        ({"augment_slices": "each"}, "--augment-slices"),
        ({"swap_depth_probability": 0.5}, "--swap-depth-probability"),
        (dict.fromkeys(WEIGHTS, 0), "nothing would be learned"),
        (
            {**dict.fromkeys(WEIGHTS, 0), "division_weight": 1, "num_frames": 1},
            "nothing would be learned",
        ),
        ({"resolution": 100}, "--resolution"),
    ],
)
def test_options_that_would_be_ignored_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(CellSam2Options, given)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "preset", ["scratch", "segmentation", "full", "cellsam2-gpu", "cellsam2-cpu"]
)
def test_presets_are_valid(preset: str) -> None:
    values = dict(spec().presets[preset])
    own = {name: values.pop(name) for name in list(values) if name in CellSam2Options.model_fields}
    options = parse(CellSam2Options, own)
    parse(TrainSettings, values)
    assert own and options.model_dump(include=set(own)) == own


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"base_lr", "head_lr", "vision_lr", "layer_decay"}),
        ({"freeze_encoder": True}, {"base_lr", "head_lr"}),
        ({"use_lora": True}, set()),
    ],
)
def test_the_rates_of_a_preset_give_way(given: dict[str, Any], kept: set[str]) -> None:
    stored = {n: v for n, v in spec().presets["scratch"].items() if n != "threads"}
    found = CellSam2Options.over(stored, given)
    rates = {"base_lr", "head_lr", "vision_lr", "layer_decay"}
    assert found.keys() & rates == kept and stored.keys() - rates <= found.keys()
    parse(CellSam2Options, found)
    with pytest.raises(ConfigError, match="--vision-lr"):
        typed = {"use_lora": False, "freeze_encoder": True, "vision_lr": 1e-4}
        parse(CellSam2Options, CellSam2Options.over(stored, typed))


def test_a_preset_is_taken_with_a_frozen_encoder() -> None:
    asked = with_preset(Plugins(), "cellsam2", "scratch", freeze_encoder=True)
    options = parse(CellSam2Options, asked["options"])
    assert options.freeze_encoder and not options.use_lora and options.base_lr == 2e-3


def test_names_that_users_of_cellsam2_know() -> None:
    given = {"num_epochs": 5, "loss_mask": 10.0, "num_frames": 4}
    found = unaliased(given, spec().aliases)
    assert found == {"epochs": 5, "mask_weight": 10.0, "num_frames": 4}
    known = {*CellSam2Options.model_fields, *TrainSettings.model_fields}
    assert set(spec().aliases.values()) <= known

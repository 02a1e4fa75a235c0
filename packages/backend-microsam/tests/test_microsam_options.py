"""Options of training: none does nothing, and the presets are sensible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cellseg.errors import ConfigError
from cellseg.options import parse
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.presets import PRESETS


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "tiny", "checkpoint": "a.pt"}, ("--checkpoint", "--model-type tiny")),
        ({"n_objects": 3}, ("--n-objects", "--mode instances")),
        ({"mode": "decoder", "n_sub_iterations": 3}, ("--n-sub-iterations", "--mode decoder")),
        ({"mode": "decoder", "mask_probability": 0.1}, ("--mask-probability",)),
        ({"box_distortion": 0.1}, ("--box-distortion",)),
        ({"mode": "full", "n_sub_iterations": 1, "mask_probability": 1.0}, ("--mask-probability",)),
        ({"mode": "decoder", "freeze": ("mask_decoder",)}, ("--freeze", "--mode decoder")),
        ({"mode": "decoder", "recompute": True}, ("--recompute", "--mode decoder")),
        ({"mode": "decoder", "peft": "lora"}, ("--peft", "--mode decoder")),
        ({"freeze": ("image_encoder",)}, ("--freeze image_encoder", "--mode decoder")),
        ({"freeze": ("prompt_encoder",)}, ("--freeze", "--mode instances")),
        (
            {
                "mode": "interactive",
                "freeze": ("image_encoder", "prompt_encoder", "mask_decoder"),
            },
            ("--freeze leaves nothing",),
        ),
        ({"mode": "interactive", "calibrate": False}, ("--calibrate", "--mode interactive")),
        (
            {"mode": "full", "freeze": ("image_encoder",), "peft": "lora"},
            ("--freeze image_encoder", "--peft"),
        ),
        ({"lora_rank": 8}, ("--lora-rank", "--peft")),
        ({"peft": "bias", "lora_rank": 8}, ("--lora-rank", "--peft bias")),
        ({"peft": "fact", "lora_alpha": 2.0}, ("--lora-alpha", "--peft fact")),
        ({"peft_blocks": (1,)}, ("--peft-blocks", "--peft")),
        ({"peft": "last-blocks"}, ("--peft last-blocks", "--peft-blocks")),
        (
            {"peft": "adaptformer", "export_path": "a.pt"},
            ("--export-path", "--peft adaptformer"),
        ),
        ({"cache_embeddings": False}, ("--cache-embeddings", "--mode decoder")),
        ({"copies": 2}, ("--copies", "--mode decoder")),
        ({"mode": "decoder", "cache_embeddings": False, "copies": 2}, ("--copies",)),
        ({"mode": "decoder", "balance_classes": False}, ("--balance-classes", "grid")),
        ({"mode": "decoder", "cache_rate": 0.5}, ("--cache-rate", "grid")),
        (
            {"mode": "decoder", "copies": 1, "flip_probability": 0.1},
            ("--flip-probability", "--copies 1"),
        ),
        (
            {"use_min_instance_sampler": False, "min_instances": 3},
            ("--min-instances", "--use-min-instance-sampler"),
        ),
        ({"n_samples": 10, "patches_per_image": 3}, ("--patches-per-image", "--n-samples")),
        ({"checkpoint_name": "a"}, ("--checkpoint-name", "--export-path")),
        ({"checkpoint_name": "../a", "export_path": "b"}, ("checkpoint-name",)),
        ({"patch_depth": 2}, ("--patch-depth",)),
        ({"augment_slices": "each"}, ("--augment-slices",)),
        ({"swap_depth_probability": 0.5}, ("--swap-depth-probability",)),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    values: dict[str, Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as error:
        parse(MicrosamOptions, values)
    for flag in named:
        assert flag in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "full", "n_objects": 3, "freeze": ("prompt_encoder", "mask_decoder")},
        {"mode": "interactive", "freeze": ("image_encoder",)},
        {"mode": "decoder", "copies": 2, "flip_probability": 0.1},
        {"mode": "decoder", "copies": 1},
        {"mode": "decoder", "cache_embeddings": False, "cache_rate": 0.5},
        {"peft": "lora", "lora_rank": 8, "lora_alpha": 2.0, "peft_blocks": (10, 11)},
        {"use_min_instance_sampler": False, "min_instance_size": 5, "patch_size": 2048},
        {"export_path": "folder", "checkpoint_name": "mine"},
    ],
)
def test_options_that_act_are_taken(values: dict[str, Any]) -> None:
    parse(MicrosamOptions, values)


def test_paths_mean_the_same_from_any_directory() -> None:
    options = MicrosamOptions(checkpoint=Path("a.pt"), export_path=Path("b"))
    assert options.checkpoint == Path.cwd() / "a.pt" and options.export_path == Path.cwd() / "b"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    own = {n: v for n, v in PRESETS[name].items() if n in MicrosamOptions.model_fields}
    options = parse(MicrosamOptions, own)
    if name != "cpu":
        assert options.mode in ("full", "instances")


def test_a_patch_may_be_given_by_both_its_sides() -> None:
    assert parse(MicrosamOptions, {"patch_size": [64, 64]}).patch_size == 64
    for sides in ([64, 32], [1, 64, 64], []):
        with pytest.raises(ConfigError, match=r"--patch-size: .*squares"):
            parse(MicrosamOptions, {"patch_size": sides})

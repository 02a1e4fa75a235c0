"""Options of training: what is refused, presets, how epochs are shared, and the older names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cellseg.augment import Augmentation
from cellseg.errors import ConfigError
from cellseg.options import parse, unaliased
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.workflows.presets import with_preset
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cellsam.options import BOX_WEIGHTS, COSTS, MASK_WEIGHTS, CellSamOptions


def spec() -> TrainerSpec[Any]:
    return Plugins().get(TrainerSpec, "cellsam")


def test_the_defaults_are_those_of_the_older_trainer() -> None:
    options = CellSamOptions()
    assert [getattr(options, name) for name in BOX_WEIGHTS] == [1, 5, 2]
    assert [getattr(options, name) for name in COSTS] == [1, 5, 2]
    assert [getattr(options, name) for name in MASK_WEIGHTS] == [1, 1, 1]
    assert (options.focal_gamma, options.focal_alpha) == (2, 0.25)
    assert (options.stage1_learning_rate, options.backbone_learning_rate) == (1e-4, 1e-5)
    assert (options.hard_share, options.hard_weight, options.batch_size) == (0.1, 2, 2)
    assert "learning_rate" not in CellSamOptions.model_fields, "it would do nothing"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"stage": "1", "focal_gamma": 3.0}, "--focal-gamma: --stage 1 does not train masks"),
        ({"stage": "1", "stage2_epochs": 3}, "--stage2-epochs: --stage 1"),
        ({"stage": "2", "queries": 9}, "--queries: --stage 2"),
        ({"stage": "2", "lora_rank": 4}, "--lora-rank: --stage 2"),
        ({"stage": "2", "recompute": True}, "--recompute: --stage 2"),
        ({"stage2_epochs": 0, "focal_gamma": 3.0}, "--focal-gamma: --stage2-epochs 0"),
        ({"stage1_epochs": 0, "queries": 9}, "--queries: --stage1-epochs 0"),
        ({"stage1_type": "cellfinder", "lora_rank": 4}, "--lora-rank: --stage1-type cellfinder"),
        ({"stage1_type": "head_only", "backbone_learning_rate": 1.0}, "--backbone-learning-rate"),
        ({"stage1_type": "image_encoder", "stage1_learning_rate": 1.0}, "--stage1-learning-rate"),
        ({"lora_alpha": 4.0}, "--lora-alpha: only with --lora-rank"),
        ({"iou_loss_weight": 2.0}, "--iou-loss-weight: only with --stage2-type"),
        ({"focal_loss_weight": 0, "focal_gamma": 3.0}, "--focal-gamma: --focal-loss-weight is 0"),
        ({"ce_loss_weight": 0, "detection_focal_alpha": 0.5}, "--detection-focal-alpha"),
        ({"hard_share": 0.2}, "--hard-share: only with --online-hard-negative-mining"),
        ({"online_hard_negative_mining_weighted": True, "hard_weight": 3.0}, "--hard-weight"),
        (
            {"online_hard_negative_mining": True, "online_hard_negative_mining_weighted": True},
            "exclude each other",
        ),
        (dict.fromkeys(BOX_WEIGHTS, 0), "all weights of the loss of stage 1 are 0"),
        (dict.fromkeys(MASK_WEIGHTS, 0), "all weights of the loss of stage 2 are 0"),
        (dict.fromkeys(COSTS, 0), "are all 0"),
        ({"augmentation": "simple", "blur_probability": 0.5}, "--blur-probability: only with"),
        ({"early_stopping": 5}, "--stage1-patience"),
        ({"strategy": "fsdp"}, "--strategy fsdp"),
        ({"patch_depth": 2}, "--patch-depth"),
        ({"augment_slices": "each"}, "--augment-slices"),
        ({"swap_depth_probability": 0.5}, "--swap-depth-probability"),
        ({"model_type": "tiny", "checkpoint": "x.pt"}, "--checkpoint does nothing"),
    ],
)
def test_options_that_would_be_ignored_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(CellSamOptions, given)
    assert named in str(error.value)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_stage_alone_needs_no_weights_of_the_other(stage: str) -> None:
    with pytest.raises(ConfigError, match="--stage"):
        parse(CellSamOptions, {"stage": stage, **dict.fromkeys((*BOX_WEIGHTS, *MASK_WEIGHTS), 0)})
    assert CellSamOptions(stage=stage).stage == stage


@pytest.mark.parametrize(
    ("given", "epochs", "shares"),
    [
        ({}, 10, (5, 5)),
        ({}, 5, (3, 2)),
        ({}, 0, (0, 0)),
        ({"stage1_epochs": 2}, 10, (2, 8)),
        ({"stage2_epochs": 2}, 10, (8, 2)),
        ({"stage1_epochs": 10}, 10, (10, 0)),
        ({"stage1_epochs": 2, "stage2_epochs": 3}, 5, (2, 3)),
        ({"stage1_epochs": 2, "stage2_epochs": 3}, 0, (0, 0)),
        ({"stage": "1"}, 5, (5, 0)),
        ({"stage": "2"}, 5, (0, 5)),
    ],
)
def test_epochs_are_shared(given: dict[str, Any], epochs: int, shares: tuple[int, int]) -> None:
    assert CellSamOptions(**given).shares(epochs) == shares


@pytest.mark.parametrize("name", ["stage1_epochs", "stage2_epochs"])
def test_more_epochs_than_there_are_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} 7: there are 5 --epochs"):
        CellSamOptions(**{name: 7}).shares(5)


def test_both_stages_say_how_many_epochs_there_are() -> None:
    asked = spec().epochs
    assert asked is not None
    assert asked(CellSamOptions()) is None
    assert asked(CellSamOptions(stage1_epochs=4)) is None
    assert asked(CellSamOptions(stage1_epochs=4, stage2_epochs=3)) == 7
    assert asked(CellSamOptions(stage="1", stage1_epochs=4)) == 4
    assert asked(CellSamOptions(stage="2", stage2_epochs=3)) == 3


def test_kinds_of_augmentation_take_the_place_of_the_single_options() -> None:
    custom = CellSamOptions(blur_probability=0.7)
    assert custom.augmenting.blur_probability == 0.7
    none = CellSamOptions(augmentation="none").augmenting
    rng = np.random.default_rng(0)
    image, labels = (
        np.random.default_rng(1).random((1, 1, 32, 32), np.float32),
        np.zeros((1, 32, 32), np.uint32),
    )
    labels[0, 3:9, 4:20] = 1
    for _ in range(20):
        same, where = Augmentation(none)(image, labels, rng)
        assert np.array_equal(same, image) and np.array_equal(where, labels)
    simple = Augmentation(CellSamOptions(augmentation="simple").augmenting)
    turned = [simple(image, labels, rng)[0] for _ in range(20)]
    assert all(np.array_equal(np.sort(t, axis=None), np.sort(image, axis=None)) for t in turned)
    assert any(not np.array_equal(t, image) for t in turned)
    complex_ = CellSamOptions(augmentation="complex").augmenting
    assert (complex_.affine_scale, complex_.affine_rotation) == (1.15, 0)
    assert complex_.elastic_probability > 0 and complex_.brightness_probability > 0


@pytest.mark.parametrize("preset", ["scratch", "gpu-16gb", "lora", "paper"])
def test_presets_are_valid(preset: str) -> None:
    values = dict(spec().presets[preset])
    own = {name: values.pop(name) for name in list(values) if name in CellSamOptions.model_fields}
    options = parse(CellSamOptions, own)
    parse(TrainSettings, values)
    assert own and options.model_dump(include=set(own)) == own


STAGE2_OF_SCRATCH = {"stage2_type", "stage2_learning_rate", "boundary_loss_weight"}


@pytest.mark.parametrize(
    ("preset", "given", "gone"),
    [
        ("scratch", {"stage": "1"}, STAGE2_OF_SCRATCH),
        ("scratch", {"stage": "2"}, {"stage1_learning_rate", "backbone_learning_rate"}),
        ("scratch", {"stage1_type": "cellfinder"}, {"backbone_learning_rate"}),
        ("scratch", {"checkpoint": Path("x.pt")}, {"model_type"}),
        ("lora", {"stage1_type": "head_only"}, {"lora_rank", "backbone_learning_rate"}),
        ("gpu-16gb", {"stage": "2"}, {"recompute"}),
        ("paper", {"stage1_epochs": 3, "stage2_epochs": 4}, {"epochs"}),
    ],
)
def test_a_preset_gives_way(preset: str, given: dict[str, Any], gone: set[str]) -> None:
    stored = dict(spec().presets[preset])
    found = CellSamOptions.over(stored, given)
    assert stored.keys() - found.keys() == gone
    asked = with_preset(Plugins(), "cellsam", preset, **given)
    parse(CellSamOptions, asked["options"])


def test_a_preset_does_not_hide_what_the_user_gets_wrong() -> None:
    stored = dict(spec().presets["lora"])
    with pytest.raises(ValidationError, match="--lora-alpha"):
        CellSamOptions(**CellSamOptions.over(stored, {"stage": "2", "lora_alpha": 3.0}))


def test_names_that_users_of_the_older_trainer_know() -> None:
    found = unaliased({"total_epochs_s1": 5, "total_epochs_s2": 6}, spec().aliases)
    assert found == {"stage1_epochs": 5, "stage2_epochs": 6}

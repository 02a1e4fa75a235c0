"""cellsam is a cellseg backend, in each of its stages."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

pytest.importorskip("torch")

from cellseg.testing import BackendTests
from cellseg.torch.memory_testing import MemoryTests

TINY: dict[str, Any] = {
    "model_type": "tiny",
    "patch_size": 64,
    "patches_per_image": 2,
    "batch_size": 2,
    "warmup_steps": 2,
    "threads": 1,
}
BOXES: dict[str, Any] = {"stage1_learning_rate": 5e-3, "backbone_learning_rate": 3e-3}
MASKS: dict[str, Any] = {
    "boxes_per_image": 8,
    "stage2_type": "neck_and_decoder",
    "stage2_learning_rate": 6e-3,
    "focal_alpha": 0.75,
    "dice_loss_weight": 5.0,
    "boundary_loss_weight": 0.0,
}
_TOO_LARGE = (
    "an image larger than a training patch is scaled down to fit into the square that the encoder"
    " sees, so what is found depends on the tile; that is why the bundle asks for tiles of a patch"
)


class TestBoth(BackendTests):
    """Boxes, then masks."""

    backend = "cellsam"
    train_options: ClassVar[dict[str, Any]] = {
        **TINY,
        **BOXES,
        **MASKS,
        "batch_size": 1,
        "patches_per_image": 3,
        "box_noise": 0.0,
        "average": 0.9,
        "decay_epochs": 0,
        "validate_every": 10,
        "save_top_k": 0,
        "augmentation": "simple",
    }
    epochs = 20
    expected_failures: ClassVar[dict[str, str]] = {"test_tiled_equals_untiled": _TOO_LARGE}


class _Training(BackendTests):
    """Without the tests that predict, which need a longer training."""

    backend = "cellsam"
    test_finds_bright_discs = None
    test_results_are_labels = None
    test_probabilities_come_when_asked_for = None
    test_loading_twice_predicts_the_same = None
    test_the_same_tile_gives_the_same_labels = None
    test_an_empty_tile_stays_empty = None
    test_a_tile_that_is_not_square_stays_aligned = None
    test_tiled_equals_untiled = None
    test_a_batch_equals_its_tiles = None
    test_features_lie_where_the_image_is = None
    test_the_plugin_imports_nothing_heavy = None
    test_options_are_flat_documented_and_optional = None
    test_presets_are_options = None
    test_other_processes_can_load_it = None
    test_identities_are_kept = None
    test_what_a_tracker_says_fits_together = None
    test_another_tracker_goes_on_from_a_state = None
    test_asking_for_the_state_changes_nothing = None
    test_trackers_do_not_mix = None
    test_an_empty_first_frame = None
    test_an_empty_movie = None
    test_memory_does_not_grow_with_frames = None


class TestDetector(_Training):
    """Stage 1 alone, of the detector on a trunk that stays as it is."""

    train_options: ClassVar[dict[str, Any]] = {
        **TINY,
        "patches_per_image": 4,  # some layers learn from the third step on, as others start as zero
        "stage": "1",
        "stage1_type": "cellfinder",
        "stage1_learning_rate": 5e-3,
    }


class TestLora(_Training):
    """Updates of the trunk are merged into plain weights."""

    train_options: ClassVar[dict[str, Any]] = {
        **TINY,
        **BOXES,
        "patches_per_image": 4,
        "stage": "1",
        "lora_rank": 2,
    }


class TestNeck(_Training):
    """Stage 2 alone, of the neck, through a decoder that stays as it is."""

    train_options: ClassVar[dict[str, Any]] = {
        **TINY,
        "stage": "2",
        "stage2_learning_rate": 5e-3,
        "boxes_per_image": 8,
        "online_hard_negative_mining": True,
    }


class TestDecoder(_Training):
    """Stage 2 alone, of all that answers boxes."""

    train_options: ClassVar[dict[str, Any]] = {**TINY, **MASKS, "stage": "2"}


class TestMemory(MemoryTests):
    backend = "cellsam"
    train_options: ClassVar[dict[str, Any]] = {**TINY, **BOXES, **MASKS, "box_noise": 0.0}

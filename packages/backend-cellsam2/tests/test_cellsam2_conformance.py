"""cellsam2 is a cellseg backend: it segments, and tracks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch")

import torch

from cellseg.testing import BackendTests
from cellseg.torch.memory_testing import MemoryTests

TINY: dict[str, Any] = {
    "model_type": "nano",
    "resolution": 64,
    "num_frames": 2,
    "clips_per_epoch": 8,
    "val_clips": 1,
    "batch_size": 2,
    "max_num_objects": 4,
    "max_num_bkgd_objects": 1,
    "validate_every": 24,
    "save_top_k": 0,
    "warmup_steps": 5,
    "decay_epochs": 0,
    "threads": 1,
    "affine_probability": 0.0,
    "elastic_probability": 0.0,
}
FULL: dict[str, Any] = {
    **TINY,
    "use_lora": False,
    "base_lr": 2e-3,
    "vision_lr": 2e-3,
    "head_lr": 2e-3,
    "layer_decay": 1.0,
    "weight_decay": 0.01,
    "dice_weight": 5.0,
    "clip": 1.0,
    "correction_points": 0,
}
_TOO_LARGE = (
    "an image larger than a training clip is scaled down to fit into the square that the encoder"
    " sees, so what is found depends on the tile; that is why the bundle asks for tiles of a clip"
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestTracking(BackendTests):
    """All of a small network, from random weights."""

    backend = "cellsam2"
    train_options: ClassVar[dict[str, Any]] = FULL
    epochs = 24
    expected_failures: ClassVar[dict[str, str]] = {
        "test_tiled_equals_untiled": _TOO_LARGE,
        "test_training_changes_what_it_declares": "no cell divides in the movies of these tests, so"
        " the masks of daughters do not learn; test_cellsam2_training looks at those that do",
    }


class TestLora(BackendTests):
    """Updates that are merged into the weights; on random ones they find nothing."""

    backend = "cellsam2"
    train_options: ClassVar[dict[str, Any]] = {
        **TINY,
        "lora_rank": 4,
        "correction_points": 1,
        "clips_per_epoch": 2,
    }
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


class TestMemory(MemoryTests):
    backend = "cellsam2"
    train_options: ClassVar[dict[str, Any]] = FULL

"""microsam is a cellseg backend, in each of its modes."""

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
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "threads": 1,
}
PROMPTED: dict[str, Any] = {**TINY, "n_objects": 3, "n_sub_iterations": 2}
_TOO_LARGE = (
    "an image larger than a training patch is scaled down to fit into the square that the encoder"
    " sees, so what is found depends on the tile; that is why the bundle asks for tiles of a patch"
)


class TestInstances(BackendTests):
    backend = "microsam"
    train_options: ClassVar[dict[str, Any]] = {**TINY, "patches_per_image": 4}
    epochs = 24
    expected_failures: ClassVar[dict[str, str]] = {"test_tiled_equals_untiled": _TOO_LARGE}


class _Training(BackendTests):
    """Without the tests that predict, which need a longer training."""

    backend = "microsam"
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


class _Prompted(_Training):
    # test_microsam_training looks at which of them do
    expected_failures: ClassVar[dict[str, str]] = {
        "test_training_changes_what_it_declares": "of three answers to a point only the best one"
        " learns, and of random ones some is never the best in a few steps"
    }


class TestFull(_Prompted):
    train_options: ClassVar[dict[str, Any]] = {**PROMPTED, "mode": "full"}


class TestInteractive(_Prompted):
    train_options: ClassVar[dict[str, Any]] = {**PROMPTED, "mode": "interactive"}


class TestDecoder(_Training):
    """On embeddings that are made once."""

    train_options: ClassVar[dict[str, Any]] = {**TINY, "mode": "decoder"}


class TestLora(_Training):
    """Its updates are merged into plain weights."""

    train_options: ClassVar[dict[str, Any]] = {**TINY, "peft": "lora"}


class TestMemoryInstances(MemoryTests):
    """The Dice coefficient is of a batch, and the decoder normalises over it."""

    backend = "microsam"
    difference = 0.8
    train_options: ClassVar[dict[str, Any]] = TINY


class TestMemoryPrompted(MemoryTests):
    """Each part draws its own prompts."""

    backend = "microsam"
    difference = 0.8
    train_options: ClassVar[dict[str, Any]] = {**PROMPTED, "mode": "interactive"}

"""fewshot is a cellseg backend, with the encoder that needs no weights and with one that does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch")

from cellseg.testing import BackendTests


class TestFilters(BackendTests):
    backend = "fewshot"


class TestCrop(BackendTests):
    """Each candidate is encoded by itself."""

    backend = "fewshot"
    train_options: ClassVar[dict[str, Any]] = {"mode": "crop"}
    predict_options: ClassVar[dict[str, Any]] = {"points_per_side": 16}
    test_training_reports_and_leaves_a_model = None
    test_training_changes_what_it_declares = None
    test_interrupt_saves_the_state = None
    test_the_plugin_imports_nothing_heavy = None
    test_options_are_flat_documented_and_optional = None


class TestSam(BackendTests):
    """Random weights find nothing in particular, but do all that others do."""

    backend = "fewshot"
    predict_options: ClassVar[dict[str, Any]] = {
        "points_per_side": 4,
        "similarity_threshold": 0.0,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "min_mask_area": 0,
        "max_mask_area": 0,
    }
    test_finds_bright_discs = None
    test_tiled_equals_untiled = None  # a plane is scaled to what the encoder sees at once
    test_a_tile_that_is_not_square_stays_aligned = None
    test_the_plugin_imports_nothing_heavy = None
    test_options_are_flat_documented_and_optional = None

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _weights(cls, tiny_sam_checkpoint: Path) -> Iterator[None]:
        cls.train_options = {"checkpoint": tiny_sam_checkpoint}
        yield
        cls.train_options = {}

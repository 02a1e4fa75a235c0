"""An option that would do nothing is an error that names it."""

from __future__ import annotations

from typing import Any

import pytest

from cellseg.errors import ConfigError
from cellseg.options import parse
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.predict_options import FewshotPredictOptions


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"target_occupancy": 0.2}, "--target-occupancy: only with --mode crop"),
        ({"mode": "crop", "prototypes": 3}, "--prototypes"),
        ({"mode": "crop", "background": False}, "--background"),
        ({"refine": True}, "--refine"),
        ({"encoder": "filters", "refine": True}, "--refine"),
        ({"refine_rank": 8}, "--refine-rank: only with --refine"),
        ({"encoder": "vit_b_lm", "refine_steps": 8}, "--refine-steps"),
        ({"precision": "bf16"}, "--precision"),
        ({"encoder": "filters", "checkpoint": "a.pth"}, "--checkpoint"),
    ],
)
def test_idle_options_of_learning(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(FewshotOptions, given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mode": "crop", "target_occupancy": 0.4},
        {"encoder": "sam_vit_h_4b8939", "refine": True, "refine_rank": 2, "precision": "bf16"},
        {"checkpoint": "a.pth", "refine": True},
        {"prototypes": 0, "background": False},
    ],
)
def test_options_that_act(given: dict[str, Any]) -> None:
    options = parse(FewshotOptions, given)
    assert options.checkpoint is None or options.checkpoint.is_absolute()
    assert parse(FewshotOptions, options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"min_mask_area": 50, "max_mask_area": 40}, "--min-mask-area 50"),
        ({"points_per_side": 0, "similarity_peaks": False, "blobs": False}, "nothing is left"),
        ({"points_per_side": 257}, "--points-per-side"),
    ],
)
def test_options_of_finding_that_exclude_each_other(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(FewshotPredictOptions, given)


def test_no_limit_of_the_area_is_no_contradiction() -> None:
    assert parse(FewshotPredictOptions, {"min_mask_area": 50, "max_mask_area": 0}).blobs is None

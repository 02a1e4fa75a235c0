"""Options of predicting with micro-SAM; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from cellseg.options import Options, flag
from cellseg.torch.sam.model_types import ModelType

Mode: TypeAlias = Literal["ais", "apg", "amg", "prompts"]

USED: Mapping[str, tuple[str, ...]] = {
    "ais": (
        "foreground_threshold",
        "center_distance_threshold",
        "boundary_distance_threshold",
        "foreground_smoothing",
        "distance_smoothing",
        "min_size",
    ),
    "apg": (
        "foreground_threshold",
        "center_distance_threshold",
        "boundary_distance_threshold",
        "foreground_smoothing",
        "distance_smoothing",
        "min_size",
        "nms_threshold",
        "multimask",
        "refine_with_boxes",
        "prompts_per_batch",
    ),
    "amg": (
        "points_per_side",
        "pred_iou_thresh",
        "stability_score_thresh",
        "stability_score_offset",
        "nms_threshold",
        "min_size",
        "prompts_per_batch",
    ),
    "prompts": ("multimask", "prompts_per_batch"),
}
"""The options that each way to segment uses."""


_OF_MAPS = (
    "foreground_threshold",
    "center_distance_threshold",
    "boundary_distance_threshold",
    "foreground_smoothing",
    "distance_smoothing",
)


class MicrosamPredictOptions(Options):
    """What ``cellseg predict --backend microsam`` takes."""

    panels: ClassVar = {
        "Model": ("model_type", "checkpoint", "precision", "compile"),
        "Segmentation": ("segmentation_mode", "min_size", "nms_threshold", "prompts_per_batch"),
        "From the decoder (ais, apg)": (
            "foreground_threshold",
            "center_distance_threshold",
            "boundary_distance_threshold",
            "foreground_smoothing",
            "distance_smoothing",
            "multimask",
            "refine_with_boxes",
        ),
        "From a grid of points (amg)": (
            "points_per_side",
            "pred_iou_thresh",
            "stability_score_thresh",
            "stability_score_offset",
        ),
    }

    model_type: ModelType | None = None
    """Published weights to segment with where no --model is given; vit_b_lm if not given. With
    --checkpoint, the model whose thresholds suit it."""
    checkpoint: Path | None = None
    """A file with weights instead of a download, where no --model is given."""
    precision: Literal["32-true", "bf16", "fp16"] = "32-true"
    """Arithmetic of the image encoder; fp16 needs a GPU."""
    compile: bool = False
    """Compile the image encoder with torch.compile; pays for many tiles of one size."""
    segmentation_mode: Literal["auto", "ais", "apg", "amg", "prompts"] = "auto"
    """How to find objects: ais, a watershed of what the decoder says; apg, prompts from the decoder
    answered by Segment Anything; amg, a grid of points; prompts, those in the file --prompts. auto
    takes prompts where they are given, else ais where the model has a decoder, else amg."""
    min_size: int | None = Field(None, ge=0)
    """Objects with fewer pixels are left out; by default what suits the model."""
    nms_threshold: float | None = Field(None, gt=0, le=1)
    """Of two masks that overlap by more than this IoU, the one with the better score stays; by
    default 0.9 for apg, and 0.7 (of their boxes) for amg."""
    prompts_per_batch: int | None = Field(None, ge=1)
    """Prompts that are answered at once; by default 64 on a GPU, and 4 on a CPU."""
    foreground_threshold: float = Field(0.5, ge=0, le=1)
    """Pixels more probable than this are part of objects."""
    center_distance_threshold: float | None = Field(None, ge=0, le=1)
    """Pixels nearer to the centre of their object than this are seeds; by default what suits the
    model."""
    boundary_distance_threshold: float | None = Field(None, ge=0, le=1)
    """Pixels deeper in their object than this are seeds; by default what suits the model."""
    foreground_smoothing: float | None = Field(None, ge=0, le=50)
    """Width of the Gaussian that smooths the foreground, in pixels; by default 1 for ais, and 0
    for apg."""
    distance_smoothing: float | None = Field(None, ge=0, le=50)
    """Width of the Gaussian that smooths both distances, in pixels; by default what suits the
    model for ais, and 0 for apg."""
    multimask: bool = False
    """Take the best of three answers to each point, where an object and its parts differ."""
    refine_with_boxes: bool = False
    """Prompt a second time, with the box around each answer."""
    points_per_side: int = Field(32, ge=1, le=256)
    """The grid has this many points along each side of a tile."""
    pred_iou_thresh: float | None = Field(None, ge=0, le=1)
    """Answers whose quality the model itself estimates below this are left out; by default what
    suits the model."""
    stability_score_thresh: float | None = Field(None, ge=0, le=1)
    """Answers that change more than this with the threshold of the mask are left out; by default
    what suits the model."""
    stability_score_offset: float = Field(1.0, gt=0)
    """How far that threshold is moved either way."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """What a model brings along suits its own way to segment; another has its own defaults.

        What is known of the decoder's maps serves both ways that begin with them.
        """
        before, mode = stored.get("segmentation_mode"), given.get("segmentation_mode")
        if mode is not None and mode != before:
            shared = _OF_MAPS if {before, mode} == {"ais", "apg"} else ()
            stored = {name: stored[name] for name in shared if name in stored}
        return {**stored, **given}

    @model_validator(mode="after")
    def _options_act(self) -> MicrosamPredictOptions:
        if self.segmentation_mode != "auto":
            idle = self.unused(self.segmentation_mode)
            if idle:
                raise ValueError(
                    f"{' and '.join(idle)}: nothing to do with --segmentation-mode"
                    f" {self.segmentation_mode}"
                )
        return self

    def unused(self, *modes: str) -> list[str]:
        """Flags that were given and that none of the ways to segment uses; without any way, those
        of all options that say how to segment."""
        used = {name for mode in modes for name in ("segmentation_mode", *USED[mode])}
        used_by_some = (name for names in USED.values() for name in names)
        every = dict.fromkeys(("segmentation_mode", *used_by_some))
        fields = type(self).model_fields
        return [
            flag(name)
            for name in every
            if name not in used and getattr(self, name) != fields[name].default
        ]

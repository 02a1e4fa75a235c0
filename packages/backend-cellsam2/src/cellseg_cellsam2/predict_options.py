"""Options of predicting with cellsam2; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.options import Options, flag


class CellSam2PredictOptions(Options):
    """What ``cellseg predict --backend cellsam2`` takes."""

    panels: ClassVar = {
        "Computing": ("precision", "objects_per_batch"),
        "Objects": ("presence_threshold", "pred_iou", "box_nms", "min_size", "max_hole"),
        "New objects": ("use_heatmap", "heat_threshold", "points_per_side"),
        "Tracks": ("division_threshold", "split_by_heatmap", "max_gap"),
    }

    precision: Literal["32-true", "bf16", "fp16"] = "32-true"
    """Arithmetic of the network; fp16 needs a GPU."""
    objects_per_batch: int | None = Field(None, ge=1)
    """Objects that are followed or prompted at once; what is found does not depend on it. By
    default 64 on a GPU, and 16 on a CPU."""
    presence_threshold: float = Field(0.5, gt=0, lt=1)
    """Objects that are less probably in the frame than this are not shown."""
    pred_iou: float = Field(0.7, ge=0, le=1)
    """Masks whose IoU with the truth the model itself estimates below this are left out."""
    box_nms: float = Field(0.5, ge=0, le=1)
    """Of two masks that overlap by more than this IoU, the one with the better score stays. Masks
    are compared, not their boxes: those of long cells side by side overlap, though the cells do
    not."""
    min_size: int = Field(30, ge=0)
    """Objects of which fewer pixels are visible are left out."""
    max_hole: int = Field(30, ge=0)
    """Holes in an object with at most so many pixels are filled."""
    use_heatmap: bool = True
    """Look for new objects at the peaks of the heatmap; otherwise at the points of a grid."""
    heat_threshold: float = Field(0.1, ge=0, le=1)
    """Peaks of the heatmap below this are no objects."""
    points_per_side: int = Field(32, ge=1, le=256)
    """The grid has this many points along each side of a tile; with --no-use-heatmap."""
    division_threshold: float = Field(0.5, gt=0, lt=1)
    """Objects divide where the model takes it for more probable than this."""
    split_by_heatmap: bool = True
    """Take a followed object apart where the heatmap has several peaks in it: into its daughters
    if both lie where it was; else it goes on as the one that it resembles. Needs the heatmap."""
    max_gap: int = Field(3, ge=0)
    """Frames that an object may be missing before its track ends."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """What is known of the heatmap does not suit a grid, nor the other way round."""
        before = stored.get("use_heatmap", True)
        if given.get("use_heatmap", before) != before:
            idle = ("heat_threshold", "split_by_heatmap", "points_per_side")
            stored = {name: value for name, value in stored.items() if name not in idle}
        return {**stored, **given}

    @model_validator(mode="after")
    def _options_act(self) -> CellSam2PredictOptions:
        idle, instead = (
            (("points_per_side",), "--use-heatmap")
            if self.use_heatmap
            else (("heat_threshold", "split_by_heatmap"), "--no-use-heatmap")
        )
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{flag(name)}: nothing to do with {instead}")
        return self

    @property
    def of_tracks(self) -> list[str]:
        """Flags that were given and that do nothing with still images."""
        return [
            flag(name)
            for name in self.panels["Tracks"]
            if getattr(self, name) != type(self).model_fields[name].default
        ]

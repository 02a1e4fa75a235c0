"""Options of finding what is similar to the examples; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from cellseg.options import Options


class FewshotPredictOptions(Options):
    """What ``cellseg predict`` takes with a model of fewshot, or with examples."""

    panels: ClassVar = {
        "Similarity": ("similarity_threshold", "size_prior", "shape_prior"),
        "Candidates": (
            "points_per_side",
            "similarity_peaks",
            "blobs",
            "min_mask_area",
            "max_mask_area",
            "magnification",
            "pred_iou_thresh",
            "stability_score_thresh",
            "nms_threshold",
            "containment_threshold",
            "points_per_batch",
        ),
    }

    similarity_threshold: float | None = Field(None, ge=0, le=1)
    """Candidates less similar to the examples than this are left out; by default as calibrated on
    the examples, and 0.5 for a model of the mode crop."""
    size_prior: bool | None = None
    """Count it against a candidate that its area is unlike those of the examples; on by default,
    except in the mode crop."""
    shape_prior: bool | None = None
    """The same of its shape."""
    points_per_side: int | None = Field(None, ge=0, le=256)
    """A grid of this many points along each side of a tile asks for candidates; 0 for none. By
    default as suits the size of the examples, 16 to 256, and 128 for a model of the mode crop."""
    similarity_peaks: bool | None = None
    """Ask for candidates also where the features are most similar to the examples; on by default.
    Not for the mode crop, which knows no features of a whole tile."""
    blobs: bool | None = None
    """Ask for candidates also where there are blobs of the sizes of the examples; on by default,
    except in the mode crop."""
    min_mask_area: int | None = Field(None, ge=0)
    """Candidates with fewer pixels are left out; by default half the area of the smallest
    example, and 30 for a model of the mode crop."""
    max_mask_area: int | None = Field(None, ge=0)
    """Candidates with more pixels are left out, 0 for no limit; by default twice the area of the
    largest example, and 0 for a model of the mode crop."""
    magnification: float | None = Field(None, gt=0)
    """How many times larger objects are in these images than in those of the examples. By default
    estimated for each tile, from the blobs in it, where these tell the size of the examples; 1
    elsewhere. Not for the mode crop."""
    pred_iou_thresh: float | None = Field(None, ge=0, le=1)
    """Candidates whose quality the encoder itself estimates below this are left out; by default
    what suits the encoder."""
    stability_score_thresh: float | None = Field(None, ge=0, le=1)
    """Candidates that change more than this with the threshold of the mask are left out; by default
    what suits the encoder."""
    nms_threshold: float = Field(0.5, gt=0, le=1)
    """Of two masks that overlap by more than this IoU, the better one stays."""
    containment_threshold: float = Field(0.7, gt=0, le=1)
    """Of two masks of which one lies in the other by more than this part of its area, the better
    one stays."""
    points_per_batch: int | None = Field(None, ge=1)
    """Points that are answered at once; by default 64 on a GPU, and 4 on a CPU."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """The threshold that a model brings along suits its own priors; with others, it has
        another."""
        if given.get("size_prior") is not None or given.get("shape_prior") is not None:
            stored = {n: value for n, value in stored.items() if n != "similarity_threshold"}
        return {**stored, **given}

    @model_validator(mode="after")
    def _areas_are_a_range(self) -> FewshotPredictOptions:
        least, most = self.min_mask_area, self.max_mask_area
        if least is not None and most and least > most:
            raise ValueError(f"--min-mask-area {least} is more than --max-mask-area {most}")
        if self.points_per_side == 0 and self.similarity_peaks is False and self.blobs is False:
            raise ValueError(
                "--points-per-side 0 with --no-similarity-peaks and --no-blobs: nothing is left to"
                " ask for candidates"
            )
        return self

"""Options of an evaluation; a light module, because the command line shows them."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from cellseg.options import Options, flag


class EvaluateSettings(Options):
    """What to compare, and how strictly."""

    panels: ClassVar = {
        "Scores": ("ctc", "thresholds", "min_size", "ignore_label"),
        "Label images": (
            "prediction_key",
            "truth_key",
            "prediction_suffix",
            "truth_suffix",
            "axes",
            "allow_missing_truth",
        ),
    }

    ctc: bool = False
    """Score tracks as the Cell Tracking Challenge does (SEG, DET, TRA, LNK, divisions, ...):
    PREDICTION is NN_RES or tracked labels that cellseg wrote, TRUTH is NN_GT or a data set of the
    challenge."""
    thresholds: str = "0.5:0.95:0.05"
    """IoU thresholds of a match: FIRST:LAST:STEP, or a list such as 0.5,0.75. AP is averaged over
    them."""
    min_size: int = Field(default=0, ge=0)
    """Drop objects of fewer voxels, in the truth and in the prediction, before anything is
    counted."""
    ignore_label: int | None = Field(default=None, ge=1)
    """Label in the truth of regions that nobody annotated: their voxels are not scored."""
    prediction_key: str | None = None
    """Name of the label image inside predicted OME-Zarr images and plates, needed where there are
    several; or key of the labels in Zarr and HDF5 files, if not given, labels."""
    truth_key: str | None = None
    """The same for the truth."""
    prediction_suffix: str | None = None
    """End of the names of predicted label files, such as _cp_masks for t01_cp_masks.tif; other
    files in the folder are left out."""
    truth_suffix: str | None = None
    """The same for the truth."""
    axes: str | None = None
    """Axes of label files that do not say, such as ZYX or TYX; each time is scored as an image."""
    allow_missing_truth: bool = False
    """Leave out predictions that have no truth; if not given, they are an error. Truth without a
    prediction always is."""

    @field_validator("thresholds")
    @classmethod
    def _valid_thresholds(cls, value: str) -> str:
        _parsed(value)
        return value

    @field_validator("prediction_suffix", "truth_suffix")
    @classmethod
    def _bare(cls, value: str | None) -> str | None:
        if value is not None and (not value or "." in value or "/" in value):
            raise ValueError("expected the end of the name before its extension, such as _mask")
        return value

    @model_validator(mode="after")
    def _for_tracks(self) -> Self:
        if self.ctc:
            idle = self.model_fields_set - {"ctc", "allow_missing_truth"}
            if idle:
                named = ", ".join(flag(name) for name in type(self).model_fields if name in idle)
                raise ValueError(f"{named}: scores of tracks (--ctc) do not depend on it")
        return self

    @property
    def iou_thresholds(self) -> tuple[float, ...]:
        """The thresholds in rising order, each above 0 and at most 1."""
        return _parsed(self.thresholds)


def _parsed(text: str) -> tuple[float, ...]:
    try:
        if ":" in text:
            first, last, step = map(_hundredths, text.split(":"))
            values = list(range(first, last + 1, step))
        else:
            values = sorted(map(_hundredths, text.split(",")))
    except (InvalidOperation, ValueError):
        raise ValueError(
            "expected FIRST:LAST:STEP such as 0.5:0.95:0.05, or 0.5,0.75; from 0.01 to 1, with at "
            "most two decimals"
        ) from None
    if not values or len(set(values)) < len(values):
        raise ValueError("expected rising thresholds, each once")
    # 55 / 100 is the number nearest to 0.55; 0.5 + 0.05 in floating point is another.
    return tuple(value / 100 for value in values)


def _hundredths(text: str) -> int:
    value = 100 * Decimal(text.strip())
    if not 1 <= value <= 100 or value != int(value):
        raise ValueError(text)
    return int(value)

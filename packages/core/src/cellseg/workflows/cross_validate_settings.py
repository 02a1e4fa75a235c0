"""The settings of ``cellseg cross-validate``. Light: the command line builds its help from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cellseg.errors import ConfigError
from cellseg.options import Options, flag
from cellseg.workflows.train_settings import TrainSettings

OWN_WAY = ("folds", "fold", "split", "test_fraction", "split_axis", "val_gap", "splits", "val")
"""Settings of a training that a cross-validation decides by itself."""
IDLE = (*OWN_WAY, "examples", "tag", "negative_tag")
"""Settings of a training that do nothing in a cross-validation."""


class CrossValidateSettings(Options):
    """How to divide the images into folds, and what to compare."""

    panels: ClassVar = {"Cross-validation": ("folds", "before", "against", "resume")}

    folds: int = Field(default=5, ge=2)
    """How many folds. Each image is held out in exactly one of them, and judged by the model that
    was trained on the others; images of one source (a well field, a movie) stay together."""
    before: bool = False
    """Also judge the model that each training starts from (that of no epochs) on the held-out
    images, and compare the two."""
    against: Path | None = None
    """The folder of another cross-validation, finished, with the same folds: compare this one with
    it, image by image."""
    resume: bool = False
    """Go on with a cross-validation that was stopped; finished folds are not trained again."""


def refuse_idle(settings: TrainSettings) -> None:
    """Refuse settings of a training that do nothing in a cross-validation.

    Raises:
        ConfigError: one of them is not at its default.
    """
    fields = type(settings).model_fields
    for name in IDLE:
        if getattr(settings, name) == fields[name].default:
            continue
        if name in OWN_WAY:
            raise ConfigError(
                f"{flag(name)} does nothing in a cross-validation: its folds say which images "
                "train, validate and are held out.",
                hint="Leave it out. --folds says how many folds there are, --seed which images "
                "are in which, --val-fraction how many of the others validate.",
            )
        raise ConfigError(
            f"{flag(name)} does nothing in a cross-validation: it needs labelled images.",
            hint="Leave it out.",
        )

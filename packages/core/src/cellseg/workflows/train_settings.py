"""Core's own options of a training: how to read, split and normalise, and for how long."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from cellseg.locations import Location
from cellseg.sampling_options import NormaliseOptions
from cellseg.splits import SplitOptions
from cellseg.workflows.example_settings import ExampleOptions


class TrainSettings(ExampleOptions, SplitOptions, NormaliseOptions):
    """What every training takes, whatever the backend."""

    panels: ClassVar = {"Run": ("epochs", "seed", "device"), "Data": ("val", "reader")}

    val: Location | None = None
    """Validation images with labels; without it, some of the training images are kept for it."""
    reader: str = "auto"
    """How to read the images; auto finds out from the path."""
    epochs: int = Field(100, ge=0)
    """How many epochs to train; 0 writes the untrained model."""
    seed: int = Field(0, ge=0)
    """Seed of all that is random: weights, splits, patches, augmentation."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where to train: auto, cpu, cuda, cuda:1, mps."""

    @model_validator(mode="after")
    def _one_source_of_validation(self) -> TrainSettings:
        if self.val is not None and self.splits is not None:
            raise ValueError("--val and --splits exclude each other: both say what to validate on")
        if self.val is not None and self.split != "train-val":
            raise ValueError(f"--val and --split {self.split} exclude each other")
        if self.val is not None and self.test_fraction:
            raise ValueError("--val and --test-fraction exclude each other")
        if (
            self.val is not None
            and self.val_fraction != type(self).model_fields["val_fraction"].default
        ):
            raise ValueError(
                "--val and --val-fraction exclude each other: nothing is kept of the training"
                " images where there are others to validate on"
            )
        return self

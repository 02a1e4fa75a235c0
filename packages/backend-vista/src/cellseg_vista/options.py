"""Options of the vista backends; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from cellseg.options import Options
from cellseg.sampling_options import AugmentOptions, PatchOptions
from cellseg.torch.options import TorchOptions


class Vista2dOptions(TorchOptions, PatchOptions, AugmentOptions):
    """What ``cellseg train --backend vista2d`` takes."""

    panels: ClassVar = {
        "Network": ("feature_size", "emb_dim"),
        "Loss": (
            "ce_weight",
            "dice_weight",
            "weight_distance",
            "weight_contact",
            "weight_pull",
            "weight_push",
            "weight_norm",
            "delta_v",
            "delta_d",
            "push_reach",
            "weight_edge",
            "weight_bone",
        ),
        "Validation": ("val_patches",),
    }

    feature_size: int = Field(16, ge=4, le=512)
    """Channels of the network at full resolution; each of the three coarser levels doubles it."""
    emb_dim: int = Field(16, ge=2, le=256)
    """Dimensions of the embedding, in which the pixels of a cell lie close together."""
    ce_weight: float = Field(0.5, ge=0)
    """Weight of the cross-entropy between cells and background."""
    dice_weight: float = Field(0.5, ge=0)
    """Weight of the Dice loss, over the classes that a batch contains."""
    weight_distance: float = Field(1.0, ge=0)
    """Weight of the loss of the distance map, which says how deep in its cell a pixel lies."""
    weight_contact: float = Field(5.0, ge=1)
    """How much more than others the pixels between touching cells weigh in the distance's loss."""
    weight_pull: float = Field(0.1, ge=0)
    """Weight of the term that draws the pixels of a cell together in the embedding."""
    weight_push: float = Field(0.1, ge=0)
    """Weight of the term that drives cells apart in the embedding."""
    weight_norm: float = Field(0.001, ge=0)
    """Weight of the term that keeps the embedding near the origin."""
    delta_v: float = Field(0.5, ge=0)
    """Pixels nearer than this to the mean of their cell are not drawn any closer."""
    delta_d: float = Field(1.5, gt=0)
    """Means of cells that are twice this apart are not driven any further."""
    push_reach: float = Field(2.0, ge=0)
    """Only cells whose centres are nearer than this many times the sum of their radii are driven
    apart: a network that looks at surroundings cannot tell distant cells apart. 0 means all."""
    weight_edge: float = Field(10.0, ge=1)
    """How much more than others the pixels at the edge of a cell weigh in the embedding's loss."""
    weight_bone: float = Field(10.0, ge=1)
    """How much more than at the edge the pixels along the middle of a cell weigh there."""
    val_patches: int = Field(32, ge=1)
    """How many patches to validate on at most, evenly spread over the validation images."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate, reached after the warm-up."""
    patch_size: int = Field(192, ge=16, le=16384)
    """Height and width of a training patch in pixels; smaller images are padded."""

    @model_validator(mode="after")
    def _two_dimensions(self) -> Vista2dOptions:
        if self.patch_depth != 1:
            raise ValueError("--patch-depth: vista2d segments single planes, so it must be 1")
        if self.augment_slices != "same":
            raise ValueError("--augment-slices: vista2d sees single planes, there are no others")
        return self


class Vista2dPredictOptions(Options):
    """What ``cellseg predict`` takes for a vista2d model; training finds good values itself."""

    panels: ClassVar = {
        "Instances": ("foreground_threshold", "seed_threshold", "bandwidth", "min_size")
    }

    foreground_threshold: float = Field(0.5, gt=0, lt=1)
    """Pixels with a higher probability than this belong to cells."""
    seed_threshold: float = Field(0.6, gt=0, lt=1)
    """Each connected area that is deeper in a cell than this, from 0 at the edge to 1 halfway to
    the middle and beyond, is the start of a piece."""
    bandwidth: float = Field(0.75, ge=0)
    """Neighbouring pieces whose embeddings are nearer than this are one cell; 0 joins none."""
    min_size: int = Field(15, ge=0)
    """Smaller cells are dropped, in pixels."""


class Pt2Options(Options):
    """What ``cellseg export --format pt2`` takes."""

    tolerance: float = Field(1e-4, gt=0)
    """Largest difference between the outputs of the exported network and the original."""

"""Options of training the vista backends; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cellseg.options import flag
from cellseg.sampling_options import AugmentOptions, PatchOptions
from cellseg.torch.options import TorchOptions

_SCALED_BY: Mapping[str, tuple[str, ...]] = {
    "class_weights": ("ce_weight",),
    "ignore_index": ("ce_weight", "dice_weight"),
    "distance_reach": ("weight_distance",),
    "weight_contact": ("weight_distance",),
    "delta_v": ("weight_pull",),
    "delta_d": ("weight_push",),
    "push_reach": ("weight_push",),
    "weight_edge": ("weight_pull", "weight_push", "weight_norm"),
    "weight_bone": ("weight_pull", "weight_push", "weight_norm"),
}
"""Options of a term of the loss, and its weights: where these are 0, the option does nothing."""


class VistaOptions(TorchOptions, PatchOptions, AugmentOptions):
    """What training any vista model takes."""

    panels: ClassVar = {
        "Network": (
            "encoder",
            "feature_size",
            "levels",
            "num_classes",
            "emb_dim",
            "deep_supervision",
            "encoder_weights",
        ),
        "Loss": (
            "ce_weight",
            "dice_weight",
            "class_weights",
            "ignore_index",
            "weight_distance",
            "distance_reach",
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

    encoder: Literal["unet", "segresnet", "segresnet_ds"] = "unet"
    """The network that looks at the image: unet, a residual U-Net whose output does not depend on
    where a tile is cut; segresnet, MONAI's SegResNet; segresnet_ds, its successor, which is the
    encoder of VISTA3D. The latter two normalise over space, so a voxel depends on all of its
    tile."""
    feature_size: int = Field(16, ge=4, le=512)
    """Channels of the network at full resolution; each coarser level doubles it."""
    levels: int = Field(4, ge=2, le=7)
    """Resolutions of the network, the full one included; each more doubles what it sees around."""
    num_classes: int = Field(16, ge=2, le=16)
    """Classes the network can tell apart, background included; more than the data has are spare."""
    emb_dim: int = Field(16, ge=2, le=256)
    """Dimensions of the embedding, in which the pixels of an object lie close together."""
    deep_supervision: int = Field(0, ge=0, le=3)
    """Coarser levels of the decoder that are trained to give the result as well, each counting
    half of the one before; for the encoders unet and segresnet_ds."""
    encoder_weights: Path | None = None
    """A checkpoint of VISTA3D to start the encoder segresnet_ds from; needs --feature-size 48, and
    voxels of about equal edges."""
    ce_weight: float = Field(0.5, ge=0)
    """Weight of the cross-entropy between the classes."""
    dice_weight: float = Field(0.5, ge=0)
    """Weight of the Dice loss, over the classes that a batch contains."""
    class_weights: tuple[float, ...] = ()
    """Weights of the classes in the cross-entropy, background first, as many as --num-classes; if
    not given, all count alike."""
    ignore_index: int = Field(-100, ge=-100, le=15)
    """A class whose voxels the semantic loss leaves out. Voxels without a known label are left out
    in any case; -100 leaves out only them. What it names is not scored in val/accuracy either."""
    weight_distance: float = Field(1.0, ge=0)
    """Weight of the loss of the distance map, which says how deep in its object a pixel lies."""
    distance_reach: float = Field(0.0, ge=0)
    """How deep in an object, in voxels of the finest axis, the distance map is full; 0 for half the
    depth of each object, which suits compact ones: thin arms of thick objects want a number."""
    weight_contact: float = Field(5.0, ge=1)
    """How much more than others the pixels between touching objects weigh in the distance's
    loss."""
    weight_pull: float = Field(0.1, ge=0)
    """Weight of the term that draws the pixels of an object together in the embedding."""
    weight_push: float = Field(0.1, ge=0)
    """Weight of the term that drives objects apart in the embedding."""
    weight_norm: float = Field(0.001, ge=0)
    """Weight of the term that keeps the embedding near the origin."""
    delta_v: float = Field(0.5, ge=0)
    """Pixels nearer than this to the mean of their object are not drawn any closer."""
    delta_d: float = Field(1.5, gt=0)
    """Means of objects that are twice this apart are not driven any further."""
    push_reach: float = Field(2.0, ge=0)
    """Only objects whose centres are nearer than this many times the sum of their radii are driven
    apart: a network that looks at surroundings cannot tell distant ones apart. 0 means all."""
    weight_edge: float = Field(10.0, ge=1)
    """How much more than others the pixels at the edge of an object weigh in the embedding's
    loss."""
    weight_bone: float = Field(10.0, ge=1)
    """Factor of the same weights in the middle of an object, to which they grow from 1 at depth 0;
    it multiplies --weight-edge."""
    val_patches: int = Field(32, ge=1)
    """How many patches to validate on at most, evenly spread over the validation images."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate, reached after the warm-up."""
    save_top_k: int = Field(3, ge=0)
    """Keep the weights of this many best validations. The best are the result; with 0 the last."""

    @field_validator("encoder_weights")
    @classmethod
    def _from_any_directory(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="after")
    def _options_act(self) -> VistaOptions:
        if not self.ce_weight and not self.dice_weight:
            raise ValueError(
                "--ce-weight and --dice-weight are both 0: nothing would teach the classes, and so"
                " what is background"
            )
        for name, weights in _SCALED_BY.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and not any(getattr(self, weight) for weight in weights):
                raise ValueError(
                    f"{flag(name)} does nothing with {' 0, '.join(map(flag, weights))} 0"
                )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> VistaOptions:
        if self.class_weights and len(self.class_weights) != self.num_classes:
            raise ValueError(
                f"--class-weights has {len(self.class_weights)} values, but --num-classes is"
                f" {self.num_classes}"
            )
        if any(weight < 0 for weight in self.class_weights):
            raise ValueError("--class-weights must not be negative")
        if not (self.ignore_index == -100 or 0 <= self.ignore_index < self.num_classes):
            raise ValueError(
                f"--ignore-index {self.ignore_index} is none of the {self.num_classes} classes"
            )
        if self.encoder_weights is not None and self.encoder != "segresnet_ds":
            raise ValueError(
                f"--encoder-weights goes with --encoder segresnet_ds, not {self.encoder}"
            )
        if self.deep_supervision and self.encoder == "segresnet":
            raise ValueError("--deep-supervision goes with --encoder unet or segresnet_ds")
        if self.deep_supervision > self.levels - 2:
            raise ValueError(
                f"--deep-supervision {self.deep_supervision}: with --levels {self.levels} the"
                f" decoder has {self.levels - 2} coarser levels"
            )
        return self


class Vista2dOptions(VistaOptions):
    """What ``cellseg train --backend vista2d`` takes."""

    patch_size: int = Field(192, ge=16, le=16384)
    """Height and width of a training patch in pixels; smaller images are padded."""

    @model_validator(mode="after")
    def _two_dimensions(self) -> Vista2dOptions:
        if self.patch_depth != 1:
            raise ValueError("--patch-depth: vista2d segments single planes, so it must be 1")
        if self.augment_slices != "same":
            raise ValueError("--augment-slices: vista2d sees single planes, there are no others")
        if self.swap_depth_probability:
            raise ValueError("--swap-depth-probability: vista2d sees single planes, without depth")
        if self.encoder_weights is not None:
            raise ValueError("--encoder-weights: VISTA3D is for volumes; use vista3d")
        return self


class Vista3dOptions(VistaOptions):
    """What ``cellseg train --backend vista3d`` takes."""

    patch_size: int = Field(128, ge=16, le=16384)
    """Height and width of a training patch in voxels; smaller volumes are padded."""
    patch_depth: int = Field(32, ge=2, le=16384)
    """Planes of a training patch; smaller volumes are padded."""
    batch_size: int = Field(2, ge=1)
    """Patches in a batch, on each device."""
    patches_per_image: int = Field(32, ge=1)
    """Patches of an epoch, for each training volume."""

    @model_validator(mode="after")
    def _cubes(self) -> Vista3dOptions:
        if self.swap_depth_probability and self.patch_depth != self.patch_size:
            raise ValueError(
                f"--swap-depth-probability needs --patch-depth {self.patch_size}, as deep as wide"
            )
        return self

"""Options of training with cellsam; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cellseg.errors import ConfigError
from cellseg.sampling_options import AugmentOptions, PatchOptions
from cellseg.torch.options import FitOptions
from cellseg.torch.sam.model_types import RANDOM, ModelType

BOX_WEIGHTS = ("ce_loss_weight", "bbox_loss_weight", "giou_loss_weight")
"""The options that weight the terms of the loss of stage 1."""
COSTS = ("class_cost", "bbox_cost", "giou_cost")
"""The same numbers in the matching of boxes to cells."""
MASK_WEIGHTS = ("focal_loss_weight", "dice_loss_weight", "boundary_loss_weight")
"""The options that weight the terms of the loss of stage 2 that concern masks."""
STAGE1 = (
    "stage1_epochs",
    "stage1_type",
    "queries",
    "lora_rank",
    "lora_alpha",
    "stage1_learning_rate",
    "backbone_learning_rate",
    "stage1_patience",
    *BOX_WEIGHTS,
    *COSTS,
    "detection_focal_alpha",
    "detection_focal_gamma",
    "auxiliary_loss",
)
"""Options of stage 1 alone."""
_MINING = ("online_hard_negative_mining", "online_hard_negative_mining_weighted")
STAGE2 = (
    "stage2_epochs",
    "stage2_type",
    "stage2_learning_rate",
    "stage2_patience",
    *MASK_WEIGHTS,
    "iou_loss_weight",
    "focal_alpha",
    "focal_gamma",
    *_MINING,
    "hard_share",
    "hard_weight",
    "boxes_per_image",
    "box_noise",
)
"""Options of stage 2 alone."""
MOST_QUERIES = 10000
OF_TRUNK = ("image_encoder", "all_backbones")
"""Kinds of stage 1 in which the encoder learns."""
_AUGMENTING = tuple(name for names in AugmentOptions.panels.values() for name in names)
_NONE: dict[str, Any] = {name: 0.0 for name in _AUGMENTING if name.endswith("_probability")}
_SIMPLE: dict[str, Any] = {**_NONE, "flip_probability": 0.5, "rotate90_probability": 0.5}
_COMPLEX: dict[str, Any] = {
    **_SIMPLE,
    "affine_probability": 0.5,
    "affine_scale": 1.15,
    "affine_rotation": 0.0,
    "affine_shear": 0.0,
    "elastic_probability": 0.3,
    "brightness_probability": 0.5,
    "brightness_range": 0.4,  # about 0.1 of the range of images that are normalised to 0 to 1
    "contrast_probability": 0.5,
    "contrast_range": 1.1,
}


class CellSamOptions(FitOptions, PatchOptions, AugmentOptions):
    """What ``cellseg train --backend cellsam`` takes."""

    panels: ClassVar = {
        "Model": ("model_type", "checkpoint", "recompute"),
        "Stages": ("stage", "stage1_epochs", "stage2_epochs"),
        "Stage 1: boxes": tuple(name for name in STAGE1 if name != "stage1_epochs"),
        "Stage 2: masks": tuple(name for name in STAGE2 if name != "stage2_epochs"),
        "Augmentation": ("augmentation",),
        "Validation": ("val_patches", "calibrate"),
    }

    model_type: ModelType = "vit_b"
    """What to start from: a Segment Anything model (vit_b, vit_l, vit_h, vit_t), one of
    micro-SAM's generalists, or tiny and small, which have random weights (--preset scratch suits
    them). The detector is not part of any of these: it starts random."""
    checkpoint: Path | None = None
    """Weights to start from instead of a download: a run of cellseg with cellsam, detector
    included; a file with the weights of Segment Anything, of micro-SAM or as cellseg exports them;
    or a file of the published CellSAM, of which the parts of Segment Anything are taken (its
    licence allows non-commercial academic use only). It says itself how large the model is."""
    recompute: bool = False
    """Compute the activations of the image encoder again in the backward pass instead of keeping
    them: less than half the memory for a third more time. For a stage 1 in which it learns."""

    stage: Literal["both", "1", "2"] = "both"
    """Train both stages, one after the other, or one alone: 1 finds boxes, 2 segments what is in
    a box."""
    stage1_epochs: int | None = Field(None, ge=0)
    """Epochs of stage 1. If not given, what --stage2-epochs leaves of --epochs; half of --epochs if
    neither is given. With both, --epochs is their sum. A run that is resumed with more epochs
    prolongs its last stage."""
    stage2_epochs: int | None = Field(None, ge=0)
    """Epochs of stage 2, in the same way."""

    stage1_type: Literal["cellfinder", "image_encoder", "all_backbones", "head_only"] = (
        "all_backbones"
    )
    """What learns in stage 1: cellfinder, the detector; image_encoder, the trunk of the encoder, to
    suit a detector that has been trained; all_backbones, both; head_only, the layers of the
    detector that give scores and boxes, and its anchor points."""
    queries: int | None = Field(None, ge=1, le=MOST_QUERIES)
    """Anchor points of a new detector, each of which can find one cell: more than there are cells
    in a patch. If not given, 900; 256 for small, 64 for tiny."""
    lora_rank: int = Field(0, ge=0, le=256)
    """The encoder learns by low-rank updates (LoRA, arXiv:2106.09685) of the queries, keys and
    values of its attention, of this rank, which are merged when stage 1 is done; 0: it learns
    whole."""
    lora_alpha: float = Field(8.0, gt=0)
    """The updates are scaled by this, divided by the rank."""
    stage1_learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of the detector."""
    backbone_learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate of the encoder in stage 1, or of its low-rank updates, which bear ten
    times as much."""
    stage1_patience: int = Field(0, ge=0)
    """End stage 1 after this many validations without a better score; 0 never does."""
    ce_loss_weight: float = Field(1.0, ge=0)
    """Weight of the focal loss of the scores of boxes."""
    bbox_loss_weight: float = Field(5.0, ge=0)
    """Weight of the distance of boxes from the true ones."""
    giou_loss_weight: float = Field(2.0, ge=0)
    """Weight of the loss of their generalised IoU (arXiv:1902.09630)."""
    class_cost: float = Field(1.0, ge=0)
    """What the score counts when boxes are matched to cells."""
    bbox_cost: float = Field(5.0, ge=0)
    """What the distance counts there."""
    giou_cost: float = Field(2.0, ge=0)
    """What the generalised IoU counts there."""
    detection_focal_alpha: float = Field(0.25, ge=0, le=1)
    """Weight of cells against background in the focal loss (arXiv:1708.02002) of scores."""
    detection_focal_gamma: float = Field(2.0, ge=0)
    """Exponent of that loss: the larger, the less easy boxes count."""
    auxiliary_loss: bool = True
    """The layers of the detector before the last one learn from answers of their own too."""

    stage2_type: Literal["neck", "neck_and_decoder"] = "neck"
    """What learns in stage 2, from the masks of true boxes: the neck of the encoder, through the
    mask decoder, which stays as it is; or the neck, the embeddings of boxes (and of their drawings,
    in a model from random weights) and the decoder."""
    stage2_learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of stage 2."""
    stage2_patience: int = Field(0, ge=0)
    """End stage 2 after this many validations without a better score; 0 never does."""
    focal_loss_weight: float = Field(1.0, ge=0)
    """Weight of the focal loss of masks."""
    dice_loss_weight: float = Field(1.0, ge=0)
    """Weight of the Dice loss of masks."""
    boundary_loss_weight: float = Field(1.0, ge=0)
    """Weight of the difference of the edges (Sobel) of masks."""
    iou_loss_weight: float = Field(1.0, ge=0)
    """Weight of the error of the estimated IoU, for --stage2-type neck_and_decoder."""
    focal_alpha: float = Field(0.25, ge=0, le=1)
    """Weight of the object against background in the focal loss of masks."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of that loss."""
    online_hard_negative_mining: bool = False
    """Weight the objects of a patch with the largest losses --hard-weight times as much."""
    online_hard_negative_mining_weighted: bool = False
    """Weight them from 1.2 times, the easiest of them, to 2.5 times, in equal steps of the loss,
    instead."""
    hard_share: float = Field(0.1, gt=0, le=1)
    """Share of the objects of a patch that count as hard, rounded up."""
    hard_weight: float = Field(2.0, ge=1)
    """How many times as much they count, with --online-hard-negative-mining."""
    boxes_per_image: int = Field(32, ge=1)
    """Objects of a training patch that are prompted at most; drawn at random."""
    box_noise: float = Field(0.1, ge=0, le=0.5)
    """How far the edges of a true box are moved either way at most, in lengths of that side, so
    that masks suit boxes that are not exact; never by more than 20 pixels of the square that the
    encoder sees."""

    augmentation: Literal["custom", "none", "simple", "complex"] = "custom"
    """none, simple (mirrored and turned by right angles) or complex (also scaled by up to 1.15,
    deformed, and of other brightness and contrast) instead of the single options here. Validation
    images are never changed."""
    val_patches: int = Field(16, ge=1)
    """How many patches to validate on at most, evenly spread over the validation images."""
    calibrate: bool = True
    """Find the box threshold of prediction on the validation images when a stage is done, and store
    it with the model."""

    patch_size: int = Field(512, ge=16, le=16384)
    """Height and width of a training patch in pixels; smaller images are padded. Prediction cuts
    tiles of this size, so that cells look as large as they did in training."""
    min_instance_size: int = Field(25, ge=1)
    """Pixels that an object must have inside the patch to count for --min-instances. Smaller pieces
    are taken neither for objects nor for background: nothing is learned from them."""
    batch_size: int = Field(2, ge=1)
    """Patches in a batch, on each device."""

    @property
    def augmenting(self) -> AugmentOptions:
        """What patches undergo."""
        if self.augmentation == "custom":
            return self
        chosen = {"none": _NONE, "simple": _SIMPLE, "complex": _COMPLEX}[self.augmentation]
        return AugmentOptions(**chosen)

    def shares(self, epochs: int) -> tuple[int, int]:
        """The epochs of stage 1 and of stage 2.

        Args:
            epochs: of both.

        Raises:
            ConfigError: one asks for more.
        """
        first, second = self.stage1_epochs, self.stage2_epochs
        if not epochs:
            return 0, 0
        if self.stage != "both":
            return (epochs, 0) if self.stage == "1" else (0, epochs)
        if first is not None:
            second = epochs - first
        elif second is not None:
            first = epochs - second
        else:
            first, second = epochs - epochs // 2, epochs // 2
        if min(first, second) < 0:
            given = "--stage1-epochs" if second < 0 else "--stage2-epochs"
            raise ConfigError(
                f"{given} {max(first, second)}: there are {epochs} --epochs for both stages.",
                hint=f"Give more --epochs, or fewer {given}, or both --stage1-epochs and"
                " --stage2-epochs.",
            )
        return first, second

    @property
    def wanted_epochs(self) -> int | None:
        """The epochs that these options ask for; None where that is left to ``--epochs``."""
        if self.stage == "1":
            return self.stage1_epochs
        if self.stage == "2":
            return self.stage2_epochs
        if self.stage1_epochs is None or self.stage2_epochs is None:
            return None
        return self.stage1_epochs + self.stage2_epochs

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """What a preset says does not bind who trains other parts, or starts from another model."""
        together: Mapping[str, Any] = {**stored, **given}
        idle = set(_idle(together))
        if given.get("checkpoint") is not None:
            idle.update(("model_type", "queries"))
        elif "model_type" in given:
            idle.update(("checkpoint", "queries"))
        if None not in (together.get("stage1_epochs"), together.get("stage2_epochs")):
            idle.add("epochs")  # their sum
        if any(given.get(name) for name in _MINING):
            idle.update(_MINING)
        if given.get("augmentation", "custom") != "custom":
            idle.update(_AUGMENTING)
        elif any(name in given for name in _AUGMENTING):
            idle.add("augmentation")
        return super().over({n: v for n, v in stored.items() if n not in idle}, given)

    @field_validator("checkpoint")
    @classmethod
    def _from_any_directory(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="after")
    def _planes(self) -> CellSamOptions:
        if self.patch_depth != 1:
            raise ValueError("--patch-depth: cellsam sees single planes, so it must be 1")
        if self.swap_depth_probability:
            raise ValueError("--swap-depth-probability: cellsam sees single planes")
        if self.augment_slices != "same":
            raise ValueError("--augment-slices: cellsam sees single planes, there are no others")
        return self

    @model_validator(mode="after")
    def _options_act(self) -> CellSamOptions:
        if self.strategy == "fsdp":
            raise ValueError("--strategy fsdp: what learns is spread over the model; use ddp")
        if self.checkpoint is not None and self.model_type in RANDOM:
            raise ValueError(
                f"--checkpoint does nothing with --model-type {self.model_type}, which starts from"
                " random weights"
            )
        if self.early_stopping:
            raise ValueError("--early-stopping: give --stage1-patience and --stage2-patience")
        if self.online_hard_negative_mining and self.online_hard_negative_mining_weighted:
            raise ValueError(
                "--online-hard-negative-mining and --online-hard-negative-mining-weighted exclude"
                " each other"
            )
        together = {name: getattr(self, name) for name in type(self).model_fields}
        for name, why in _idle(together).items():
            self.refuse_idle((name,), why)
        self._something_is_learned()
        return self

    def _something_is_learned(self) -> None:
        for stage, names in (("1", BOX_WEIGHTS), ("2", MASK_WEIGHTS)):
            if self.stage in ("both", stage) and not any(getattr(self, name) for name in names):
                raise ValueError(f"all weights of the loss of stage {stage} are 0")
        if self.stage != "2" and not any(getattr(self, name) for name in COSTS):
            raise ValueError("--class-cost, --bbox-cost and --giou-cost are all 0")


def _idle(given: Mapping[str, Any]) -> dict[str, str]:
    """Options that do nothing together with others, and why.

    Args:
        given: options by name; what is missing is at its default.
    """

    def value(name: str) -> Any:
        return given.get(name, CellSamOptions.model_fields[name].default)

    idle: dict[str, str] = {}

    def add(names: tuple[str, ...], why: str) -> None:
        for name in names:
            idle.setdefault(name, why)

    for stage, other, names, what in (
        ("1", "stage2_epochs", STAGE2, "masks"),
        ("2", "stage1_epochs", (*STAGE1, "recompute"), "the detector, nor the encoder"),
    ):
        if value("stage") == stage:
            add(names, f"--stage {stage} does not train {what}")
        elif value("stage") == "both" and value(other) == 0:
            rest = tuple(name for name in names if name != other)
            add(rest, f"--{other.replace('_', '-')} 0 does not train {what}")
    kind = value("stage1_type")
    if kind not in OF_TRUNK:
        why = f"--stage1-type {kind} leaves the encoder as it is"
        add(("lora_rank", "lora_alpha", "backbone_learning_rate", "recompute"), why)
    if kind == "image_encoder":
        add(("stage1_learning_rate",), "--stage1-type image_encoder leaves the detector as it is")
    if not value("lora_rank"):
        add(("lora_alpha",), "only with --lora-rank")
    if not value("ce_loss_weight"):
        add(("detection_focal_alpha", "detection_focal_gamma"), "--ce-loss-weight is 0")
    if not value("focal_loss_weight"):
        add(("focal_alpha", "focal_gamma"), "--focal-loss-weight is 0")
    if value("stage2_type") == "neck":
        add(("iou_loss_weight",), "only with --stage2-type neck_and_decoder")
    if not any(value(name) for name in _MINING):
        add(("hard_share",), "only with --online-hard-negative-mining, or -weighted")
    if not value("online_hard_negative_mining"):
        add(("hard_weight",), "only with --online-hard-negative-mining")
    if value("augmentation") != "custom":
        add(_AUGMENTING, f"only with --augmentation custom, not {value('augmentation')}")
    return idle

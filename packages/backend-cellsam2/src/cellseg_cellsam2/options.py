"""Options of training with cellsam2; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from cellseg.sampling_options import AugmentOptions
from cellseg.torch.options import FitOptions
from cellseg.torch.sam2.sizes import Sam2Size

WEIGHTS = (
    "mask_weight",
    "dice_weight",
    "iou_weight",
    "class_weight",
    "division_weight",
    "heatmap_weight",
)
"""The options that weight the terms of the loss."""
_OF_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_lr")
_OF_ENCODER = ("vision_lr", "layer_decay")
_OF_ALL = ("base_lr", "head_lr", *_OF_ENCODER)
"""Options of the training with low-rank updates, of the encoder without, and of all without."""


class CellSam2Options(FitOptions, AugmentOptions):
    """What ``cellseg train --backend cellsam2`` takes."""

    panels: ClassVar = {
        "Model": ("model_type", "checkpoint", "resolution", "recompute", "objects_per_batch"),
        "Fine-tuning": (
            "use_lora",
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_lr",
            "base_lr",
            "vision_lr",
            "head_lr",
            "layer_decay",
            "freeze_encoder",
        ),
        "Clips": (
            "num_frames",
            "patch_size",
            "clips_per_epoch",
            "division_share",
            "min_instance_size",
            "cache",
        ),
        "Prompts": (
            "max_num_objects",
            "max_num_bkgd_objects",
            "box_probability",
            "box_noise",
            "correction_points",
            "truth_click_probability",
        ),
        "Losses": WEIGHTS,
        "Augmentation": ("illumination_probability", "illumination_range"),
        "Validation": ("val_clips", "calibrate"),
    }

    model_type: Sam2Size = "sam2.1_hiera_base_plus"
    """What to start from: a size of SAM 2.1, whose weights are downloaded, or nano and micro, which
    are small networks with random weights (--preset scratch suits them)."""
    checkpoint: Path | None = None
    """Weights to start from instead of a download: a file with the weights of SAM 2.1, as Meta
    publishes them or cellseg export writes them, or a run of cellseg. It says itself which size it
    is."""
    resolution: int = Field(512, ge=32, le=4096, multiple_of=32)
    """Pixels along a side of the square that the network sees."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: much less memory for
    about a third more time."""
    objects_per_batch: int = Field(64, ge=1)
    """Objects that go through memory attention and mask decoder at once; the result does not depend
    on it. With --recompute, fewer take less memory."""
    use_lora: bool = True
    """Learn low-rank updates (LoRA, arXiv:2106.09685) of the attention of the image encoder, of the
    memory and of the mask decoder, and what SAM 2 does not have (division, heatmap), and nothing
    else. They begin at zero, and are merged into the weights in the end. Off, all of it learns."""
    lora_rank: int = Field(32, ge=1, le=512)
    """Rank of the updates."""
    lora_alpha: float = Field(8.0, gt=0)
    """The updates are scaled by this, divided by the rank."""
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the inputs of an update that is left out, at random."""
    lora_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of the updates, and of what else learns with --use-lora."""
    base_lr: float = Field(5e-6, gt=0)
    """Peak learning rate without LoRA, of all but the image encoder and the new parts."""
    vision_lr: float = Field(3e-6, gt=0)
    """Peak learning rate of the image encoder without LoRA."""
    head_lr: float = Field(1e-4, gt=0)
    """Peak learning rate without LoRA of the parts that SAM 2 does not have: division and
    heatmap."""
    layer_decay: float = Field(0.9, gt=0, le=1)
    """Each block of the image encoder learns so much slower than the one after it, without LoRA; 1
    makes no difference between them."""
    freeze_encoder: bool = False
    """Leave the image encoder as it is, without LoRA, or its updates away."""
    num_frames: int = Field(3, ge=1, le=64)
    """Frames of a training clip. 1 learns segmentation alone, from still images too; more need
    movies with tracks."""
    patch_size: int | None = Field(None, ge=16, le=16384)
    """Height and width of a training clip in pixels of the images, which is scaled to --resolution.
    If not given, the longest side of the training images, but at most --resolution: small images
    are enlarged, and large ones are cut. Prediction sees images at the same scale."""
    clips_per_epoch: int | None = Field(None, ge=1)
    """Clips of an epoch; if not given, one for each frame that a clip can begin with."""
    division_share: float = Field(0.25, ge=0, le=1)
    """Share of the clips that are chosen to show a division, where the movies have any, because
    they are rare. The others begin with any frame."""
    min_instance_size: int = Field(25, ge=1)
    """Pixels that an object must have inside the clip. Smaller pieces are taken neither for objects
    nor for background: nothing is learned from them."""
    cache: int = Field(512, ge=0)
    """Memory in MiB, for each loader process, that keeps decoded frames; 0 reads them anew for each
    clip."""
    max_num_objects: int = Field(40, ge=1)
    """Objects of a clip that are followed at most, those that are born within it included; two
    daughters take the place of one mother. They are drawn at random; those that divide come
    first."""
    max_num_bkgd_objects: int = Field(10, ge=0)
    """Points on the background of the first frame that must be answered by no object: where the
    heatmap wrongly has peaks, else anywhere. There are no more of them than objects, if the frame
    has any."""
    box_probability: float = Field(0.5, ge=0, le=1)
    """How often an object is shown by a box instead of a point."""
    box_noise: float = Field(0.1, ge=0, le=0.5)
    """How far the edges of a box are moved either way, in lengths of its side; at most 20 pixels of
    the square."""
    correction_points: int = Field(5, ge=0, le=32)
    """Clicks that correct the answers of the first frame, one after the other."""
    truth_click_probability: float = Field(0.1, ge=0, le=1)
    """How often such a click lies anywhere on the object instead of where the answer is wrong."""
    mask_weight: float = Field(20.0, ge=0)
    """Weight of the focal loss of the masks."""
    dice_weight: float = Field(1.0, ge=0)
    """Weight of the Dice loss of the masks."""
    iou_weight: float = Field(1.0, ge=0)
    """Weight of the error of the estimated IoU."""
    class_weight: float = Field(1.0, ge=0)
    """Weight of whether an object is there."""
    division_weight: float = Field(1.0, ge=0)
    """Weight of whether an object divides."""
    heatmap_weight: float = Field(1.0, ge=0)
    """Weight of the heatmap of the middles of cells."""
    illumination_probability: float = Field(0.4, ge=0, le=1)
    """Light a clip unevenly, by a smooth field that is the same in all frames."""
    illumination_range: float = Field(0.3, gt=0, lt=1)
    """Largest difference of that field from 1, either way."""
    val_clips: int = Field(16, ge=1)
    """How many clips to validate on at most, evenly spread over the validation images."""
    calibrate: bool = True
    """Find the thresholds of prediction on the validation images when training is done."""

    batch_size: int = Field(1, ge=1)
    """Clips in a batch, on each device."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of AdamW; norms and biases are spared."""
    clip: float = Field(0.1, ge=0)
    """Largest norm of the gradient; a larger one is scaled down. 0 clips nothing."""
    average: float = Field(0.0, ge=0, lt=1)
    """Validate and keep a running average of the weights, with this decay per step; 0 is off."""
    decay_epochs: int = Field(10, ge=0)
    """The learning rates fall along a cosine to a hundredth of their peaks in this many epochs, and
    stay there; 0 keeps them at their peaks. It does not depend on --epochs, so that a run that is
    prolonged later equals one that was long from the start."""
    affine_rotation: float = Field(25.0, ge=0, le=180)
    """Largest rotation in degrees, either way."""
    affine_shear: float = Field(20.0, ge=0, le=45)
    """Largest shear in degrees, either way."""
    blur_probability: float = Field(0.4, ge=0, le=1)
    """Blur a clip in the plane, as if it were out of focus."""
    noise_probability: float = Field(0.4, ge=0, le=1)
    """Add Gaussian noise."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """The rates of a preset do not bind who lets other parts learn."""
        together = {**stored, **given}
        idle = set(_OF_ALL if together.get("use_lora", True) else _OF_LORA)
        if together.get("freeze_encoder", False):
            idle.update(_OF_ENCODER)
        return super().over({n: v for n, v in stored.items() if n not in idle}, given)

    @field_validator("checkpoint")
    @classmethod
    def _from_any_directory(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="after")
    def _planes(self) -> CellSam2Options:
        if self.swap_depth_probability:
            raise ValueError("--swap-depth-probability: cellsam2 sees single planes")
        if self.augment_slices != "same":
            raise ValueError("--augment-slices: all frames of a clip undergo the same change")
        return self

    @model_validator(mode="after")
    def _options_act(self) -> CellSam2Options:
        if self.strategy == "fsdp":
            raise ValueError("--strategy fsdp: what learns is spread over the model; use ddp")
        if self.use_lora:
            self.refuse_idle(_OF_ALL, "only with --no-use-lora")
        else:
            self.refuse_idle(_OF_LORA, "only with --use-lora")
            if self.freeze_encoder:
                self.refuse_idle(_OF_ENCODER, "--freeze-encoder leaves it as it is")
        if self.num_frames == 1:
            self.refuse_idle(
                ("division_share", "division_weight"), "--num-frames 1 shows no divisions"
            )
        if not self.correction_points:
            self.refuse_idle(("truth_click_probability",), "only with --correction-points")
        if not self.box_probability:
            self.refuse_idle(("box_noise",), "does nothing with --box-probability 0")
        if not self.illumination_probability:
            self.refuse_idle(
                ("illumination_range",), "does nothing with --illumination-probability 0"
            )
        shown = [n for n in WEIGHTS if n != "division_weight" or self.num_frames > 1]
        if not any(getattr(self, name) for name in shown):
            raise ValueError("all weights of the loss are 0: nothing would be learned")
        return self

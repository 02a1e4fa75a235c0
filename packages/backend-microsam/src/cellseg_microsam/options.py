"""Options of training with micro-SAM; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cellseg.sampling_options import AugmentOptions, PatchOptions
from cellseg.torch.options import TorchOptions
from cellseg.torch.sam.model_types import RANDOM, ModelType

Part = Literal["image_encoder", "prompt_encoder", "mask_decoder"]
Peft = Literal[
    "none",
    "lora",
    "fact",
    "ssf",
    "adaptformer",
    "attention",
    "bias",
    "layernorm",
    "last-blocks",
    "qlora",
]
RANKED = ("lora", "fact", "qlora")
"""PEFT methods that have a rank."""


class MicrosamOptions(TorchOptions, PatchOptions, AugmentOptions):
    """What ``cellseg train --backend microsam`` takes."""

    panels: ClassVar = {
        "Model": ("model_type", "checkpoint", "mode", "freeze", "compile", "recompute"),
        "Parameter-efficient fine-tuning": ("peft", "lora_rank", "lora_alpha", "peft_blocks"),
        "Prompts": ("n_objects", "n_sub_iterations", "mask_probability", "box_distortion"),
        "Patches": ("n_samples", "use_min_instance_sampler"),
        "Embeddings": ("cache_embeddings", "copies"),
        "Validation": ("val_patches", "calibrate"),
        "Export": ("export_path", "checkpoint_name"),
    }

    model_type: ModelType = "vit_b_lm"
    """What to start from: a Segment Anything model (vit_b, vit_l, vit_h, vit_t), one of
    micro-SAM's generalists, or tiny and small, which have random weights."""
    checkpoint: Path | None = None
    """A file with weights to start from instead of a download: of Segment Anything, or as exported
    by micro-SAM or cellseg. It says itself how large the model is; --model-type may say which
    generalist it is, whose thresholds suit it then."""
    mode: Literal["full", "interactive", "instances", "decoder"] = "instances"
    """What learns: full, the answers to prompts and the decoder for automatic segmentation, from
    one encoding of each batch; interactive, the answers alone; instances, encoder and decoder;
    decoder, the decoder alone, with a frozen encoder."""
    freeze: tuple[Part, ...] = ()
    """Parts of Segment Anything that keep their weights; may be given several times."""
    compile: bool = False
    """Compile the image encoder with torch.compile; the first steps take minutes longer."""
    recompute: bool = False
    """Compute the activations of the encoder, and of the answers to prompts, again in the backward
    pass instead of keeping them: less than half the memory for a third more time."""
    peft: Peft = "none"
    """Train few weights of the image encoder only, by one of micro-SAM's methods: lora (low-rank
    updates of q and v), fact, ssf, adaptformer, attention, bias, layernorm, last-blocks, or qlora
    (lora on 4-bit weights; needs CUDA and the package bitsandbytes)."""
    lora_rank: int = Field(4, ge=1, le=256)
    """Rank of the updates of lora, qlora and fact."""
    lora_alpha: float = Field(1.0, gt=0)
    """Factor of the updates of lora and qlora."""
    peft_blocks: tuple[int, ...] = ()
    """Blocks of the encoder that get the updates, counted from 0; all if not given. The late ones
    alone save most of the memory; last-blocks trains these blocks whole."""
    n_objects: int = Field(25, ge=1)
    """Objects of a patch that are prompted at most; drawn at random."""
    n_sub_iterations: int = Field(8, ge=1, le=64)
    """How often the prompts of a step are corrected by clicks, the first answer included."""
    mask_probability: float = Field(0.5, ge=0, le=1)
    """How often the answer before is given back as a mask prompt."""
    box_distortion: float = Field(0.025, ge=0, le=0.5)
    """How far the edges of a box prompt are moved outwards at most, in lengths of that side."""
    n_samples: int | None = Field(None, ge=1)
    """Patches of an epoch over all images, instead of --patches-per-image for each. Where
    embeddings are kept, as many different patches are encoded at most."""
    use_min_instance_sampler: bool = True
    """Take patches with --min-instances objects in them; off, patches from anywhere, as suits
    patches as large as the images."""
    cache_embeddings: bool = True
    """Encode each patch once and train on what is kept on disk, with --mode decoder. The patches
    lie on a grid over the images then, instead of anywhere."""
    copies: int = Field(4, ge=1, le=64)
    """With --cache-embeddings, the versions of each patch that are encoded: the first as it is,
    the others augmented."""
    val_patches: int = Field(16, ge=1)
    """How many patches to validate on at most, evenly spread over the validation images."""
    calibrate: bool = True
    """Find the thresholds of automatic segmentation on the validation images when training is
    done; off, those of the model that training started from stay."""
    export_path: Path | None = None
    """Also write the model in micro-SAM's own format when training is done: a file, or a folder."""
    checkpoint_name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of that file, without its ending, where --export-path is a folder."""

    patch_size: int = Field(512, ge=16, le=16384)
    """Height and width of a training patch in pixels; smaller images are padded. Prediction cuts
    tiles of this size, so that cells look as large as they did in training."""
    min_instance_size: int = Field(25, ge=1)
    """Pixels that an object must have inside the patch to count for --min-instances. Smaller pieces
    are taken neither for objects nor for background: nothing is learned from them."""
    batch_size: int = Field(1, ge=1)
    """Patches in a batch, on each device."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate, reached after the warm-up."""
    early_stopping: int = Field(10, ge=0)
    """Stop after this many validations without a better score; 0 never does."""
    average: float = Field(0.0, ge=0, lt=1)
    """Validate and keep a running average of the weights, with this decay per step; 0 is off."""

    @field_validator("patch_size", mode="before")
    @classmethod
    def _one_number_for_squares(cls, value: object) -> object:
        """Config files may give both sides."""
        if not isinstance(value, list | tuple):
            return value
        if len(value) != 2 or value[0] != value[1]:
            raise ValueError("patches are squares: give one number")
        return value[0]

    @field_validator("checkpoint", "export_path")
    @classmethod
    def _from_any_directory(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="after")
    def _planes(self) -> MicrosamOptions:
        if self.patch_depth != 1:
            raise ValueError("--patch-depth: microsam sees single planes, so it must be 1")
        if self.swap_depth_probability:
            raise ValueError("--swap-depth-probability: microsam sees single planes")
        if self.augment_slices != "same":
            raise ValueError("--augment-slices: microsam sees single planes, there are no others")
        return self

    @model_validator(mode="after")
    def _options_act(self) -> MicrosamOptions:
        self._start_acts()
        self._mode_acts()
        self._peft_acts()
        self._sampling_acts()
        if self.checkpoint_name is not None and self.export_path is None:
            raise ValueError("--checkpoint-name names the file in --export-path, which is missing")
        return self

    def _start_acts(self) -> None:
        if self.checkpoint is not None and self.model_type in RANDOM:
            raise ValueError(
                f"--checkpoint does nothing with --model-type {self.model_type}, which starts from"
                " random weights"
            )

    def _mode_acts(self) -> None:
        if self.mode in ("instances", "decoder"):
            self.refuse_idle(
                ("n_objects", "n_sub_iterations", "mask_probability", "box_distortion"),
                f"no prompts are trained with --mode {self.mode}",
            )
        if self.mode == "decoder":
            self.refuse_idle(
                ("peft", "freeze", "recompute"), "--mode decoder freezes the encoder whole"
            )
        if self.mode == "instances" and self.freeze:
            if "image_encoder" in self.freeze:
                raise ValueError("--freeze image_encoder with --mode instances is --mode decoder")
            raise ValueError("--freeze: --mode instances trains no answers to prompts")
        if self.mode == "interactive":
            if {*self.freeze} == {"image_encoder", "prompt_encoder", "mask_decoder"}:
                raise ValueError("--freeze leaves nothing to train")
            self.refuse_idle(("calibrate",), "--mode interactive trains no decoder")
        if "image_encoder" in self.freeze and self.peft != "none":
            raise ValueError("--freeze image_encoder and --peft exclude each other")
        if self.n_sub_iterations == 1:
            self.refuse_idle(("mask_probability",), "only with --n-sub-iterations of 2 and more")

    def _peft_acts(self) -> None:
        if self.peft == "none":
            self.refuse_idle(("lora_rank", "lora_alpha", "peft_blocks"), "only with --peft")
        if self.peft not in RANKED:
            self.refuse_idle(("lora_rank",), f"--peft {self.peft} has no rank")
        if self.peft not in ("lora", "qlora"):
            self.refuse_idle(("lora_alpha",), f"--peft {self.peft} has no such factor")
        if self.peft == "last-blocks" and not self.peft_blocks:
            raise ValueError("--peft last-blocks needs --peft-blocks, such as 10 and 11 of vit_b")
        if self.peft == "adaptformer" and self.export_path is not None:
            raise ValueError(
                "--export-path and --peft adaptformer exclude each other: what it adds does not"
                " fit into plain weights, which micro-SAM reads"
            )

    def _sampling_acts(self) -> None:
        if not self.use_min_instance_sampler:
            self.refuse_idle(("min_instances",), "only with --use-min-instance-sampler")
        if self.n_samples is not None:
            self.refuse_idle(("patches_per_image",), "--n-samples says how many patches in all")
        if self.mode != "decoder":
            self.refuse_idle(("cache_embeddings", "copies"), "only with --mode decoder")
        elif not self.cache_embeddings:
            self.refuse_idle(("copies",), "only with --cache-embeddings")
        else:
            self.refuse_idle(
                ("balance_classes", "cache", "cache_rate"),
                "patches lie on a grid with --cache-embeddings, and are read once",
            )
            if self.copies == 1:
                augmenting = [name for names in AugmentOptions.panels.values() for name in names]
                self.refuse_idle(augmenting, "--copies 1 keeps each patch as it is")

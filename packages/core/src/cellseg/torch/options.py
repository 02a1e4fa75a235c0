"""Options that every training on PyTorch takes; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.options import Options


class FitOptions(Options):
    """How ``cellseg.torch.training.fit`` trains, for learners that say themselves how fast their
    parts learn (``Learner.rates``); a backend's options inherit these."""

    panels: ClassVar = {
        "Run": ("fast_dev_run",),
        "Optimiser": (
            "batch_size",
            "accumulate",
            "weight_decay",
            "warmup_steps",
            "decay_epochs",
            "clip",
            "average",
        ),
        "Hardware": ("precision", "devices", "strategy", "num_workers", "threads"),
        "Checkpoints and logs": (
            "validate_every",
            "preview_every",
            "checkpoint_every",
            "save_top_k",
            "early_stopping",
            "logger",
        ),
    }

    fast_dev_run: bool = False
    """Train a single step and validate on a single batch, however many --epochs there are, to see
    whether all of it works: checkpoint, model and report are written. The model is of no use."""
    batch_size: int = Field(8, ge=1)
    """Patches in a batch, on each device."""
    accumulate: int = Field(1, ge=1)
    """Batches that make one step of the optimiser: more, and a large batch fits a small memory."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW; norms and biases are spared."""
    warmup_steps: int = Field(20, ge=0)
    """Steps in which the learning rate rises from near 0 to its peak."""
    decay_epochs: int = Field(100, ge=0)
    """The learning rate falls along a cosine to a hundredth of its peak in this many epochs, and
    stays there; 0 keeps it at its peak. It does not depend on --epochs, so that a run that is
    prolonged later equals one that was long from the start."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; a larger one is scaled down. 0 clips nothing."""
    average: float = Field(0.99, ge=0, lt=1)
    """Validate and keep a running average of the weights, with this decay per step; 0 is off."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Arithmetic: 16-mixed needs CUDA; both mixed ones halve the memory of a GPU."""
    devices: int = Field(1, ge=1)
    """How many GPUs (or processes, on a CPU) train together."""
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed_stage_2"] = "auto"
    """How several devices share the work; auto is ddp if there are several."""
    num_workers: int | None = Field(None, ge=0)
    """Processes that prepare patches for each device; by default none on a CPU, and a few beside a
    GPU. The patches do not depend on it."""
    threads: int | None = Field(None, ge=1)
    """Threads that compute on a CPU; by default as many as PyTorch takes, one for each core. Small
    networks are faster with 1, and many times faster where the computer does other work too."""
    validate_every: int = Field(1, ge=1)
    """Epochs from one validation to the next; the last epoch always ends with one."""
    preview_every: int | None = Field(None, ge=0)
    """Epochs from one set of preview pictures to the next, of what the current weights do; the last
    epoch gets one too. A multiple of --validate-every; if not given, each validation draws one. 0
    draws none."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints within an epoch; 0 makes one at the end of each epoch only."""
    save_top_k: int = Field(1, ge=0)
    """Keep the weights of this many best validations. The best are the result; with 0 the last."""
    early_stopping: int = Field(0, ge=0)
    """Stop after this many validations without a better score; 0 never does."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases, where that is installed."""

    @model_validator(mode="after")
    def _previews_follow_validations(self) -> FitOptions:
        if self.preview_every and self.preview_every % self.validate_every:
            raise ValueError(
                f"--preview-every {self.preview_every} must be a multiple of --validate-every "
                f"{self.validate_every}: pictures are drawn of what a validation saw"
            )
        return self


class TorchOptions(FitOptions):
    """The same, for learners that learn at one rate."""

    panels: ClassVar = {"Optimiser": ("learning_rate",)}

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate, reached after the warm-up."""

"""Options of learning from examples; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cellseg.options import Options
from cellseg_fewshot.encoder_names import EncoderName


class FewshotOptions(Options):
    """What ``cellseg train --backend fewshot`` takes, and ``cellseg predict --examples`` too."""

    panels: ClassVar = {
        "Encoder": ("encoder", "checkpoint", "precision"),
        "Comparison": ("mode", "target_occupancy", "prototypes", "background"),
        "Refinement": ("refine", "refine_rank", "refine_steps", "refine_learning_rate"),
    }

    encoder: EncoderName | None = None
    """What sees the images. filters, the default, needs no weights: a filter bank, and a small
    network that learns from the examples; all others are downloaded once. With --checkpoint, what
    the file holds."""
    checkpoint: Path | None = None
    """A file with weights of Segment Anything, micro-SAM or SAM 2 instead of a download."""
    precision: Literal["32-true", "bf16", "fp16"] = "32-true"
    """Arithmetic of the encoder; fp16 needs a GPU."""
    mode: Literal["dense", "crop"] = "dense"
    """dense encodes each tile once and compares candidates by what the tile's features say of them;
    crop encodes a crop around each example and each candidate, and compares with one prototype."""
    target_occupancy: float | None = Field(None, ge=0.05, le=0.8)
    """Part of a crop that the object fills, with --mode crop; by default 0.2."""
    prototypes: int | None = Field(None, ge=0)
    """Prototypes of each class that the examples are condensed to, with --mode dense; 0 keeps each
    example. By default 0."""
    background: bool | None = None
    """Compare also with what lies around and between the examples, with --mode dense. On by
    default."""
    refine: bool = False
    """Tune the encoder on the examples first, by low-rank adapters; one image is enough. Not for
    filters, which always learn from the examples."""
    refine_rank: int | None = Field(None, ge=1, le=64)
    """Rank of the adapters; by default 4."""
    refine_steps: int | None = Field(None, ge=1)
    """Steps of the refinement; by default 300."""
    refine_learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate of the refinement; by default 0.003."""

    @property
    def learns_from_nothing(self) -> bool:
        """Whether the encoder is the one that needs no weights."""
        return self.checkpoint is None and self.encoder in (None, "filters")

    @field_validator("checkpoint")
    @classmethod
    def _from_any_directory(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="after")
    def _options_act(self) -> FewshotOptions:
        if self.checkpoint is not None and self.encoder == "filters":
            raise ValueError("--checkpoint does nothing with --encoder filters, which needs none")
        if self.mode == "crop":
            self.refuse_idle(
                ("prototypes", "background"),
                "--mode crop compares with one prototype, and with nothing else",
            )
        else:
            self.refuse_idle(("target_occupancy",), "only with --mode crop")
        if not self.refine:
            self.refuse_idle(
                ("refine_rank", "refine_steps", "refine_learning_rate"), "only with --refine"
            )
        if self.learns_from_nothing:
            self.refuse_idle(("refine",), "the encoder filters always learns from the examples")
            self.refuse_idle(("precision",), "the encoder filters computes in 32-true only")
        return self

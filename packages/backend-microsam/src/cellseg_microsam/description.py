"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cellseg.torch.description import ModelDescription
from cellseg.torch.sam.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Description(ModelDescription):
    """What loading a model needs to know, and the weights do not say."""

    BACKEND: ClassVar = "microsam"

    model_type: str
    """What training started from, such as ``vit_b_lm``."""
    architecture: dict[str, Any]
    """The sizes, as ``Architecture.to_dict`` gives them."""
    field: int = 0
    """Side of a training patch in pixels of the image; 0 where none is known, as of published
    models, which take images as large as the square."""
    mode: str = ""
    """What learned: ``full``, ``interactive``, ``instances`` or ``decoder``; empty for none."""
    peft: dict[str, Any] | None = None
    """The updates in the image encoder that are not part of its plain weights: keyword arguments
    of ``apply_peft``."""
    has_decoder: bool = True
    """Whether the model can segment automatically by its decoder."""
    prompts_trained: bool = False
    """Whether answers to prompts were trained along; or before, where the encoder is still the
    one that they were trained with."""

    def check(self, file: Path) -> None:
        """As of any description; the sizes must be those of an architecture."""
        Architecture.of(self.architecture)


FILE = Description.file()

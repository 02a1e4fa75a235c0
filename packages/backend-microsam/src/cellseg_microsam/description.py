"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.torch.sam.architecture import Architecture

FILE = "microsam.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What loading a model needs to know, and the weights do not say."""

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

    def save(self, directory: Path) -> None:
        """Write ``microsam.json`` into the model's directory."""
        write_atomic(directory / FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Description:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        file = directory / FILE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            description = cls(**values)
            Architecture.of(description.architecture)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}",
                hint="Give the directory of a microsam model of this version.",
            ) from error
        kinds = {"str": str, "int": int, "bool": bool}
        for each in fields(cls):
            kind = kinds.get(str(each.type))
            if kind is not None and not isinstance(getattr(description, each.name), kind):
                raise WeightsError(f"{file}: {each.name} is no {kind.__name__}.")
        return description

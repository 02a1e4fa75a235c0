"""A model directory: the weights, and what they are.

model/
    weights.safetensors       tensors under sam. and decoder.
    microsam.json             see ``description``
"""

from __future__ import annotations

from pathlib import Path

from cellseg.torch.reading import built_for
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.weights import FILE, load_weights, save_weights
from cellseg_microsam.description import Description
from cellseg_microsam.model import MicroSam


def save_model(model: MicroSam, description: Description, directory: Path) -> None:
    """Write a model.

    Raises:
        StorageError: the directory cannot be written.
    """
    description.save(directory)
    save_weights(model, directory / FILE)


def load_model(directory: Path) -> tuple[MicroSam, Description]:
    """Read what ``save_model`` wrote; the model is on the CPU, and set to evaluation.

    Raises:
        ConfigError: the encoder is MobileSAM's, which is not installed.
        WeightsError: a file is missing or damaged, or the two do not belong together.
    """
    description = Description.load(directory)
    with built_for(directory / FILE):
        model = MicroSam(Architecture.of(description.architecture))
        if description.peft is not None:
            from cellseg_microsam.peft import apply_peft

            apply_peft(model, **description.peft)
    load_weights(model, directory / FILE)
    return model.eval(), description

"""A model directory: what is remembered, and which encoder it was seen with.

model/
    fewshot.json            the encoder's description, and the numbers of the memory
    memory.safetensors      prototypes, negatives, the space in which they lie, priors
    encoder.safetensors     what of the encoder cannot be had otherwise: what was fitted, adapters,
                            weights from a file; missing where there is no such thing
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.limits import MOST_JSON, read_bytes
from cellseg.torch.reading import read_file
from cellseg.torch.weights import save_tensors
from cellseg_fewshot.magnification import Blobs
from cellseg_fewshot.memory import Memory
from cellseg_fewshot.priors import Prior
from cellseg_fewshot.similarity import Space

FILE, TENSORS, ENCODER = "fewshot.json", "memory.safetensors", "encoder.safetensors"
_HINT = "Train again, or copy the whole model directory."
_NUMBERS = ("offset", "slope", "quality", "quality_spread", "occupancy")
_TUPLES = ("kinds", "diameters", "areas")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a model directory holds."""

    encoder: Mapping[str, Any]
    """What ``encoders.describe_encoder`` gave."""
    state: Mapping[str, Tensor]
    """What ``Encoder.state`` gave; on the CPU."""
    memory: Memory
    classes: tuple[str, ...] = ()
    """Their names, ``background`` first; empty where they have none."""
    precision: str = "32-true"
    """Arithmetic of the encoder."""

    def save(self, directory: Path) -> None:
        """Write all of it.

        Raises:
            StorageError: the directory cannot be written.
        """
        memory = self.memory
        values = {name: getattr(memory, name) for name in (*_NUMBERS, *_TUPLES)}
        described = {
            "encoder": dict(self.encoder),
            "encoder_tensors": bool(self.state),
            "precision": self.precision,
            "classes": list(self.classes),
            "memory": {
                **values,
                "thresholds": dict(memory.thresholds),
                "blobs": memory.blobs and asdict(memory.blobs),
            },
        }
        write_atomic(directory / FILE, json.dumps(described, indent=1) + "\n")
        save_tensors(_tensors(memory), directory / TENSORS)
        if self.state:
            save_tensors(dict(self.state), directory / ENCODER)

    @classmethod
    def load(cls, directory: Path) -> Stored:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: a file is missing or damaged.
        """
        file = directory / FILE
        try:
            described = json.loads(read_bytes(file, MOST_JSON, WeightsError))
            encoder, values = described["encoder"], described["memory"]
            memory = _memory(values, read_tensors(directory / TENSORS))
            classes, precision = tuple(described["classes"]), str(described["precision"])
            tensors = read_tensors(directory / ENCODER) if described["encoder_tensors"] else {}
        except LookupError as error:
            raise WeightsError(
                f"{file} has no {error}: another version of cellseg wrote it, or it is damaged.",
                hint=_HINT,
            ) from error
        except (OSError, ValueError, TypeError, RecursionError, AttributeError) as error:
            raise WeightsError(f"{file} cannot be read: {error}", hint=_HINT) from error
        return cls(encoder, tensors, memory, classes, precision)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        WeightsError: it is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing.", hint=_HINT)
    tensors: dict[str, Tensor] = read_file(path)
    return tensors


def _tensors(memory: Memory) -> dict[str, Tensor]:
    priors = [memory.priors[kind] for kind in memory.kinds]
    arrays = {
        "prototypes": memory.prototypes,
        "prototype_kinds": memory.prototype_kinds,
        "negatives": memory.negatives,
        "priors.centre": [prior.centre for prior in priors],
        "priors.spread": [prior.spread for prior in priors],
    }
    if memory.space is not None and memory.peaks is not None:
        arrays |= {
            "space.centre": memory.space.centre,
            "space.axes": memory.space.axes,
            "peaks": memory.peaks,
        }
    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def _memory(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Memory:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    kinds = tuple(int(kind) for kind in values["kinds"])
    spreads = zip(kinds, arrays["priors.centre"], arrays["priors.spread"], strict=True)
    dense = "space.axes" in arrays
    return Memory(
        kinds=kinds,
        prototypes=arrays["prototypes"],
        prototype_kinds=arrays["prototype_kinds"],
        negatives=arrays["negatives"],
        priors={kind: Prior(centre, spread) for kind, centre, spread in spreads},
        space=Space(arrays["space.centre"], arrays["space.axes"]) if dense else None,
        peaks=arrays["peaks"] if dense else None,
        thresholds={str(name): float(value) for name, value in values["thresholds"].items()},
        diameters=tuple(values["diameters"]),
        areas=tuple(values["areas"]),
        blobs=None if values["blobs"] is None else Blobs(**values["blobs"]),
        **{name: float(values[name]) for name in _NUMBERS},
    )

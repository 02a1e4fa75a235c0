"""The sizes of the detector. Light: torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cellseg.torch.sam.model_types import backbone


@dataclass(frozen=True, kw_only=True)
class DetectorSizes:
    """A detector of the Anchor DETR family (Wang et al., arXiv:2109.07107)."""

    width: int = 256
    """Channels of its tokens and queries."""
    heads: int = 8
    """Heads of its attention."""
    mlp: int = 1024
    """Width of its feed-forward layers."""
    encoder_layers: int = 3
    """Layers in which the image attends to itself."""
    decoder_layers: int = 6
    """Layers in which queries attend to each other and to the image; each one answers."""
    queries: int = 900
    """Anchor points, each of which can find one cell; a square number lies on a grid at first."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DetectorSizes:
        """From what ``to_dict`` gave, also through JSON.

        Raises:
            TypeError, ValueError: it did not.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"sizes of a detector are {', '.join(sorted(names))}")
        return cls(**{name: int(value) for name, value in values.items()})

    @classmethod
    def named(cls, model_type: str) -> DetectorSizes:
        """The detector for a model of Segment Anything.

        Raises:
            ConfigError: there is no such model.
        """
        return _NAMED.get(backbone(model_type), cls())


_NAMED = {
    "small": DetectorSizes(width=128, heads=4, mlp=256, encoder_layers=1, decoder_layers=3,
                           queries=256),
    "tiny": DetectorSizes(width=32, heads=2, mlp=64, encoder_layers=1, decoder_layers=2,
                          queries=64),
}  # fmt: skip

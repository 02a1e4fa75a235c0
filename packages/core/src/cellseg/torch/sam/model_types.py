"""The models of Segment Anything, by name. Light: the command line shows them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from cellseg.errors import ConfigError

ModelType: TypeAlias = Literal[
    "vit_b",
    "vit_l",
    "vit_h",
    "vit_t",
    "vit_b_lm",
    "vit_l_lm",
    "vit_t_lm",
    "vit_b_em_organelles",
    "vit_l_em_organelles",
    "vit_t_em_organelles",
    "vit_b_histopathology",
    "vit_l_histopathology",
    "vit_h_histopathology",
    "tiny",
    "small",
]
"""micro-SAM's names; ``tiny`` and ``small`` are small networks with random weights."""

MODEL_TYPES: tuple[str, ...] = get_args(ModelType)
RANDOM = ("tiny", "small")
"""Without published weights: they start from random ones."""


def backbone(model_type: str) -> str:
    """The architecture of a model: ``vit_b_lm`` is a ``vit_b``.

    Raises:
        ConfigError: there is no such model.
    """
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"There is no model {model_type!r}.")
    return model_type if model_type in RANDOM else model_type[:5]

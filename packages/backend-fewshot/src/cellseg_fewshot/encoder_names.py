"""The encoders, by name. Light: the command line shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from cellseg.specs import PublishedModel
from cellseg.torch.sam.published import PUBLISHED as SAM
from cellseg.torch.sam2.sizes import PUBLISHED as SAM2

EncoderName: TypeAlias = Literal[
    "filters",
    "sam_vit_h_4b8939",
    "sam_vit_l_0b3195",
    "sam_vit_b_01ec64",
    "vit_b_lm",
    "vit_l_lm",
    "vit_b_em_organelles",
    "vit_l_em_organelles",
    "vit_b_histopathology",
    "vit_l_histopathology",
    "vit_h_histopathology",
    "sam2.1_hiera_tiny",
    "sam2.1_hiera_small",
    "sam2.1_hiera_base_plus",
    "sam2.1_hiera_large",
]
"""``filters`` needs no weights; then Segment Anything (arXiv:2304.02643), the generalists of
micro-SAM (doi:10.1038/s41592-024-02580-4) and of PathoSAM (arXiv:2502.00408), and SAM 2
(arXiv:2408.00714)."""

ENCODERS: tuple[str, ...] = get_args(EncoderName)


def registered(name: str) -> str:
    """What core calls published weights: ``sam_vit_h_4b8939`` are those of ``vit_h``."""
    return name[4:9] if name.startswith("sam_") else name


def published() -> tuple[PublishedModel, ...]:
    """The models whose encoders these are, by the names here."""
    models = {**SAM, **SAM2}
    return tuple(
        replace(models[registered(name)], name=name) for name in ENCODERS if name != "filters"
    )

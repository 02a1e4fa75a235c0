"""The sizes of SAM 2.1, by name, and where their weights are. Light: the command line shows them.

Nobody published checksums of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from cellseg.download.remote import Remote
from cellseg.specs import BaseWeights

Sam2Size: TypeAlias = Literal[
    "sam2.1_hiera_tiny",
    "sam2.1_hiera_small",
    "sam2.1_hiera_base_plus",
    "sam2.1_hiera_large",
    "nano",
    "micro",
]
"""Meta's names; ``nano`` and ``micro`` are small networks with random weights."""

SIZES: tuple[str, ...] = get_args(Sam2Size)
RANDOM = ("nano", "micro")
"""Without published weights: they start from random ones."""
LICENCE = "Apache-2.0"
_META = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"

PUBLISHED: Mapping[str, Remote] = {
    name: Remote(url=f"{_META}/{name}.pt", name=f"{name}.pt")
    for name in SIZES
    if name not in RANDOM
}
"""The files of the sizes that have any."""


def base_weights() -> tuple[BaseWeights, ...]:
    """The published sizes."""
    return tuple(
        BaseWeights(name=name, source=remote.url, licence=LICENCE)
        for name, remote in PUBLISHED.items()
    )


def default_side(name: str) -> int:
    """Pixels along a side of the square that a size was made for."""
    return 128 if name in RANDOM else 1024

"""The sizes of SAM 2.1, by name, and where their weights are. Light: the command line shows them.

Meta states no checksums beside the files. These are of the same files in its repositories on
Hugging Face, and as others who use the files state them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from cellseg.download.remote import Remote
from cellseg.specs import PublishedModel
from cellseg.torch.sam.published import models_folder

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

_FILES = {
    "sam2.1_hiera_tiny": (
        156008466,
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    "sam2.1_hiera_small": (
        184416285,
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    "sam2.1_hiera_base_plus": (
        323606802,
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    "sam2.1_hiera_large": (
        898083611,
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
}
"""Bytes and SHA-256."""

PUBLISHED: Mapping[str, PublishedModel] = {
    name: PublishedModel(
        name=name,
        licence=LICENCE,
        files=(
            Remote(
                url=f"{_META}/{name}.pt", name=f"{name}.pt", size=size, checksum=f"sha256:{sha256}"
            ),
        ),
        folder=models_folder,
        citation="arXiv:2408.00714",
    )
    for name, (size, sha256) in _FILES.items()
}
"""The sizes that have weights."""


def default_side(name: str) -> int:
    """Pixels along a side of the square that a size was made for."""
    return 128 if name in RANDOM else 1024

"""What ``cellseg doctor`` says of these backends. Light; heavy imports are in the functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellseg.diagnosis import needed
from cellseg.specs import Finding

if TYPE_CHECKING:
    import torch


def checks() -> Iterator[Finding]:
    """MONAI for the encoders, the mutex watershed, and the kernels of the loss."""
    yield needed("monai", "monai")
    yield needed("bioimage-cpp", "bioimage_cpp")
    yield needed("nibabel", "nibabel", 'uv pip install "cellseg-core[nifti]"')
    from cellseg.torch.kernel_checks import compared

    yield compared("kernels of the loss", _difference, 1e-5)


def _difference(device: torch.device) -> float:
    """How far the kernels are from the same in PyTorch, on the device, for a few voxels."""
    import torch

    from cellseg_vista.losses import blocks, kernels

    drawn = torch.Generator().manual_seed(0)
    embedding = torch.rand(1, 4, 64, generator=drawn)
    index = torch.arange(64)[None] % 3
    share = torch.full((1, 64), 1 / 64)
    here = blocks.means(embedding, index.int(), share, 3)
    there = kernels.means(*(x.to(device) for x in (embedding, index.int(), share)), 3)
    return float((there.cpu() - here).abs().max())

"""What ``cellseg doctor`` says of this backend. Light; heavy imports are in the functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellseg.diagnosis import installed, needed, writable
from cellseg.specs import Finding
from cellseg.torch.sam.diagnosis import segment_anything
from cellseg.torch.sam.published import models_folder

if TYPE_CHECKING:
    import torch


def checks() -> Iterator[Finding]:
    """Segment Anything, the operations on boxes, and the kernels of the losses."""
    yield from segment_anything()
    yield needed("peft", "peft")
    yield _operations()
    from cellseg.torch.kernel_checks import compared

    yield compared("kernels of the boxes", _difference, 1e-5)
    elsewhere = "Choose another folder: export MICROSAM_CACHEDIR=FOLDER"
    yield writable("models", models_folder(), elsewhere)


def _operations() -> Finding:
    """Whether torchvision's compiled part fits the installed torch."""
    try:
        import torch
        from torchvision import ops

        kept = ops.nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.1, 0.9]), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        advice = "Install them together: uv pip install --force-reinstall torch torchvision"
        return Finding("problem", "torchvision", f"does not fit torch: {error}", advice)
    assert kept.tolist() == [1]
    return Finding("ok", "torchvision", f"{installed('torchvision')}; its operations work")


def _difference(device: torch.device) -> float:
    """How far the kernels are from the same in PyTorch, for a few boxes."""
    import torch

    from cellseg_cellsam import box_kernels, box_pairs

    corners = torch.rand(2, 1, 5, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corners[0], corners[0] + corners[1]], -1)
    here = box_pairs.pairwise_overlaps(boxes, boxes)
    there = box_kernels.overlaps(boxes.to(device), boxes.to(device))
    return max(float((a - b.cpu()).abs().max()) for a, b in zip(here, there, strict=True))

"""One thread, and a small Segment Anything model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these are slower with several threads."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_sam() -> Any:
    """``segment_anything``'s ``Sam`` with about 0.1 M random weights and a square of 128 pixels,
    always the same. Its masks mean nothing, but are as stable, and as good in its own opinion, as
    those of a trained one: with the usual thresholds some of them pass, and not all."""
    torch = pytest.importorskip("torch")
    from cellseg.torch.sam.architecture import Architecture
    from cellseg.torch.sam.model import SegmentAnything
    from cellseg.torch.weights import seeded

    with seeded(0):
        sam = SegmentAnything(Architecture.named("tiny")).sam
        for name, tensor in sam.state_dict().items():
            if name.endswith("bias"):
                tensor.zero_()
            elif tensor.ndim > 1 and "pixel_" not in name:
                tensor.copy_(torch.randn(tensor.shape) * (len(tensor) / tensor.numel()) ** 0.5)
    decoder = sam.mask_decoder
    for network in decoder.output_hypernetworks_mlps:
        for parameter in network.layers[-1].parameters():
            parameter.data.mul_(1000)
    last = decoder.iou_prediction_head.layers[-1]
    last.weight.data.mul_(0.1)
    last.bias.data.fill_(0.95)
    return sam.eval()


@pytest.fixture(scope="session")
def tiny_sam_checkpoint(tiny_sam: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of ``tiny_sam`` in a file, as Segment Anything publishes its own."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "tiny_sam.pth"
    torch.save(tiny_sam.state_dict(), path)
    return path

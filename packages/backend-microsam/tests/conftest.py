"""A small model whose weights depend on nothing but their names."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_sam() -> Callable[..., Any]:
    """``make_sam(seed=1, sharp=False, **architecture)``: a ``MicroSam`` of about 0.1 M weights, set
    to evaluation, with a square of 64 pixels and a grid of 4 x 4; ``sharp`` ones have masks as
    stable as trained ones."""
    torch = pytest.importorskip("torch")
    from cellseg_microsam.architecture import Architecture
    from cellseg_microsam.model import MicroSam

    def make(seed: int = 1, sharp: bool = False, **sizes: Any) -> MicroSam:
        architecture = Architecture(
            **{
                "embed_dim": 32,
                "depth": 2,
                "heads": 2,
                "global_attention": (1,),
                "window": 2,
                "patch": 16,
                "side": 64,
                "out_channels": 32,
                "mlp_ratio": 2.0,
                "mask_channels": 4,
                "decoder_mlp": 64,
                "iou_depth": 2,
                "iou_hidden": 32,
                "unetr": (32, 16, 8, 4),
                **sizes,
            }
        )
        model = MicroSam(architecture).eval()
        for name, values in model.state_dict().items():
            if values.ndim > 1 and "pixel_" not in name:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
                drawn = torch.randn(values.shape, generator=generator)
                values.copy_(drawn / (values.numel() / len(values)) ** 0.5)
            elif name.endswith("bias"):
                values.zero_()
        if sharp:
            for network in model.sam.mask_decoder.output_hypernetworks_mlps:
                for parameter in network.layers[-1].parameters():
                    parameter.data.mul_(1000)
        return model

    return make

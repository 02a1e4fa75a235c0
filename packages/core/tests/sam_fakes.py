"""Small Segment Anything models whose weights depend on nothing but their names."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything


def small_architecture(**sizes: Any) -> Architecture:
    """About 0.1 M weights, a square of 64 pixels and a grid of 4 x 4; without a decoder."""
    small = {
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
        "unetr": None,
    }
    return Architecture(**{**small, **sizes})


def draw_weights(model: torch.nn.Module, seed: int = 1) -> None:
    """Weights that let signals through, and no biases, in place."""
    for name, values in model.state_dict().items():
        if values.ndim > 1 and "pixel_" not in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            drawn = torch.randn(values.shape, generator=generator)
            values.copy_(drawn / (values.numel() / len(values)) ** 0.5)
        elif name.endswith("bias"):
            values.zero_()


def sharpen(model: SegmentAnything) -> None:
    """Let masks be as stable as those of trained models, in place."""
    for network in model.sam.mask_decoder.output_hypernetworks_mlps:
        for parameter in network.layers[-1].parameters():
            parameter.data.mul_(1000)


def small_sam(seed: int = 1, sharp: bool = False, **sizes: Any) -> SegmentAnything:
    """A model of ``small_architecture``, set to evaluation."""
    model = SegmentAnything(small_architecture(**sizes)).eval()
    draw_weights(model, seed)
    if sharp:
        sharpen(model)
    return model

"""The decoder for automatic segmentation on a CPU: the same results at less cost.

Channels lie last. What is enlarged and then convolved is never held enlarged. What is joined and
then convolved is convolved apart and added. Norms take the rectifier before or after them along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg_microsam.normalisation import (
    batch_norm_rectified,
    instance_norm_middle,
    instance_norm_rectified,
    norm_before_enlarging,
)
from cellseg_microsam.upsampling import convolve_enlarged

if TYPE_CHECKING:
    from cellseg_microsam.unetr import UnetrDecoder


def can_decode(decoder: UnetrDecoder, embeddings: Tensor) -> bool:
    """Whether ``decode`` can do it: on a CPU, with bilinear upsampling, and not while the decoder
    is being traced, compiled or exported."""
    return (
        embeddings.device.type == "cpu"
        and not decoder.transposed
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def decode(decoder: UnetrDecoder, embeddings: Tensor) -> Tensor:
    """What ``decoder(embeddings)`` gives; see there."""
    if torch.is_autocast_enabled("cpu"):
        embeddings = embeddings.to(torch.get_autocast_dtype("cpu"))
    x = embeddings.contiguous(memory_format=torch.channels_last)
    finer = []
    z = x
    for part in (decoder.deconv1, decoder.deconv2, decoder.deconv3, decoder.deconv4):
        z = _enlarged(part, z)
        finer.append(z)
    base = decoder.base.block
    first = _convolution(instance_norm_middle(x, x.shape[1], base[0].eps), base[1])
    x = _second(base, first)
    stages = decoder.decoder
    for block, sampler, other in zip(stages.blocks, stages.samplers, finer[:3], strict=True):
        x = _stage(block.block, sampler.conv, x, other)
    x = _stage(decoder.decoder_head.block, decoder.deconv_out.conv, x, finer[3])
    return _pointwise(x, decoder.out_conv)


def _stage(block: nn.Sequential, sampler: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """Enlarge, join with the middle channels of what is that large already, convolve twice."""
    x = norm_before_enlarging(_pointwise(x, sampler), block[0].eps)
    channels = x.shape[1]
    other = instance_norm_middle(other, channels, block[0].eps)
    convolution = block[1]
    weight = convolution.weight.to(x.dtype)
    joined = convolve_enlarged(x, weight[:, :channels], _cast(convolution.bias, x))
    joined = joined.add_(F.conv2d(other, weight[:, channels:], padding=1))
    return _second(block, joined)


def _second(block: nn.Sequential, first: Tensor) -> Tensor:
    """The rest of a pair of convolutions, after the first."""
    return _convolution(instance_norm_rectified(first, block[3].eps), block[4]).relu_()


def _enlarged(part: Any, x: Tensor) -> Tensor:
    """Enlarge, convolve, normalise over the batch, rectify."""
    upsampler, convolution, norm, _ = part.block
    x = _pointwise(x, upsampler.conv)
    weight, bias = convolution.block.weight, convolution.block.bias
    if norm.training:
        x = convolve_enlarged(x, weight.to(x.dtype), _cast(bias, x))
        x, mean, variance = batch_norm_rectified(x, norm.weight, norm.bias, norm.eps)
        _track(norm, mean, variance, x.numel() // x.shape[1])
        return x
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = (bias - norm.running_mean) * factor + norm.bias
    weight = (weight * factor.view(-1, 1, 1, 1)).to(x.dtype)
    return convolve_enlarged(x, weight, _cast(bias, x)).relu_()


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Keep the running statistics, as ``BatchNorm2d`` does."""
    assert norm.momentum is not None and norm.running_mean is not None
    assert norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
    unbiased = variance * (count / max(count - 1, 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var), norm.momentum)


def _pointwise(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A convolution of single pixels; as a product of matrices, with the channels last."""
    weight = convolution.weight.flatten(1)
    return F.linear(x.permute(0, 2, 3, 1), weight, convolution.bias).permute(0, 3, 1, 2)


def _convolution(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    return F.conv2d(x, convolution.weight.to(x.dtype), _cast(convolution.bias, x), padding=1)


def _cast(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)

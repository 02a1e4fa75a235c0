"""Instance and batch normalisation on a CPU, for images with the channels last.

torch's own sum a million numbers one by one there, which costs two to three of their digits; or
they turn the image round and back. These go through it in pieces that stay in the cache, sum
accurately, take the rectifier along, and keep one image instead of two for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

_PIECE = 1 << 16
"""Numbers in a piece, for each thread."""


def instance_norm_rectified(x: Tensor, eps: float = 1e-5) -> Tensor:
    """``instance_norm(relu(x))`` of ``x``, ``(n, c, y, x)``, channels last; ``eps`` is added to the
    variance."""
    return _InstanceNorm.apply(x, eps, 0, x.shape[1], True)


def instance_norm_middle(x: Tensor, channels: int, eps: float = 1e-5) -> Tensor:
    """``instance_norm`` of the so many channels in the middle of ``x``, ``(n, c, y, x)``, channels
    last."""
    return _InstanceNorm.apply(x, eps, (x.shape[1] - channels) // 2, channels, False)


def batch_norm_rectified(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``relu(batch_norm(x))`` with the statistics of the batch.

    Args:
        x: ``(n, c, y, x)``, channels last.
        weight: ``(c,)``.
        bias: ``(c,)``.
        eps: added to the variance.

    Returns:
        That, and mean and variance of each channel ``(c,)``, without a gradient.
    """
    return _BatchNorm.apply(x, weight, bias, eps)


def norm_before_enlarging(x: Tensor, eps: float = 1e-5) -> Tensor:
    """What, enlarged twice bilinearly, is ``instance_norm(interpolate(x, scale_factor=2))``.

    Enlarging keeps the mean. The sum of squares of what is enlarged is a quadratic form of the
    pixels and their neighbours.
    """
    return _EnlargedNorm.apply(x, eps)


def _wide(x: Tensor) -> Tensor:
    """In float32, unless it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def _flat(x: Tensor) -> Tensor:
    """``(n, y * x, c)``, a view for channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _pieces(*images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same pixels of several flat images."""
    n, pixels, channels = images[0].shape
    length = max(1, _PIECE * torch.get_num_threads() // (n * channels))
    for start in range(0, pixels, length):
        yield tuple(image[:, start : start + length] for image in images)


def _moments(flat: Tensor, rectify: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel ``(n, 1, c)`` over the pixels, as ``_wide`` as these."""
    shift = None
    sums = torch.zeros(2, flat.shape[0], 1, flat.shape[2], dtype=torch.float64)
    for (piece,) in _pieces(flat):
        values = _wide(piece).relu() if rectify else _wide(piece)
        if shift is None:
            shift = values.mean(1, keepdim=True)
        values = values - shift
        sums[0] += values.sum(1, keepdim=True)
        sums[1] += values.square_().sum(1, keepdim=True)
    assert shift is not None
    first, second = sums / flat.shape[1]
    variance = (second - first.square()).clamp_(min=0)
    return (shift + first).to(shift.dtype), variance.to(shift.dtype)


def _like(image: Tensor) -> tuple[Tensor, Tensor]:
    """An empty image of the type and size of another, channels last; and it, flat."""
    empty = torch.empty(image.shape, dtype=image.dtype, memory_format=torch.channels_last)
    return empty, _flat(empty)


@contextmanager
def _writing(target: Tensor) -> Iterator[Tensor]:
    """Where to compute what ``target`` is to hold: there, or in float32."""
    if target.dtype in (torch.float32, torch.float64):
        yield target
    else:
        values = torch.empty_like(target, dtype=torch.float32)
        yield values
        target.copy_(values)


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, start: int, channels: int, rectify: bool
    ) -> Tensor:
        ctx.start, ctx.total = start, x.shape[1]
        x = x.narrow(1, start, channels)
        flat = _flat(x)
        mean, variance = _moments(flat, rectify)
        factor = (variance + eps).rsqrt()
        zero = -mean * factor  # what 0 becomes
        out, flat_out = _like(x)
        for piece, target in _pieces(flat, flat_out):
            values = _wide(piece).relu() if rectify else _wide(piece)
            with _writing(target) as result:
                torch.addcmul(zero, values, factor, out=result)
        ctx.save_for_backward(out, factor, zero.to(x.dtype))
        ctx.rectify = rectify
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, factor, zero = ctx.saved_tensors
        flat, flat_out = _flat(grad), _flat(out)
        sums = _sums(flat, flat_out) / flat.shape[1]
        mean, slope = sums.to(factor.dtype)
        part = whole = torch.empty(
            (out.shape[0], ctx.total, *out.shape[2:]),
            dtype=out.dtype,
            memory_format=torch.channels_last,
        )
        if ctx.total > out.shape[1]:
            part = whole.zero_().narrow(1, ctx.start, out.shape[1])
        offset, slope = -mean * factor, -slope * factor
        for piece, value, target in _pieces(flat, flat_out, _flat(part)):
            with _writing(target) as values:
                torch.addcmul(offset, _wide(piece), factor, out=values)
                values.addcmul_(_wide(value), slope)
                if ctx.rectify:
                    values.mul_(value > zero)
        return whole, None, None, None, None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        flat = _flat(x).flatten(0, 1)[None]
        mean, variance = _moments(flat, rectify=False)
        factor = (variance + eps).rsqrt()
        out, flat_out = _like(x)
        scale = _wide(weight) * factor
        offset = _wide(bias) - mean * scale
        for piece, target in _pieces(flat, flat_out.flatten(0, 1)[None]):
            with _writing(target) as values:
                torch.addcmul(offset, _wide(piece), scale, out=values).relu_()
        ctx.save_for_backward(x, out, weight, mean, factor)
        mean, variance = mean.flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, factor = ctx.saved_tensors
        flat, flat_x, flat_out = (_flat(image).flatten(0, 1)[None] for image in (grad, x, out))
        sums = _sums(flat, flat_x, flat_out, mean)
        sums[1] *= factor
        average, slope = (sums / flat.shape[1]).to(factor.dtype)
        scale = _wide(weight) * factor
        slope = -slope * scale * factor
        offset = -average * scale - mean * slope
        result, flat_result = _like(x)
        flat_result = flat_result.flatten(0, 1)[None]
        for piece, value, rectified, target in _pieces(flat, flat_x, flat_out, flat_result):
            piece = _wide(torch.ops.aten.threshold_backward(piece, rectified, 0))
            with _writing(target) as values:
                torch.addcmul(offset, piece, scale, out=values)
                values.addcmul_(_wide(value), slope)
        d_bias, d_weight = sums.flatten(1).to(weight.dtype)
        return result, d_weight, d_bias, None


def _sums(
    grad: Tensor, values: Tensor, rectified: Tensor | None = None, mean: Tensor | None = None
) -> Tensor:
    """Sums over the pixels, ``(2, n, 1, c)`` float64: of the gradient, and of its product with the
    values. With ``rectified``, the gradient counts where that is not 0."""
    sums = torch.zeros(2, grad.shape[0], 1, grad.shape[2], dtype=torch.float64)
    images = (grad, values) if rectified is None else (grad, values, rectified)
    for piece, value, *where in _pieces(*images):
        if where:
            piece = torch.ops.aten.threshold_backward(piece, where[0], 0)
        piece = _wide(piece)
        sums[0] += piece.sum(1, keepdim=True)
        sums[1] += (piece * (value if mean is None else value - mean)).sum(1, keepdim=True)
    return sums


class _EnlargedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        values = _wide(x)
        values = values - values.mean((2, 3), keepdim=True)
        pixels = 4 * x.shape[2] * x.shape[3]
        squares = (values * _neighbours(values)).sum((2, 3), keepdim=True)
        factor = (squares / pixels + eps).rsqrt()
        out = values.mul_(factor).to(x.dtype)
        ctx.save_for_backward(out, factor)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, factor = ctx.saved_tensors
        values, grad = _wide(out), _wide(grad)
        pixels = 4 * out.shape[2] * out.shape[3]
        slope = (grad * values).sum((2, 3), keepdim=True) / pixels
        grad = (grad - _neighbours(values).mul_(slope)).mul_(factor)
        return (grad - grad.mean((2, 3), keepdim=True)).to(out.dtype), None


def _neighbours(x: Tensor) -> Tensor:
    """The gradient of half the sum of squares of ``interpolate(x, scale_factor=2)``."""
    for axis in (2, 3):
        length = x.shape[axis]
        out = x * 1.25
        out.narrow(axis, 1, length - 1).add_(x.narrow(axis, 0, length - 1), alpha=0.375)
        out.narrow(axis, 0, length - 1).add_(x.narrow(axis, 1, length - 1), alpha=0.375)
        for edge in (0, length - 1):  # the pixel at the border is its own neighbour
            out.narrow(axis, edge, 1).add_(x.narrow(axis, edge, 1), alpha=0.375)
        x = out
    return x

"""A convolution of what was enlarged bilinearly, without enlarging it first.

Twice as large bilinearly is twice as large by repetition, and then blurred by (1, 2, 1) / 4 along
both axes. A blur and a convolution can change places. And a convolution of repeated pixels needs
fewer products: of its nine, those that meet the same pixel become one. So four ninths of the
products remain, the input is read and kept for the gradient at a quarter of the size, and the
results are the same. Beyond the border, repetition and zeros differ: a frame of two pixels is
computed the long way.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

_RIM = 2
"""Width of the frame, in pixels of the enlarged image."""
_PAYS = {torch.float32: 48, torch.bfloat16: 96}
"""From this many pixels along each axis on; smaller images are nearly all frame, and have so many
channels that turning the kernels round costs more than the products."""


def convolve_enlarged(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``conv2d(interpolate(x, scale_factor=2, mode="bilinear"), weight, bias, padding=1)``, with
    its gradient, on a CPU; quickest with channels last. Small images go the long way.

    Args:
        x: ``(n, c, y, x)``.
        weight: ``(k, c, 3, 3)`` of the same type.
        bias: ``(k,)``.

    Returns:
        ``(n, k, 2 y, 2 x)``.
    """
    if min(x.shape[2:]) < _PAYS.get(x.dtype, 48):
        return _long_way(x, weight, bias)
    return _ConvolveEnlarged.apply(x, _repeated(weight), weight, bias)


def _repeated(weight: Tensor) -> Tensor:
    """Kernel of the transposed convolution that repeats pixels and convolves them,
    ``(c, k, 4, 4)``."""
    for axis in (2, 3):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack([last, middle + last, first + middle, first], axis)
    return weight.transpose(0, 1)


def _blur(x: Tensor, bias: Tensor | None = None) -> Tensor:
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, bias, padding=1, groups=x.shape[1])


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _long_way(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(_enlarged(x), weight, bias, padding=1)


def _rim(image: Tensor, side: int, width: int = _RIM, *, corners: bool = True) -> Tensor:
    """A view of the pixels at one side: 0 for the first rows, 1 for the last rows, 2 for the first
    columns, 3 for the last columns. Without ``corners``, columns lack what the rows have."""
    if side < 2:
        return image[:, :, :width] if side == 0 else image[:, :, -width:]
    if not corners:
        image = image[:, :, _RIM:-_RIM]
    return image[..., :width] if side == 2 else image[..., -width:]


def _rim_result(strip: Tensor, weight: Tensor, bias: Tensor | None, side: int) -> Tensor:
    """The result in the frame at one side, from the two pixels of ``x`` there."""
    enlarged = _rim(_enlarged(strip), side, _RIM + 1)
    across = (1, 0) if side % 2 == 0 else (0, 1)  # zeros beyond the border, and none within
    padding = (1, 1, *across) if side < 2 else (*across, 1, 1)
    out = F.conv2d(F.pad(enlarged, padding), weight, bias)
    return out if side < 2 else out[:, :, _RIM:-_RIM]


class _ConvolveEnlarged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, repeated: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, repeated, weight)
        with torch.autocast("cpu", enabled=False):
            out = _blur(F.conv_transpose2d(x, repeated, stride=2, padding=1), bias)
            for side in range(4):
                result = _rim_result(_rim(x, side), weight, bias, side)
                _rim(out, side, corners=False).copy_(result)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, repeated, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            blurred = _blur(grad)
            for side in range(4):  # the frame came another way
                part = _rim(grad, side, _RIM + 1)
                frame = torch.zeros_like(part)
                rim = _rim(frame, side, corners=False)
                rim.copy_(_rim(part, side, corners=False))
                _rim(blurred, side, _RIM + 1).sub_(_blur(frame))
            d_x, d_repeated, _ = torch.ops.aten.convolution_backward(
                blurred, x, repeated, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1,
                [wants[0], True, False],
            )  # fmt: skip
            d_weight = torch.zeros_like(weight)
            for side in range(4):
                with torch.enable_grad():
                    strip = _rim(x, side).detach().requires_grad_()
                    kernel = weight.detach().requires_grad_()
                    out = _rim_result(strip, kernel, None, side)
                grads = torch.autograd.grad(out, (strip, kernel), _rim(grad, side, corners=False))
                d_weight += grads[1]
                if wants[0]:
                    _rim(d_x, side).add_(grads[0])
        d_bias = grad.sum((0, 2, 3)) if wants[3] else None
        return d_x, d_repeated, d_weight, d_bias

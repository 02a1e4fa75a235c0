"""The sums of ``cellseg_cellsam.mask_losses`` and their gradient on CUDA, as Triton kernels.

Each is one pass. A program sums over some pixels of one mask; the parts are added in a fixed
order. The gradient keeps no map of the forward pass: it computes the outlines around each pixel
again from the 25 logits there, which costs less than to read what would have been written.

Checked through Triton's interpreter on a CPU only; how fast the kernels are on a GPU has not been
measured.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch  # noqa: TID253
import triton
import triton.language as tl
from torch import Tensor  # noqa: TID253

from cellseg_cellsam.mask_losses import SQUARED, SUMS

_PIXELS = 512
"""Pixels of a program, a power of 2."""


def pixel_sums(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    inner: Tensor,
    alpha: float,
    gamma: float,
    boundary: bool,
) -> Tensor:
    """``SUMS`` of each prompt, ``(p, 7)`` float32.

    Args:
        logits: ``(p, m, m)``, any floating type.
        targets: ``(p, m, m)``, 0 to 1.
        known: ``(m, m)``, weight of the pixels.
        inner: ``(m, m)``, weight of the outline; 0 at the border.
        alpha, gamma: of the focal loss.
        boundary: whether the error of the outline is summed; otherwise it is 0.
    """
    prompts, side, _ = logits.shape
    parts = triton.cdiv(side * side, _PIXELS)
    sums = torch.empty(prompts, parts, SUMS, device=logits.device)
    if sums.numel():
        with torch.cuda.device_of(logits):
            _sums[prompts, parts](
                logits, *logits.stride(), targets, *targets.stride(), known.contiguous(),
                inner.contiguous(), sums, side, alpha, gamma, SQUARED, BOUNDARY=boundary,
                SUMS=SUMS, PIXELS=_PIXELS,
            )  # fmt: skip
    return sums.sum(1)


def pixel_gradient(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    inner: Tensor,
    wanted: Tensor,
    alpha: float,
    gamma: float,
    boundary: bool,
) -> Tensor:
    """The gradient by the logits, of their shape and type, where that of the sums is ``wanted (p,
    7)``; the others as for ``pixel_sums``."""
    prompts, side, _ = logits.shape
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if gradient.numel():
        with torch.cuda.device_of(logits):
            _gradient[prompts, triton.cdiv(side * side, _PIXELS)](
                logits, *logits.stride(), targets, *targets.stride(), known.contiguous(),
                inner.contiguous(), wanted.float().contiguous(), gradient, side, alpha, gamma,
                SQUARED, BOUNDARY=boundary, SUMS=SUMS, PIXELS=_PIXELS,
            )  # fmt: skip
    return gradient


@triton.jit
def _likely(logits, of_row, of_column, y, x, side):
    inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    value = tl.load(logits + y * of_row + x * of_column, mask=inside, other=0)
    return tl.sigmoid(value.to(tl.float32))


@triton.jit
def _target(targets, of_row, of_column, y, x, side):
    inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    return tl.load(targets + y * of_row + x * of_column, mask=inside, other=0).to(tl.float32)


@triton.jit
def _outline(logits, of_row, of_column, targets, t_of_row, t_of_column, y, x, side, squared,
             DOWN: tl.constexpr, ALONG: tl.constexpr):  # fmt: skip
    """Sobel gradients along x and y of the likelihood, their magnitude, and its error; at the pixel
    that lies so far down and along."""
    gx = y * 0.0
    gy = y * 0.0
    tx = y * 0.0
    ty = y * 0.0
    for down in tl.static_range(-1, 2):
        for along in tl.static_range(-1, 2):
            if down != 0 or along != 0:
                wx = along * (2 - down * down)
                wy = down * (2 - along * along)
                here = y + (DOWN + down)
                there = x + (ALONG + along)
                p = _likely(logits, of_row, of_column, here, there, side)
                t = _target(targets, t_of_row, t_of_column, here, there, side)
                gx += wx * p
                gy += wy * p
                tx += wx * t
                ty += wy * t
    size = tl.sqrt(gx * gx + gy * gy + squared)
    return gx, gy, size, size - tl.sqrt(tx * tx + ty * ty + squared)


@triton.jit
def _sums(logits, of_prompt, of_row, of_column, targets, t_of_prompt, t_of_row, t_of_column, known,
          inner, sums, side, alpha, gamma, squared, BOUNDARY: tl.constexpr, SUMS: tl.constexpr,
          PIXELS: tl.constexpr):  # fmt: skip
    prompt = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    pixel = part * PIXELS + tl.arange(0, PIXELS)
    y = pixel // side
    x = pixel % side
    there = pixel < side * side
    logits += prompt * of_prompt
    targets += prompt * t_of_prompt
    weight = tl.load(known + pixel, mask=there, other=0).to(tl.float32)
    value = tl.load(logits + y * of_row + x * of_column, mask=there, other=0).to(tl.float32)
    t = tl.load(targets + y * t_of_row + x * t_of_column, mask=there, other=0).to(tl.float32)
    p = tl.sigmoid(value)
    wrong = tl.maximum(p + t - 2 * p * t, 1e-12)
    entropy = tl.maximum(value, 0.0) + tl.log(1 + tl.exp(-tl.abs(value))) - value * t
    focal = tl.exp2(gamma * tl.log2(wrong)) * entropy * (t * (2 * alpha - 1) + (1 - alpha))
    found = tl.where(value > 0, weight, 0.0)
    out = sums + (prompt * tl.num_programs(1) + part) * SUMS
    tl.store(out, tl.sum(focal * weight, 0))
    tl.store(out + 1, tl.sum(p * t * weight, 0))
    tl.store(out + 2, tl.sum(p * weight, 0))
    if BOUNDARY:
        at_edge = tl.load(inner + pixel, mask=there, other=0).to(tl.float32)
        _, _, _, error = _outline(logits, of_row, of_column, targets, t_of_row, t_of_column, y, x,
                                  side, squared, 0, 0)  # fmt: skip
        tl.store(out + 3, tl.sum(tl.abs(error) * at_edge, 0))
    else:
        tl.store(out + 3, 0.0)
    tl.store(out + 4, tl.sum(found * t, 0))
    tl.store(out + 5, tl.sum(found, 0))
    tl.store(out + 6, tl.sum(t * weight, 0))


@triton.jit
def _gradient(logits, of_prompt, of_row, of_column, targets, t_of_prompt, t_of_row, t_of_column,
              known, inner, wanted, gradient, side, alpha, gamma, squared, BOUNDARY: tl.constexpr,
              SUMS: tl.constexpr, PIXELS: tl.constexpr):  # fmt: skip
    prompt = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    y = pixel // side
    x = pixel % side
    there = pixel < side * side
    logits += prompt * of_prompt
    targets += prompt * t_of_prompt
    wanted += prompt * SUMS
    weight = tl.load(known + pixel, mask=there, other=0).to(tl.float32)
    value = tl.load(logits + y * of_row + x * of_column, mask=there, other=0).to(tl.float32)
    t = tl.load(targets + y * t_of_row + x * t_of_column, mask=there, other=0).to(tl.float32)
    p = tl.sigmoid(value)
    slope = p - p * p
    wrong = tl.maximum(p + t - 2 * p * t, 1e-12)
    entropy = tl.maximum(value, 0.0) + tl.log(1 + tl.exp(-tl.abs(value))) - value * t
    focal = (p - t) * wrong + gamma * entropy * (1 - 2 * t) * slope
    focal *= tl.exp2((gamma - 1) * tl.log2(wrong)) * (t * (2 * alpha - 1) + (1 - alpha))
    by_likely = (tl.load(wanted + 1) * t + tl.load(wanted + 2)) * weight
    if BOUNDARY:
        outline = t * 0.0
        for down in tl.static_range(-1, 2):
            for along in tl.static_range(-1, 2):
                if down != 0 or along != 0:
                    gx, gy, size, error = _outline(
                        logits, of_row, of_column, targets, t_of_row, t_of_column, y, x, side,
                        squared, down, along,
                    )  # fmt: skip
                    here = y + down
                    beside = x + along
                    inside = (here >= 0) & (here < side) & (beside >= 0) & (beside < side)
                    at_edge = tl.load(inner + here * side + beside, mask=inside & there, other=0)
                    at_edge = at_edge.to(tl.float32)
                    sign = tl.where(error > 0, at_edge, tl.where(error < 0, -at_edge, 0.0))
                    # Seen from there, this pixel lies on the other side.
                    wx = -along * (2 - down * down)
                    wy = -down * (2 - along * along)
                    outline += sign * (wx * gx + wy * gy) / size
        by_likely += tl.load(wanted + 3) * outline
    result = tl.load(wanted) * focal * weight + by_likely * slope
    out = gradient + prompt * side * side + pixel
    tl.store(out, result.to(gradient.dtype.element_ty), mask=there)

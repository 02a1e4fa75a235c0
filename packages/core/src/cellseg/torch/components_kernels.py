"""Connected components of many masks at once, as Triton kernels for CUDA.

``label`` is ``cellseg.torch.components.connected_components``. It is a union-find over pixels
(Komura, doi:10.1016/j.cpc.2015.04.015): each pixel points to the first of its run in a row, runs
that touch are united by atomic minima, and each pixel finds where its pointers end, which is the
first pixel of its component. So the result depends on no order of execution.

Checked through Triton's interpreter on a CPU only; how fast the kernels are on a GPU has not been
measured.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Literal

import torch  # noqa: TID253
import triton
import triton.language as tl
from torch import Tensor  # noqa: TID253

_BLOCK = 1024
"""Pixels of a program, a power of 2."""


def label(masks: Tensor, connectivity: Literal[4, 8]) -> Tensor:
    """``(n, y, x)`` int32: see ``components.connected_components``.

    Args:
        masks: ``(n, y, x)`` bool, with less than 2³¹ pixels in all.
        connectivity: 4 or 8.
    """
    count, height, width = masks.shape
    total = masks.numel()
    if not total:
        return masks.to(torch.int32)
    pixels = masks.contiguous().view(torch.uint8)
    parents, roots = (torch.empty(total, dtype=torch.int32, device=masks.device) for _ in range(2))
    grid = (triton.cdiv(total, _BLOCK),)
    with torch.cuda.device_of(masks):
        _point[grid](pixels, parents, total, width, BLOCK=_BLOCK)
        _unite[grid](pixels, parents, total, height, width, CORNERS=connectivity == 8, BLOCK=_BLOCK)
        _find[grid](parents, roots, total, BLOCK=_BLOCK)
    first = roots == torch.arange(total, dtype=torch.int32, device=masks.device)
    number = first.cumsum(0, dtype=torch.int32)
    labels = number.index_select(0, roots.clamp(min=0)).masked_fill_(roots < 0, 0)
    return labels.view(count, height, width)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _point(pixels, parents, total, width, BLOCK: tl.constexpr):  # fmt: skip
    """Each pixel of the masks to the first of its run, within the block; the others to -1."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tl.load(pixels + i, mask=i < total, other=0) > 0
    left = tl.load(pixels + i - 1, mask=(i < total) & (i % width > 0), other=0) > 0
    here = i.to(tl.int32)
    starts = inside & ((left == 0) | (tl.arange(0, BLOCK) == 0))
    first = tl.associative_scan(tl.where(starts, here, -1), 0, _larger)
    tl.store(parents + i, tl.where(inside, first, -1), mask=i < total)


@triton.jit
def _root(parents, i, active):
    """Where the pointers from ``i`` end, in the lanes that are active."""
    parent = tl.load(parents + i, mask=active, other=0)
    moves = active & (parent != i)
    while tl.max(moves.to(tl.int32), 0) > 0:
        i = tl.where(moves, parent, i)
        parent = tl.load(parents + i, mask=moves, other=0)
        moves = moves & (parent != i)
    return i


@triton.jit
def _join(parents, a, b, active):
    """Unite the components of ``a`` and ``b``, in the lanes that are active."""
    while tl.max(active.to(tl.int32), 0) > 0:
        a = _root(parents, a, active)
        b = _root(parents, b, active)
        low = tl.minimum(a, b)
        high = tl.maximum(a, b)
        active = active & (low != high)
        # Another program may have moved the higher root: then its new parent is to be united.
        old = tl.atomic_min(parents + high, low, mask=active)
        active = active & (old != high)
        a = tl.where(active, old, low)
        b = low


@triton.jit
def _unite(pixels, parents, total, height, width, CORNERS: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """What touches: with the left pixel where a block begins, and with those above where nothing
    else says it."""
    lane = tl.arange(0, BLOCK)
    i = tl.program_id(0).to(tl.int64) * BLOCK + lane
    x = i % width
    inside = tl.load(pixels + i, mask=i < total, other=0) > 0
    above = inside & ((i // width) % height > 0)
    west = tl.load(pixels + i - 1, mask=inside & (x > 0), other=0) > 0
    north = tl.load(pixels + i - width, mask=above, other=0) > 0
    corner = tl.load(pixels + i - width - 1, mask=above & (x > 0), other=0) > 0
    here = i.to(tl.int32)
    _join(parents, here, here - 1, west & (lane == 0))
    if CORNERS:
        other = tl.load(pixels + i - width + 1, mask=above & (x < width - 1), other=0) > 0
        _join(parents, here, here - width, north & (west == 0))
        _join(parents, here, here - width - 1, corner & (north == 0) & (west == 0))
        _join(parents, here, here - width + 1, other & (north == 0))
    else:
        _join(parents, here, here - width, north & ((west & corner) == 0))


@triton.jit
def _find(parents, roots, total, BLOCK: tl.constexpr):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    parent = tl.load(parents + i, mask=i < total, other=-1)
    root = _root(parents, parent, parent >= 0)
    tl.store(roots + i, root, mask=i < total)

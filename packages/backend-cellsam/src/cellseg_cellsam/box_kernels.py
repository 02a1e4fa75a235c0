"""All boxes against all others, as Triton kernels for CUDA: overlaps, and the costs of matching.

A program takes some boxes of one image and some of the other kind, and writes its part of the
tables in one pass: distances, intersections, unions and hulls are never in memory.

Checked through Triton's interpreter on a CPU only; how fast the kernels are on a GPU has not been
measured.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch  # noqa: TID253
import triton
import triton.language as tl
from torch import Tensor  # noqa: TID253

if TYPE_CHECKING:
    from cellseg_cellsam.box_pairs import Costs

_ROWS = 32
_COLUMNS = 64
"""Boxes of either kind that a program has at once, each a power of 2."""


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """As ``box_pairs.pairwise_overlaps``."""
    n, rows, _ = first.shape
    columns = second.shape[1]
    iou = first.new_empty(n, rows, columns, dtype=torch.float32)
    giou = torch.empty_like(iou)
    if iou.numel():
        with torch.cuda.device_of(first):
            grid = n, triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
            _overlaps[grid](
                first.contiguous(), second.contiguous(), iou, giou, rows, columns, ROWS=_ROWS,
                COLUMNS=_COLUMNS,
            )  # fmt: skip
    return iou, giou


def costs(logits: Tensor, boxes: Tensor, truth: Tensor, costs: Costs) -> Tensor:
    """As ``box_pairs.matching_costs``."""
    layers, n, rows = logits.shape
    columns = truth.shape[1]
    total = logits.new_empty(layers, n, rows, columns, dtype=torch.float32)
    if total.numel():
        with torch.cuda.device_of(logits):
            grid = layers * n, triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
            _costs[grid](
                logits.contiguous(), boxes.contiguous(), truth.contiguous(), total, n, rows,
                columns, float(costs.classes), float(costs.boxes), float(costs.giou),
                float(costs.alpha), float(costs.gamma), ROWS=_ROWS, COLUMNS=_COLUMNS,
            )  # fmt: skip
    return total


@triton.jit
def _load(boxes, box, there):
    """The four numbers of boxes."""
    at = boxes + box * 4
    a = tl.load(at, mask=there, other=0).to(tl.float32)
    b = tl.load(at + 1, mask=there, other=0).to(tl.float32)
    c = tl.load(at + 2, mask=there, other=0).to(tl.float32)
    d = tl.load(at + 3, mask=there, other=0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _pair(x0, y0, x1, y1, u0, v0, u1, v1):
    """IoU and generalised IoU of all pairs, of rows and columns."""
    wide = tl.minimum(x1[:, None], u1[None, :]) - tl.maximum(x0[:, None], u0[None, :])
    high = tl.minimum(y1[:, None], v1[None, :]) - tl.maximum(y0[:, None], v0[None, :])
    shared = tl.maximum(wide, 0.0) * tl.maximum(high, 0.0)
    union = ((x1 - x0) * (y1 - y0))[:, None] + ((u1 - u0) * (v1 - v0))[None, :] - shared
    across = tl.maximum(x1[:, None], u1[None, :]) - tl.minimum(x0[:, None], u0[None, :])
    hull = tl.maximum(y1[:, None], v1[None, :]) - tl.minimum(y0[:, None], v0[None, :])
    hull = tl.maximum(hull * across, 1.1754944e-38)
    iou = shared / tl.maximum(union, 1.1754944e-38)
    return iou, iou + (union - hull) / hull


@triton.jit
def _overlaps(first, second, ious, gious, rows, columns, ROWS: tl.constexpr,
              COLUMNS: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    x0, y0, x1, y1 = _load(first, image * rows + row, row < rows)
    u0, v0, u1, v1 = _load(second, image * columns + column, column < columns)
    iou, giou = _pair(x0, y0, x1, y1, u0, v0, u1, v1)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = (image * rows + row)[:, None] * columns + column[None, :]
    tl.store(ious + at, iou, mask=inside)
    tl.store(gious + at, giou, mask=inside)


@triton.jit
def _costs(logits, boxes, truth, totals, images, rows, columns, of_class, of_box, of_giou, alpha,
           gamma, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    layer = tl.program_id(0).to(tl.int64)
    image = layer % images
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    x, y, w, h = _load(boxes, layer * rows + row, row < rows)
    u, v, p, q = _load(truth, image * columns + column, column < columns)
    logit = tl.load(logits + layer * rows + row, mask=row < rows, other=0).to(tl.float32)
    soft = tl.log(1 + tl.exp(-tl.abs(logit)))
    yes = soft + tl.maximum(-logit, 0.0)  # minus the logarithm of the probability of a cell
    no = soft + tl.maximum(logit, 0.0)
    focal = alpha * tl.exp(-gamma * no) * yes - (1 - alpha) * tl.exp(-gamma * yes) * no
    far = tl.abs(x[:, None] - u[None, :]) + tl.abs(y[:, None] - v[None, :])
    far += tl.abs(w[:, None] - p[None, :]) + tl.abs(h[:, None] - q[None, :])
    _, giou = _pair(x - w / 2, y - h / 2, x + w / 2, y + h / 2,
                    u - p / 2, v - q / 2, u + p / 2, v + q / 2)  # fmt: skip
    total = (of_class * focal)[:, None] + of_box * far - of_giou * giou
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = (layer * rows + row)[:, None] * columns + column[None, :]
    tl.store(totals + at, total, mask=inside)

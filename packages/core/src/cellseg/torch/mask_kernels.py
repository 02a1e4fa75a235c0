"""Areas and boxes of mask proposals at the size of the image, as a Triton kernel for CUDA.

``count`` is ``cellseg.torch.mask_pixels.count``. A program interpolates a band of pixels of one
mask in registers, and adds what it finds to the mask's counts: nothing of the size of the image
is written. Products are rounded before they are added, as they are on a CPU, so the results are
equal.

Checked through Triton's interpreter on a CPU only; how fast the kernel is on a GPU has not been
measured.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch  # noqa: TID253
import triton
import triton.language as tl
from torch import Tensor  # noqa: TID253

from cellseg.torch.mask_pixels import Axis

_ROWS = 16
_COLUMNS = 128
"""Pixels of a tile, each a power of 2."""


def count(
    logits: Tensor, rows: Axis, columns: Axis, levels: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """``(n, 3)`` and ``(n, 4)`` int64: see ``mask_pixels.count``.

    Args:
        logits: ``(n, m, m)``, any floating type.
        rows: of the image.
        columns: of the image.
        levels: the thresholds, falling.
    """
    height, width = len(rows.first), len(columns.first)
    tables = [
        torch.from_numpy(table).to(logits.device)
        for axis in (rows, columns)
        for table in (axis.first.astype("int32"), axis.weights)
    ]
    areas = logits.new_zeros(len(logits), 3, dtype=torch.int32)
    # The last pixels are kept as their distance from the end: the smallest wins in all four.
    ends = torch.tensor([width, height, width, height], dtype=torch.int32, device=logits.device)
    edges = ends.repeat(len(logits), 1)
    if len(logits):
        with torch.cuda.device_of(logits):
            _count[len(logits), triton.cdiv(height, _ROWS)](
                logits, *logits.stride(), *tables, areas, edges, height, width, *levels,
                HIGH=rows.taps, WIDE=columns.taps, ROWS=_ROWS, COLUMNS=_COLUMNS,
                enable_fp_fusion=False,
            )  # fmt: skip
    last = ends[2:] - 1 - edges[:, 2:]
    boxes = torch.cat([edges[:, :2], last], 1) * (areas[:, 1:2] > 0)
    return areas.long(), boxes.long()


@triton.jit
def _count(logits, of_mask, of_row, of_column, row_first, row_weights, column_first,
           column_weights, areas, edges, height, width, upper, middle, lower, HIGH: tl.constexpr,
           WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    mask = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = tl.load(row_first + y, mask=y < height, other=0).to(tl.int64)
    base = logits + mask * of_mask + row[:, None] * of_row
    raised = tl.zeros((ROWS, COLUMNS), tl.int32)
    plain = tl.zeros((ROWS, COLUMNS), tl.int32)
    lowered = tl.zeros((ROWS, COLUMNS), tl.int32)
    first = width
    last = width
    for start in range(0, width, COLUMNS):
        x = start + tl.arange(0, COLUMNS)
        column = tl.load(column_first + x, mask=x < width, other=0).to(tl.int64)
        inside = (y < height)[:, None] & (x < width)[None, :]
        values = tl.zeros((ROWS, COLUMNS), tl.float32)
        for b in tl.static_range(WIDE):
            line = tl.zeros((ROWS, COLUMNS), tl.float32)
            for a in tl.static_range(HIGH):
                here = base + a * of_row + (column + b)[None, :] * of_column
                weight = tl.load(row_weights + y * HIGH + a, mask=y < height, other=0)
                line += tl.load(here, mask=inside, other=0).to(tl.float32) * weight[:, None]
            weight = tl.load(column_weights + x * WIDE + b, mask=x < width, other=0)
            values += line * weight[None, :]
        above = (values > middle) & inside
        raised += ((values > upper) & inside).to(tl.int32)
        plain += above.to(tl.int32)
        lowered += ((values > lower) & inside).to(tl.int32)
        any_row = tl.max(above.to(tl.int32), 0) > 0
        first = tl.minimum(first, tl.min(tl.where(any_row, x, width), 0))
        last = tl.minimum(last, tl.min(tl.where(any_row, width - 1 - x, width), 0))
    some = tl.sum(plain, 1)
    tl.atomic_add(areas + mask * 3, tl.sum(tl.sum(raised, 1), 0))
    tl.atomic_add(areas + mask * 3 + 1, tl.sum(some, 0))
    tl.atomic_add(areas + mask * 3 + 2, tl.sum(tl.sum(lowered, 1), 0))
    tl.atomic_min(edges + mask * 4, first)
    tl.atomic_min(edges + mask * 4 + 1, tl.min(tl.where(some > 0, y, height), 0))
    tl.atomic_min(edges + mask * 4 + 2, last)
    tl.atomic_min(edges + mask * 4 + 3, tl.min(tl.where(some > 0, height - 1 - y, height), 0))

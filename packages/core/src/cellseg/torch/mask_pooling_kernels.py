"""Masked pooling of logits, as a Triton kernel for CUDA.

A program compares the logits of some masks with the threshold, cell by cell, and multiplies the
counts with the vectors of the cells as they are found: neither masks nor weights are ever in
memory. Counts are whole numbers, so only the sums of the vectors are rounded.

Checked through Triton's interpreter on a CPU only; how fast the kernel is on a GPU has not been
measured.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch  # noqa: TID253
import triton
import triton.language as tl
from torch import Tensor  # noqa: TID253

_MASKS = 16
_CELLS = 32
_CHANNELS = 256
"""What a program has at once, each a power of 2 and at least 16; fewer channels where there are
fewer."""


def pool(logits: Tensor, features: Tensor, factor: int, threshold: float) -> Tensor:
    """``(n, d)`` float32: the mean of the cells, weighted by their logits above the threshold; 0
    where there is none.

    Args:
        logits: ``(n, y, x)``, any floating type.
        features: ``(d, gy, gx)``, any floating type; they cover the logits.
        factor: logits along a side of a cell.
        threshold: logits above it count.
    """
    masks, height, width = logits.shape
    channels, rows, columns = features.shape
    pooled = features.new_zeros(masks, channels, dtype=torch.float32)
    wide = min(_CHANNELS, max(16, triton.next_power_of_2(channels)))
    if pooled.numel():
        with torch.cuda.device_of(logits):
            _pool[triton.cdiv(masks, _MASKS), triton.cdiv(channels, wide)](
                logits, *logits.stride(), features, *features.stride(), pooled, masks, height,
                width, channels, rows * columns, columns, threshold, FACTOR=factor, MASKS=_MASKS,
                CELLS=_CELLS, CHANNELS=wide,
            )  # fmt: skip
    return pooled


@triton.jit
def _pool(logits, of_mask, of_row, of_column, features, of_channel, of_cell_row, of_cell_column,
          pooled, masks, height, width, channels, cells, columns, threshold,
          FACTOR: tl.constexpr, MASKS: tl.constexpr, CELLS: tl.constexpr,
          CHANNELS: tl.constexpr):  # fmt: skip
    mask = tl.program_id(0).to(tl.int64) * MASKS + tl.arange(0, MASKS)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    base = logits + mask[:, None] * of_mask
    total = tl.zeros((MASKS, CHANNELS), tl.float32)
    area = tl.zeros((MASKS,), tl.float32)
    for start in range(0, cells, CELLS):
        cell = start + tl.arange(0, CELLS)
        row = cell // columns
        column = cell % columns
        counts = tl.zeros((MASKS, CELLS), tl.float32)
        for a in tl.static_range(FACTOR):
            y = row * FACTOR + a
            for b in tl.static_range(FACTOR):
                x = column * FACTOR + b
                inside = (mask < masks)[:, None] & ((cell < cells) & (y < height) & (x < width))
                here = base + (y.to(tl.int64) * of_row + x.to(tl.int64) * of_column)[None, :]
                value = tl.load(here, mask=inside, other=0).to(tl.float32)
                counts += ((value > threshold) & inside).to(tl.float32)
        at = row.to(tl.int64) * of_cell_row + column.to(tl.int64) * of_cell_column
        there = (cell < cells)[:, None] & (channel < channels)[None, :]
        vectors = tl.load(
            features + at[:, None] + channel[None, :] * of_channel, mask=there, other=0
        ).to(tl.float32)
        total = tl.dot(counts, vectors, total, input_precision="ieee")
        area += tl.sum(counts, 1)
    total = total / tl.maximum(area, 1.0)[:, None]
    found = (mask < masks)[:, None] & (channel < channels)[None, :]
    tl.store(pooled + mask[:, None] * channels + channel[None, :], total, mask=found)

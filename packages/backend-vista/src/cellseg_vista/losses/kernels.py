"""The discriminative loss's work on voxels, as Triton kernels for CUDA.

The functions, their arguments and what they return are those of ``cellseg_vista.losses.blocks``.
Each kernel reads the embeddings once, and none waits for the GPU. A program has a tile of
consecutive voxels in registers. It adds up each run of one object there, and the runs to the
objects by atomic additions in float64, whose order, and so the last bits, differ from call to
call.

Checked through Triton's interpreter on a CPU only; how fast the kernels are on a GPU has not been
measured.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
import triton
import triton.language as tl
from torch import Tensor  # noqa: TID253

from cellseg_vista.losses.blocks import EPSILON

_TILE = 2048
"""Numbers in a tile: voxels times channels, each a power of 2."""


def means(embedding: Tensor, index: Tensor, share: Tensor, count: int) -> Tensor:
    """``(k, e)`` float64: see ``blocks.means``."""
    total = embedding.new_zeros(count, embedding.shape[1], dtype=torch.float64)
    _launch(_means, embedding, index, share, total)
    return total


def pulls(
    embedding: Tensor, index: Tensor, share: Tensor, mean: Tensor, delta_v: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pulls ``(k,)`` float64, slopes ``(n, v)``, drags ``(k, e)`` float64: see ``blocks.pulls``."""
    pull, drag = mean.new_zeros(len(mean)), torch.zeros_like(mean)
    slopes = torch.empty_like(share)
    _launch(_pulls, embedding, index, share, mean.float(), slopes, pull, drag, delta_v, EPSILON)
    return pull, slopes, drag


def gradient(
    embedding: Tensor,
    index: Tensor,
    share: Tensor,
    slopes: Tensor,
    mean: Tensor,
    of_pull: Tensor,
    of_mean: Tensor,
) -> Tensor:
    """``(n, e, v)``, of the type of the embeddings: see ``blocks.gradient``."""
    result = torch.empty(embedding.shape, dtype=embedding.dtype, device=embedding.device)
    tables = (x.float().contiguous() for x in (mean, of_pull, of_mean))
    _launch(_gradient, embedding, index, share, slopes, *tables, result)
    return result


def _launch(kernel: Any, embedding: Tensor, index: Tensor, share: Tensor, *rest: Any) -> None:
    samples, channels, voxels = embedding.shape
    wide = triton.next_power_of_2(channels)
    long = max(32, _TILE // wide)
    with torch.cuda.device_of(embedding):
        kernel[triton.cdiv(voxels, long), samples](
            embedding, *embedding.stride(), index, share, *rest,
            channels, voxels, WIDE=wide, LONG=long,
        )  # fmt: skip


@triton.jit
def _means(embedding, of_sample, of_channel, of_voxel, index, share, total, channels, voxels,
           WIDE: tl.constexpr, LONG: tl.constexpr):  # fmt: skip
    at, line, _, block, of, part, row, both = _tile(
        embedding, of_sample, of_channel, of_voxel, index, share, channels, voxels, WIDE, LONG
    )
    begins, ends = _runs(index, at, line, of, voxels, LONG)
    _add(total, row, block * part[None, :], begins, ends, both, WIDE, LONG)


@triton.jit
def _pulls(embedding, of_sample, of_channel, of_voxel, index, share,
           mean, slopes, pull, drag, delta_v, epsilon, channels, voxels,
           WIDE: tl.constexpr, LONG: tl.constexpr):  # fmt: skip
    at, line, there, block, of, part, row, both = _tile(
        embedding, of_sample, of_channel, of_voxel, index, share, channels, voxels, WIDE, LONG
    )
    far = block - tl.load(mean + row, mask=both, other=0)
    distance = tl.sqrt(tl.sum(far * far, 0) + epsilon * epsilon)
    over = tl.maximum(distance - delta_v, 0)
    slope = 2 * over * part / distance
    tl.store(slopes + line, slope, mask=there)

    begins, ends = _runs(index, at, line, of, voxels, LONG)
    run, _ = tl.associative_scan((over * over * part, begins), 0, _joined)
    tl.atomic_add(pull + of, run.to(tl.float64), mask=ends & (run != 0))
    _add(drag, row, far * slope[None, :], begins, ends, both, WIDE, LONG)


@triton.jit
def _gradient(embedding, of_sample, of_channel, of_voxel, index, share,
              slopes, mean, of_pull, of_mean, result, channels, voxels,
              WIDE: tl.constexpr, LONG: tl.constexpr):  # fmt: skip
    at, line, there, block, of, part, row, both = _tile(
        embedding, of_sample, of_channel, of_voxel, index, share, channels, voxels, WIDE, LONG
    )
    far = block - tl.load(mean + row, mask=both, other=0)
    slope = tl.load(slopes + line, mask=there, other=0)
    slope *= tl.load(of_pull + of, mask=there, other=0)
    slant = far * slope[None, :] + tl.load(of_mean + row, mask=both, other=0) * part[None, :]
    channel = tl.arange(0, WIDE).to(tl.int64)[:, None]
    out = (tl.program_id(1).to(tl.int64) * channels + channel) * voxels + at[None, :]
    tl.store(result + out, slant, mask=both)


@triton.jit
def _tile(embedding, of_sample, of_channel, of_voxel, index, share, channels, voxels,
          WIDE: tl.constexpr, LONG: tl.constexpr):  # fmt: skip
    """The program's voxels: which they are in the sample and in the batch, whether they are there;
    embeddings, objects, shares; the objects' rows in tables, and what of these is there."""
    sample = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * LONG + tl.arange(0, LONG)
    channel = tl.arange(0, WIDE).to(tl.int64)[:, None]
    line = sample * voxels + at
    there = at < voxels
    both = (channel < channels) & there[None, :]
    here = sample * of_sample + channel * of_channel + at[None, :] * of_voxel
    block = tl.load(embedding + here, mask=both, other=0).to(tl.float32)
    of = tl.load(index + line, mask=there, other=-1)
    part = tl.load(share + line, mask=there, other=0)
    row = of.to(tl.int64)[None, :] * channels + channel
    return at, line, there, block, of, part, row, both


@triton.jit
def _runs(index, at, line, of, voxels, LONG: tl.constexpr):
    """Where runs of one object begin and end within the tile."""
    lane = tl.arange(0, LONG)
    before = tl.load(index + line - 1, mask=(lane > 0) & (at < voxels), other=-1)
    after = tl.load(index + line + 1, mask=(lane < LONG - 1) & (at + 1 < voxels), other=-1)
    return (of != before).to(tl.int32), of != after


@triton.jit
def _add(table, row, values, begins, ends, both, WIDE: tl.constexpr, LONG: tl.constexpr):
    """Add the sums of runs to their rows; those that are 0, as the background's are, cost none."""
    begins = tl.broadcast_to(begins[None, :], (WIDE, LONG))
    run, _ = tl.associative_scan((values, begins), 1, _joined)
    tl.atomic_add(table + row, run.to(tl.float64), mask=both & ends[None, :] & (run != 0))


@triton.jit
def _joined(one, one_begins, other, other_begins):
    return tl.where(other_begins != 0, other, one + other), one_begins | other_begins

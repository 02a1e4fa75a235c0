"""The discriminative loss's work on voxels, in torch, block by block.

No autograd graph over voxels, no copy of the embeddings: temporary arrays are as large as one
block. Sums within a block are float32, sums of blocks float64 (float32 on Apple GPUs, which have
no other). ``cellseg_vista.losses.kernels`` has the same functions for CUDA.

In all of them: ``embedding (n, e, v)`` of any float type, ``index (n, v)`` int32 the object of
each voxel from 0 to k - 1, ``share (n, v)`` the voxel's weight over the sum of its object's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch  # noqa: TID253
from scipy.sparse import csc_array
from torch import Tensor  # noqa: TID253

EPSILON = 1e-6
"""Added in squares to distances, which thereby have a gradient at 0."""
_BLOCK = 1 << 13


def means(embedding: Tensor, index: Tensor, share: Tensor, count: int) -> Tensor:
    """``(k, e)``: Σ share e of each object."""
    total = _wide(embedding, count, embedding.shape[1])
    for block, of, part in _blocks(embedding, index, share):
        total += _sums(block, part, of, count)
    return total


def pulls(
    embedding: Tensor, index: Tensor, share: Tensor, mean: Tensor, delta_v: float
) -> tuple[Tensor, Tensor, Tensor]:
    """How far voxels are outside of their object's radius.

    With d = |e - μ| of a voxel and o = max(0, d - δv): Σ share o² of each object ``(k,)``; the
    slopes ``(n, v)`` 2 share o / d; and their Σ slope (e - μ) ``(k, e)``.
    """
    count = len(mean)
    table = mean.T.to(share)
    pull, drag = _wide(embedding, count, 1), _wide(embedding, count, embedding.shape[1])
    slopes = torch.empty_like(share)
    for block, of, part, slope in _blocks(embedding, index, share, slopes):
        far = block - table.index_select(1, of)
        distance = far.square().sum(0).add_(EPSILON**2).sqrt_()
        over = (distance - delta_v).relu_()
        torch.mul(over, part, out=slope)
        pull += _sums(over[None], slope, of, count)
        slope.mul_(2).div_(distance)
        drag += _sums(far, slope, of, count)
    return pull[:, 0], slopes, drag


def gradient(
    embedding: Tensor,
    index: Tensor,
    share: Tensor,
    slopes: Tensor,
    mean: Tensor,
    of_pull: Tensor,
    of_mean: Tensor,
) -> Tensor:
    """``(n, e, v)``: of_pull slope (e - μ) + of_mean share, of each voxel's object.

    Args:
        embedding: and ``index``, ``share``: as everywhere.
        slopes: of ``pulls``.
        mean: ``(k, e)``.
        of_pull: ``(k,)`` gradient of the objects' pulls.
        of_mean: ``(k, e)`` gradient of their means, with what the pulls add to it.
    """
    table, of_mean, of_pull = mean.T.to(share), of_mean.T.to(share), of_pull.to(share)
    result = torch.empty(embedding.shape, dtype=embedding.dtype, device=embedding.device)
    for block, of, part, slope, out in _blocks(embedding, index, share, slopes, result):
        far = block - table.index_select(1, of)
        far *= slope * of_pull.index_select(0, of)
        torch.addcmul(far, of_mean.index_select(1, of), part, out=out)
    return result


def _blocks(embedding: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of all tensors at the same voxels, of one sample at a time; the embeddings as floats
    of at least 32 bits."""
    real = working_type(embedding)
    size = _BLOCK if on_cpu(embedding) else 32 * _BLOCK
    for sample in zip(embedding, *others, strict=True):
        for block, *rest in zip(*(x.split(size, dim=-1) for x in sample), strict=True):
            yield block.to(real), *rest


def working_type(embedding: Tensor) -> torch.dtype:
    """Float32, or float64 if the embeddings are."""
    return torch.promote_types(embedding.dtype, torch.float32)


def on_cpu(tensor: Tensor) -> bool:
    """Whether libraries other than torch can work on ``tensor``."""
    return bool(tensor.device.type == "cpu")


def sum_type(tensor: Tensor) -> torch.dtype:
    """Float64, or what comes closest to it on the device of ``tensor``."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _sums(values: Tensor, factors: Tensor, of: Tensor, count: int) -> Tensor:
    """``(count, e)``: Σ ``(e, b)`` values times ``(b,)`` factors, by object."""
    if on_cpu(values):  # as a sparse product: three times as fast as index_add_ there
        columns = (factors.numpy(), of.numpy(), np.arange(len(of) + 1, dtype=np.int32))
        by_object = csc_array(columns, shape=(count, len(of)))
        return torch.from_numpy(by_object @ values.T.contiguous().numpy())
    return values.new_zeros(len(values), count).index_add_(1, of, values * factors).T


def _wide(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=sum_type(like), device=like.device)

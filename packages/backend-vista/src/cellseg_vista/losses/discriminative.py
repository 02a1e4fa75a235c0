"""Which voxels belong to one object: the discriminative loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import fastremap
import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253
from torch.autograd.function import once_differentiable  # noqa: TID253

from cellseg.classes import SHIFT, UNKNOWN
from cellseg_vista.losses import blocks

_SAMPLE = 32
"""Ids of labels are below 2 to the power of this."""
_PAIRS = 1 << 18


@dataclass(frozen=True)
class Margins:
    """Parameters of the discriminative loss."""

    delta_v: float = 0.5
    """Radius of an object in the embedding."""
    delta_d: float = 1.5
    """Half the distance between the means of two objects."""
    push_reach: float = 0.0
    """Objects whose centres are further apart than this many sums of their radii do not push each
    other; 0 means that all do. The radius is that of a disk, or ball, of the same size."""
    spacing: tuple[float, ...] = ()
    """Of the voxels along the spatial axes, for ``push_reach``, in any unit; empty: all alike."""


@dataclass(frozen=True)
class Terms:
    """The terms of the discriminative loss, scalars."""

    pull: Tensor
    push: Tensor
    norm: Tensor


def discriminative_loss(
    embedding: Tensor, labels: Tensor, weights: Tensor, margins: Margins
) -> Terms:
    """Discriminative loss (De Brabandere et al., arXiv:1708.02551), without a loop over objects.

    For object i with the weighted mean ``μ_i`` of its embeddings: pull is the weighted mean over
    its voxels of ``max(0, |e − μ_i| − δv)²``, averaged over objects; push the mean over pairs of
    ``max(0, 2 δd − |μ_i − μ_j|)²``; norm the mean of ``|μ_i|``. Each is computed for each class in
    each sample of the batch, averaged over the classes that the sample has, and then over the
    samples that have objects. Without any, all are 0.

    The work on voxels has a backward of its own: extra memory is the gradient and, at 16
    channels, less than half as much again, whatever the number of objects. On CUDA it is done by
    ``losses.kernels`` where Triton can be imported, else, or when torch is asked for deterministic
    algorithms, by ``losses.blocks``, with the same result up to rounding; on a CPU always by the
    latter, which is deterministic there. It can be differentiated once, by the embedding.

    Args:
        embedding: ``(n, e, *s)``, any number of spatial axes, any float type; sums are float32
            or wider.
        labels: ``(n, *s)`` int64 ids below 2³², 0 for background. They carry classes as in
            ``cellseg.classes``; plain ids are of one class. ``UNKNOWN`` voxels are left out.
        weights: ``(n, *s)`` of the voxels, at least 0; their scale within an object does not
            matter. An object whose weights are all 0 is left out.
        margins: δv, δd, and which pairs push.

    Raises:
        ValueError: the shapes do not fit each other, or the spacing; an id is too large.
    """
    shape = (len(embedding), *embedding.shape[2:])
    if not labels.shape == weights.shape == shape:
        raise ValueError(
            f"labels {tuple(labels.shape)} and weights {tuple(weights.shape)} do not fit an"
            f" embedding of {tuple(embedding.shape)}: they must be {shape}"
        )
    if margins.spacing and len(margins.spacing) != len(shape) - 1:
        raise ValueError(f"{len(margins.spacing)} spacings for {len(shape) - 1} spatial axes")
    # Sums in 16 bits would lose objects of more than a few thousand voxels.
    with torch.autocast(embedding.device.type, enabled=False):
        return _discriminative(embedding, labels, weights, margins)


def _discriminative(embedding: Tensor, labels: Tensor, weights: Tensor, margins: Margins) -> Terms:
    real = blocks.working_type(embedding)
    labelled = (labels > 0) & (labels != UNKNOWN)
    codes, index = _objects(labels, labelled)
    weights = (weights * labelled).flatten(1)
    total = torch.zeros(len(codes), dtype=blocks.sum_type(embedding), device=embedding.device)
    total.index_add_(0, index.flatten(), weights.flatten().to(total))
    counted = total > 0
    share = (weights.to(real) / torch.where(counted, total, 1).to(real)[index]).contiguous()

    mean, pull = _Voxels.apply(embedding.flatten(2), index, share, len(codes), margins.delta_v)
    place = _place(index, len(codes), labels.shape[1:], margins) if margins.push_reach else ()

    # What is left is small, and float64, which Apple GPUs do not have.
    home = "cpu" if embedding.device.type == "mps" else embedding.device
    mean, pull = mean.to(home).double(), pull.to(home).double()
    counted, *place = (x.to(home) for x in (counted, *place))
    norm = (mean.square().sum(1) + blocks.EPSILON**2).sqrt()

    # Objects are in order of sample, then class: each class of a sample is one stretch of them.
    sample, kind = codes >> _SAMPLE, np.maximum((codes & UNKNOWN) >> SHIFT, 1)
    starts = np.flatnonzero(np.diff(sample << 4 | kind, prepend=-1))
    terms, present = [], []
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        stretch = slice(int(start), int(end))
        inside = counted[stretch]
        count = inside.sum().clamp(min=1)
        push = _Push.apply(mean[stretch], inside, margins, *(x[stretch] for x in place))
        pulls, norms = ((x[stretch] * inside).sum() / count for x in (pull, norm))
        terms.append(torch.stack([pulls, push, norms]))
        present.append(inside.any())

    present = torch.stack(present).to(torch.float64)
    homes = torch.as_tensor(sample[starts], device=home)
    classes = present.new_zeros(len(labels)).index_add(0, homes, present)
    parts = present / (classes[homes] * (classes > 0).sum()).clamp(min=1)
    return Terms(*(parts @ torch.stack(terms)).to(real).to(embedding.device))


def _objects(labels: Tensor, labelled: Tensor) -> tuple[NDArray[np.int64], Tensor]:
    """The objects in order of sample and id, ``sample << 32 | id`` ``(k,)``, and the number of
    each voxel's ``(n, v)`` int32; voxels without an object have the one whose id is 0."""
    if int(labels.max()) > UNKNOWN:
        raise ValueError(f"the id {int(labels.max())} is too large: ids are below {1 << _SAMPLE}")
    samples = torch.arange(len(labels), device=labels.device) << _SAMPLE
    codes = ((labels.flatten(1) | samples[:, None]) * labelled.flatten(1)).contiguous()
    if blocks.on_cpu(codes):  # eight times as fast as torch there
        found, index = fastremap.unique(codes.numpy(), return_inverse=True)
        return found, torch.from_numpy(index).reshape(codes.shape).int()
    found, index = torch.unique(codes, return_inverse=True)
    return found.cpu().numpy(), index.int()


def _place(
    index: Tensor, count: int, shape: tuple[int, ...], margins: Margins
) -> tuple[Tensor, Tensor]:
    """The objects' centres ``(k, axes)``, and radii times the reach of their push ``(k,)``."""
    real = blocks.sum_type(index)
    spacing = margins.spacing or (1.0,) * len(shape)

    def total(values: Tensor) -> Tensor:
        # Of integers, so that the order of the additions does not matter.
        values = values.expand(index.shape[0], *shape).flatten()
        return values.new_zeros(count).index_add_(0, index.flatten(), values)

    size = total(torch.ones((), dtype=torch.int64, device=index.device)).to(real)
    axes, sums = len(shape), []
    for axis, (number, step) in enumerate(zip(shape, spacing, strict=True)):
        at = torch.arange(number, device=index.device)
        sums.append(total(at.view(-1, *[1] * (axes - 1 - axis))).to(real) * step)
    ball = math.pi ** (axes / 2) / math.gamma(axes / 2 + 1)
    radius = (size * math.prod(spacing) / ball) ** (1 / axes)
    return torch.stack(sums, 1) / size[:, None], margins.push_reach * radius


class _Voxels(torch.autograd.Function):
    """The objects' means ``(k, e)`` and pulls ``(k,)``."""

    @staticmethod
    def forward(
        ctx: Any, embedding: Tensor, index: Tensor, share: Tensor, count: int, delta_v: float
    ) -> tuple[Tensor, Tensor]:
        ctx.work = _work(embedding)
        mean = ctx.work.means(embedding, index, share, count)
        pull, slopes, drag = ctx.work.pulls(embedding, index, share, mean, delta_v)
        ctx.save_for_backward(embedding, index, share, slopes, mean, drag)
        return mean, pull

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_pull: Tensor) -> tuple[Tensor | None, ...]:
        *saved, drag = ctx.saved_tensors
        of_mean = of_mean - of_pull[:, None] * drag
        return ctx.work.gradient(*saved, of_pull, of_mean), None, None, None, None


class _Push(torch.autograd.Function):
    """The mean push of the pairs of a class, a scalar. The K × K pairs are seen in chunks, and the
    gradient is a product of such a chunk and the means: nothing is K × K × E."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, counted: Tensor, margins: Margins, *place: Tensor
    ) -> Tensor:
        push, pairs, slope = mean.new_zeros(()), mean.new_zeros(()), torch.zeros_like(mean)
        rows = max(1, _PAIRS // len(mean))
        for first in range(0, len(mean), rows):
            one, other = slice(first, first + rows), slice(first, None)
            pair = (counted[one, None] & counted[None, other]).triu(1)
            if place:
                centre, reach = place
                away = torch.cdist(centre[one], centre[other])
                pair &= away < reach[one, None] + reach[None, other]
            apart = torch.cdist(mean[one], mean[other]).square_().add_(blocks.EPSILON**2).sqrt_()
            near = (2 * margins.delta_d - apart).relu_().mul_(pair)
            push += near.square().sum()
            pairs += pair.sum()
            near /= apart
            slope[one] -= near.sum(1)[:, None] * mean[one] - near @ mean[other]
            slope[other] -= near.sum(0)[:, None] * mean[other] - near.T @ mean[one]
        pairs.clamp_(min=1)
        ctx.save_for_backward(2 * slope / pairs)
        return push / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_push: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return of_push * slope, *[None] * (len(ctx.needs_input_grad) - 1)


def _work(embedding: Tensor) -> ModuleType:
    """Where the work on voxels is done: ``losses.kernels`` or ``losses.blocks``."""
    if (
        embedding.is_cuda
        and embedding.dtype != torch.float64
        and not torch.are_deterministic_algorithms_enabled()
        and find_spec("triton")
    ):
        from cellseg_vista.losses import kernels

        return kernels
    return blocks

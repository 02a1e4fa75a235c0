"""All boxes of one kind against all of another: overlaps, and what it costs to match them.

Everything is computed in float32 and has no gradient. On CUDA it is one pass of
``cellseg_cellsam.box_kernels`` where Triton can be imported; elsewhere ``torch``, coordinate by
coordinate and in place, for all images and layers together.

One CPU thread, against ``torchvision.ops.generalized_box_iou`` and ``torch.cdist`` called for each
layer and image: 41 ms against 68 ms for 1 image of 1000 queries, 300 cells and 6 layers, and 162 ms
against 272 ms for 4 of them. Most is gained where tables are small: 1.4 ms against 5.0 ms for 4
images of 256 queries, 20 cells and 3 layers, where one call of torchvision for all pairs of the
batch takes 9 ms. Tables of many pairs are computed in parts that fit in the cache; in one go, they
took 70 ms and 251 ms, hardly less than torchvision. The assignment itself, by scipy, then takes 35
ms and 129 ms, and 0.4 ms for the small ones, so that nothing is to be gained by going further.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

_PAIRS = 1 << 16
"""Pairs that are computed at once on a CPU, so that what is between stays in its cache."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What it costs to match an answer to a cell (Carion et al., arXiv:2005.12872)."""

    classes: float = 1.0
    """Factor of the difference that calling the answer a cell makes to the focal loss."""
    boxes: float = 5.0
    """Factor of the L1 distance of the boxes, ``cx cy w h``, 0..1."""
    giou: float = 2.0
    """Factor of the negative generalised IoU (Rezatofighi et al., arXiv:1902.09630)."""
    alpha: float = 0.25
    gamma: float = 2.0
    """Of the focal loss (Lin et al., arXiv:1708.02002)."""


@torch.no_grad()
def pairwise_overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of all pairs of boxes.

    Args:
        first: ``(n, p, 4)``, ``x0 y0 x1 y1``, any floating type.
        second: ``(n, k, 4)``, likewise.

    Returns:
        Two of ``(n, p, k)`` float32: 0..1 and -1..1. The IoU of two boxes without area is 0.
    """
    if _fused(first):
        from cellseg_cellsam.box_kernels import overlaps

        return overlaps(first, second)
    left, right = _sides(first.float(), -1), _sides(second.float(), -2)
    return _overlaps(left, right)


@torch.no_grad()
def matching_costs(logits: Tensor, boxes: Tensor, truth: Tensor, costs: Costs) -> Tensor:
    """What it costs to match each answer to each cell, ``(layers, n, q, k)`` float32.

    Args:
        logits: ``(layers, n, q)``, of "is a cell", any floating type.
        boxes: ``(layers, n, q, 4)``, ``cx cy w h``.
        truth: ``(n, k, 4)``, ``cx cy w h``; images with fewer cells are filled up.
        costs: of matching.
    """
    if _fused(logits):
        from cellseg_cellsam.box_kernels import costs as fused

        return fused(logits, boxes, truth, costs)
    logits, boxes, truth = logits.float(), boxes.float(), truth.float()
    layers, n, q = logits.shape
    total = logits.new_empty(layers, n, q, truth.shape[1])
    classes = costs.classes * focal_difference(logits, costs.alpha, costs.gamma)
    rows = max(1, _PAIRS // max(1, layers * n * truth.shape[1]))
    for start in range(0, q, rows):
        part = slice(start, start + rows)
        _fill(total[:, :, part], classes[:, :, part], boxes[:, :, part], truth, costs)
    return total


def _fill(total: Tensor, classes: Tensor, boxes: Tensor, truth: Tensor, costs: Costs) -> None:
    """Write the costs of some queries."""
    here, there = boxes.unbind(-1), truth[:, None].unbind(-1)
    far = (here[0][..., None] - there[0]).abs_()
    for a, b in zip(here[1:], there[1:], strict=True):
        far += (a[..., None] - b).abs_()
    left, right = _sides(_corners(boxes), -1), _sides(_corners(truth), -2)
    giou = _overlaps(left, right)[1]
    far.mul_(costs.boxes).add_(classes[..., None])
    torch.sub(far, giou, alpha=costs.giou, out=total)


def focal_difference(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """How much larger the focal loss is if an answer is a cell than if it is none; of the shape of
    the logits."""
    p = logits.sigmoid()
    yes = -alpha * (1 - p) ** gamma * torch.nn.functional.logsigmoid(logits)
    no = -(1 - alpha) * p**gamma * torch.nn.functional.logsigmoid(-logits)
    return yes - no


def _fused(tensor: Tensor) -> bool:
    return bool(tensor.is_cuda and find_spec("triton"))


def _corners(boxes: Tensor) -> Tensor:
    centres, sides = boxes.split(2, dim=-1)
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)


def _sides(boxes: Tensor, axis: int) -> tuple[Tensor, ...]:
    """``x0 y0 x1 y1`` and area, each with an axis for the other boxes."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return tuple(x.unsqueeze(axis) for x in (x0, y0, x1, y1, (x1 - x0) * (y1 - y0)))


def _overlaps(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    wide = torch.minimum(left[2], right[2]).sub_(torch.maximum(left[0], right[0])).clamp_(min=0)
    high = torch.minimum(left[3], right[3]).sub_(torch.maximum(left[1], right[1])).clamp_(min=0)
    shared = wide.mul_(high)
    union = (left[4] + right[4]).sub_(shared)
    tiny = torch.finfo(union.dtype).tiny
    iou = shared.div_(union.clamp(min=tiny))
    across = torch.maximum(left[2], right[2]).sub_(torch.minimum(left[0], right[0]))
    hull = torch.maximum(left[3], right[3]).sub_(torch.minimum(left[1], right[1])).mul_(across)
    hull.clamp_(min=tiny)
    return iou, union.sub_(hull).div_(hull).add_(iou)

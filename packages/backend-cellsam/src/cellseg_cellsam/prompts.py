"""Boxes that a training prompts with: of some objects of a patch, and not quite right."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg_cellsam.targets import Objects

MOVED = 20.0
"""Pixels of the square by which an edge is moved at most, as in Segment Anything's own training
(Kirillov et al., arXiv:2304.02643, appendix A)."""


def drawn(objects: Objects, most: int, generator: torch.Generator) -> Objects:
    """So many of the objects at most, at random, in their order.

    Args:
        objects: of a patch.
        most: at least 1.
        generator: on the CPU.
    """
    count = len(objects.ids)
    if count <= most:
        return objects
    chosen = torch.randperm(count, generator=generator)[:most].sort().values
    chosen = chosen.to(objects.ids.device)
    return Objects(objects.ids[chosen], objects.boxes[chosen])


def noisy(boxes: Tensor, noise: float, side: int, generator: torch.Generator) -> Tensor:
    """Boxes whose edges are moved, each by itself and evenly distributed.

    Args:
        boxes: ``(k, 4)`` float32, ``x0 y0 x1 y1`` in pixels of the square.
        noise: how far at most, in lengths of the side of the box, 0 to .5, so that no edge
            passes the other one; and at most ``MOVED`` pixels.
        side: of the square; edges stay within it.
        generator: on the CPU.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    most = (noise * sides).clamp(max=MOVED)
    moved = 2 * torch.rand(boxes.shape, generator=generator) - 1
    return (boxes + moved.to(boxes.device) * most).clamp(0, side)

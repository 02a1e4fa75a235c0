"""Attention that looks at a few places of a map, and how places are told to a network."""

from __future__ import annotations

import math

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253

_LONGEST = 10000.0


class DeformableAttention(nn.Module):
    """Deformable attention (Zhu et al., arXiv:2010.04159) over one map.

    Each head of each query looks at ``points`` places within and around a box that the query
    refers to, and chooses by itself where they are and what they weigh. Time and memory do not
    grow with the map. At first heads look into different directions, and points lie at rising
    distances up to the edge of the box.

    Args:
        width: channels of queries and map, a multiple of ``heads``.
        heads: of the attention.
        points: places for each head.
    """

    def __init__(self, width: int, heads: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * points * 2)
        self.weights = nn.Linear(width, heads * points)
        self.values = nn.Conv2d(width, width, 1)
        self.out = nn.Linear(width, width)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        toward = torch.stack([angle.cos(), angle.sin()], dim=-1)
        toward = toward / toward.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(points) / max(points - 1, 1)
        with torch.no_grad():
            self.offsets.bias.copy_((toward[:, None] * steps[:, None]).flatten())

    def forward(self, queries: Tensor, boxes: Tensor, features: Tensor) -> Tensor:
        """What the queries see, ``(n, q, width)``.

        Args:
            queries: ``(n, q, width)``.
            boxes: ``(n, q, 4)``, ``cx cy w h``, 0..1 of the map.
            features: ``(n, width, y, x)``.
        """
        n, q, width = queries.shape
        shape = (n, q, self.heads, self.points)
        offsets = self.offsets(queries).view(*shape, 2).float()
        weights = self.weights(queries).view(shape).float().softmax(-1)
        at = boxes[:, :, None, None, :2] + offsets * boxes[:, :, None, None, 2:] / 2
        grid = (2 * at - 1).permute(0, 2, 1, 3, 4).flatten(0, 1)
        values = self.values(features).float()
        values = values.reshape(n * self.heads, width // self.heads, *features.shape[-2:])
        seen = functional.grid_sample(values, grid, align_corners=False)
        weights = weights.permute(0, 2, 1, 3).flatten(0, 1)
        mixed = (seen * weights[:, None]).sum(-1)
        return self.out(mixed.reshape(n, width, q).transpose(1, 2))


def sampled(features: Tensor, points: Tensor) -> Tensor:
    """A map at some points, bilinearly, ``(n, q, channels)`` float32; it goes on beyond its edge.

    Args:
        features: ``(n, channels, y, x)``.
        points: ``(n, q, 2)``, x and y, 0..1 of the map.
    """
    grid = (2 * points - 1)[:, None].float()
    seen = functional.grid_sample(
        features.float(), grid, padding_mode="border", align_corners=False
    )
    return seen[:, :, 0].transpose(1, 2)


def sines(numbers: Tensor, width: int) -> Tensor:
    """Sine encoding (Vaswani et al., arXiv:1706.03762) of numbers 0..1, ``(..., k * width)``.

    Args:
        numbers: ``(..., k)``.
        width: of the code of each number, even.
    """
    half = torch.arange(width // 2, device=numbers.device)
    phases = numbers.float()[..., None] * (2 * math.pi / _LONGEST ** (2 * half / width))
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)

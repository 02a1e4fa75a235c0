"""Where the middles of cells are: a heatmap from the levels of SAM 2's image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

_PRIOR = 0.01
"""How likely a place is the middle of a cell, before anything is learned (as in the focal loss:
Lin et al., arXiv:1708.02002)."""


class HeatHead(nn.Module):
    """Logits at a quarter of the input's resolution, from three levels of one width.

    Args:
        width: channels of each level.
        channels: to which each is reduced.
    """

    def __init__(self, width: int, channels: int = 32) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(3))
        self.mix = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, 1, 1),
        )
        nn.init.constant_(self.mix[-1].bias, -log(1 / _PRIOR - 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Of levels ``(n, width, 4g, 4g)``, ``(n, width, 2g, 2g)`` and ``(n, width, g, g)``, from
        fine to coarse: ``(n, 4g, 4g)``."""
        size = levels[0].shape[2:]
        narrow = [reduce(level) for reduce, level in zip(self.reduce, levels, strict=True)]
        wide = [
            each
            if each.shape[2:] == size
            else F.interpolate(each, size=size, mode="bilinear", align_corners=False)
            for each in narrow
        ]
        logits: Tensor = self.mix(torch.cat(wide, dim=1))
        return logits[:, 0]

"""Boxes around masks, and random pixels of them, for many masks at once."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


def boxes_of(masks: Tensor) -> Tensor:
    """Where the box of each mask begins, and where it ends.

    Args:
        masks: ``(n, y, x)`` bool, none of them empty.

    Returns:
        ``(n, 4)`` float32: x and y of the first pixel, and one past the last.
    """
    _, height, width = masks.shape
    columns, rows = masks.any(1).int(), masks.any(2).int()
    edges = (
        columns.argmax(1),
        rows.argmax(1),
        width - columns.flip(1).argmax(1),
        height - rows.flip(1).argmax(1),
    )
    return torch.stack(edges, dim=1).float()


def random_pixels(masks: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """A pixel of each mask, each as likely.

    Args:
        masks: ``(n, y, x)`` bool.
        chances: ``(n,)`` float64, from 0 to below 1: which pixel.

    Returns:
        ``(n, 2)`` int64, x and y; and ``(n,)`` bool, whether there was a pixel to draw.
    """
    counts = masks.flatten(1).cumsum(1, dtype=torch.int32)
    totals = counts[:, -1]
    wanted = (chances.to(totals.device) * totals).int() + 1
    place = torch.searchsorted(counts, wanted[:, None])[:, 0].clamp(max=counts.shape[1] - 1)
    width = masks.shape[2]
    return torch.stack([place % width, place // width], dim=1), totals > 0

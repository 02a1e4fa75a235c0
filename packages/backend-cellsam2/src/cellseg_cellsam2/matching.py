"""Which of two masks is which daughter."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


def soft_iou(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of ``(..., y, x)``, 0 to 1 each; 0 where both are empty."""
    truth = truth.to(probabilities.dtype)
    both = (probabilities * truth).sum((-2, -1))
    either = probabilities.sum((-2, -1)) + truth.sum((-2, -1)) - both
    return both / either.clamp(min=1e-6)


def swapped(masks: Tensor, daughters: Tensor) -> Tensor:
    """Whether the other order of two masks fits two daughters better, by the sum of soft IoU.

    Args:
        masks: ``(o, 2, y, x)``, 0 to 1.
        daughters: ``(o, 2, y, x)``, bool.

    Returns:
        ``(o,)`` bool.
    """
    with torch.no_grad():
        straight = soft_iou(masks, daughters).sum(1)
        crossed = soft_iou(masks.flip(1), daughters).sum(1)
        return crossed > straight

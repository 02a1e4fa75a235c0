"""What training makes small. Each term is a mean over the objects of a clip, and over clips: so a
batch of two clips is the mean of two batches of one, whatever is in them."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253
from torchvision.ops import sigmoid_focal_loss  # noqa: TID253

_ALPHA, _GAMMA = 0.25, 2.0
TERMS = ("mask", "dice", "iou", "class", "division", "heatmap")
"""The terms, as the options that weight them are called."""


class Losses:
    """Sums of the terms over frames and answers.

    Args:
        clips: how many there are in the batch.
        like: any tensor on the device.
    """

    def __init__(self, clips: int, like: Tensor) -> None:
        self._clips = clips
        self.sums: dict[str, Tensor] = {name: torch.zeros((), device=like.device) for name in TERMS}
        """By name, without weights."""

    def add(self, name: str, values: Tensor, video: Tensor) -> None:
        """Add the mean over the values of each clip; one without any adds nothing.

        Args:
            name: one of ``TERMS``.
            values: ``(m,)``.
            video: ``(m,)`` int64: the clip of each.
        """
        if len(values):
            counts = video.bincount(minlength=self._clips).to(values.dtype)
            self.sums[name] = self.sums[name] + (values / counts[video]).sum() / self._clips


def mask_losses(
    logits: Tensor, estimated: Tensor, objects: Tensor, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How wrong masks are, and how wrong the IoU is that they are thought to have.

    The focal loss (Lin et al., arXiv:1708.02002; alpha .25, gamma 2), the mean over pixels; one
    minus the Dice coefficient, with 1 added to numerator and denominator (Milletari et al.,
    arXiv:1606.04797); and the absolute error of the IoU. That of an empty mask does not count: a
    network that begins with nothing but such would be told that no mask is ever good, and takes
    long to forget it.

    Args:
        logits: ``(m, 4g, 4g)``.
        estimated: ``(m,)``, 0 to 1.
        objects: ``(m, side, side)`` bool.
        known: ``(m, side, side)`` bool; the other pixels do not count.

    Returns:
        ``(m,)`` each.
    """
    full = enlarged(logits, objects.shape[-1])
    truth, counted = objects.float(), known.float()
    focal = sigmoid_focal_loss(full, truth, _ALPHA, _GAMMA) * counted
    mask = focal.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
    likely = full.sigmoid() * counted
    both = 2 * (likely * truth).sum((1, 2))
    dice = 1 - (both + 1) / (likely.sum((1, 2)) + truth.sum((1, 2)) + 1)
    found = full.detach() > 0
    iou = (estimated - true_iou(found, objects, known)).abs() * found.flatten(1).any(1)
    return mask, dice, iou


def true_iou(found: Tensor, objects: Tensor, known: Tensor) -> Tensor:
    """IoU of masks ``(m, y, x)`` bool with objects, where ``known``: ``(m,)``; 0 where both are
    empty."""
    found = found & known
    either = (found | objects).sum((1, 2)).clamp(min=1)
    return (found & objects).sum((1, 2)) / either


def enlarged(logits: Tensor, side: int) -> Tensor:
    """Masks ``(m, q, q)`` at the size of the square, ``(m, side, side)`` float32, bilinearly."""
    return F.interpolate(
        logits.float()[:, None], (side, side), mode="bilinear", align_corners=False
    )[:, 0]


def presence_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy ``(m,)`` of logits with bools."""
    return F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")


def heatmap_losses(logits: Tensor, heat: Tensor, weight: Tensor) -> Tensor:
    """Weighted binary cross-entropy of heatmaps, the mean over the places of each image.

    Args:
        logits, heat, weight: ``(n, 4g, 4g)``.

    Returns:
        ``(n,)``.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), heat, reduction="none")
    return (each * weight).mean((1, 2))

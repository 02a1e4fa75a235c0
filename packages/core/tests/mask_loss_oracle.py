"""The losses of cellsam's masks, each term by itself in float64, and logits to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

_SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)


def oracle(
    logits: torch.Tensor,
    targets: torch.Tensor,
    known: torch.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    boundary: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Focal, dice and boundary loss, and IoU, ``(p,)`` each; differentiable."""
    x, t, w = logits.double(), targets.double(), known.double()
    focal = (sigmoid_focal_loss(x, t, alpha, gamma) * w).sum((1, 2)) / w.sum().clamp(min=1e-6)
    p = x.sigmoid()
    both, each = (w * p * t).sum((1, 2)), (w * p).sum((1, 2)) + (w * t).sum((1, 2))
    kernels = torch.stack([_SOBEL, _SOBEL.T])[:, None]

    def edges(maps: torch.Tensor) -> torch.Tensor:
        return (F.conv2d(maps[:, None], kernels).square().sum(1) + 1e-6).sqrt()

    inner = w.unfold(0, 3, 1).unfold(1, 3, 1).amin((2, 3))
    outline = ((edges(p) - edges(t)).abs() * inner).sum((1, 2)) / inner.sum().clamp(min=1e-6)
    found = (x > 0).double()
    either = ((found + t - found * t) * w).sum((1, 2)).clamp(min=1e-6)
    iou = (found * t * w).sum((1, 2)) / either
    return focal, 1 - (2 * both + 1) / (each + 1), outline * boundary, iou


def masks(count: int, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and targets ``(count, side, side)``, soft and hard; and what is known, partly."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, side, side, generator=generator)
    soft = torch.rand(count, side, side, generator=generator)
    targets = torch.where(soft > 0.5, (soft > 0.75).float(), soft)
    known = torch.ones(side, side)
    known[2:4, 1:5] = torch.rand(2, 4, generator=generator)
    known[-2:] = 0
    return logits, targets, known


def gradient(losses: Any, logits: torch.Tensor, targets: torch.Tensor, known: torch.Tensor,
             **given: Any) -> torch.Tensor:  # fmt: skip
    """By the logits, of a sum in which each term of each prompt has a weight of its own."""
    leaf = logits.detach().clone().requires_grad_()
    terms = losses(leaf, targets, known, **given)[:3]
    weights = [1.3, 0.7, 2.1]
    along = torch.linspace(0.5, 1.5, len(logits), dtype=torch.float64)
    sum(
        w * (along * term.double()).sum() for w, term in zip(weights, terms, strict=True)
    ).backward()
    assert leaf.grad is not None
    return leaf.grad

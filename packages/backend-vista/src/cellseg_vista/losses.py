"""The losses: which pixels are cells, how deep they lie, and which belong together."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

_EPSILON = 1e-6


@dataclass(frozen=True)
class Margins:
    """Parameters of the discriminative loss."""

    delta_v: float = 0.5
    """Radius of a cell in the embedding."""
    delta_d: float = 1.5
    """Half the distance between the means of two cells."""
    push_reach: float = 0.0
    """Cells whose centres are further apart than this many sums of their radii do not push each
    other; 0 means that all do."""


@dataclass(frozen=True)
class Terms:
    """The terms of the discriminative loss, scalars."""

    pull: Tensor
    push: Tensor
    norm: Tensor


def semantic_loss(
    logits: Tensor, labels: Tensor, ce_weight: float = 0.5, dice_weight: float = 0.5
) -> Tensor:
    """Cross-entropy plus soft Dice (arXiv:1606.04797), the mean over the classes that occur.

    Args:
        logits: ``(n, classes, y, x)``.
        labels: ``(n, y, x)`` class of each pixel.
        ce_weight: of the cross-entropy.
        dice_weight: of the Dice loss.
    """
    logits = logits.float()
    loss = ce_weight * F.cross_entropy(logits, labels)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    both = (logits.softmax(1) * truth).sum((0, 2, 3))
    sizes = (logits.softmax(1) + truth).sum((0, 2, 3))
    dice = (2 * both + _EPSILON) / (sizes + _EPSILON)
    present = truth.sum((0, 2, 3)) > 0
    return loss + dice_weight * (1 - dice)[present].mean()


def discriminative_loss(
    embedding: Tensor, labels: Tensor, weights: Tensor, margins: Margins
) -> Terms:
    """Discriminative loss (De Brabandere et al., arXiv:1708.02551), without a loop over cells.

    For cell i with the weighted mean ``μ_i`` of its embeddings: pull is the weighted mean over its
    pixels of ``max(0, |e − μ_i| − δv)²``, averaged over cells; push the mean over pairs of
    ``max(0, 2 δd − |μ_i − μ_j|)²``; norm the mean of ``|μ_i|``. Each is computed for each image
    of the batch, and averaged over those that have cells. Without any, all are 0.

    Args:
        embedding: ``(n, e, y, x)``.
        labels: ``(n, y, x)`` instance ids, 0 for background.
        weights: ``(n, y, x)`` of the pixels; their scale does not matter.
        margins: δv, δd, and which pairs push.
    """
    # Sums in 16 bits would lose cells of more than a few thousand pixels.
    with torch.autocast(embedding.device.type, enabled=False):
        return _discriminative(embedding.float(), labels, weights.float(), margins)


def _discriminative(embedding: Tensor, labels: Tensor, weights: Tensor, margins: Margins) -> Terms:
    where = labels.nonzero(as_tuple=True)
    if len(where[0]) == 0:
        nothing = embedding.sum() * 0
        return Terms(nothing, nothing, nothing)
    pixels = embedding.movedim(1, -1)[where]
    image, row, column = where
    step = int(labels.max()) + 1
    cells, of = torch.unique(image * step + labels[where], return_inverse=True)
    count = len(cells)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros((count, *values.shape[1:])).index_add(0, of, values)

    weight = weights[where]
    weight = weight / total(weight)[of]
    mean = total(pixels * weight[:, None])
    away = _length(pixels - mean[of])
    pulls = total(weight * F.relu(away - margins.delta_v).square())

    home = cells // step
    cells_at_home = torch.bincount(home, minlength=len(labels))
    images = (cells_at_home > 0).sum()
    share = 1 / (cells_at_home[home] * images)

    pairs = torch.triu(home[:, None] == home[None, :], diagonal=1)
    if margins.push_reach > 0:
        area = total(torch.ones_like(weight))
        centre = total(torch.stack([row, column], 1).float()) / area[:, None]
        radius = (area / torch.pi).sqrt()
        reach = margins.push_reach * (radius[:, None] + radius[None, :])
        pairs &= torch.cdist(centre, centre) < reach
    one, other = pairs.nonzero(as_tuple=True)
    apart = _length(mean[one] - mean[other])
    pushes = F.relu(2 * margins.delta_d - apart).square()
    pairs_at_home = torch.bincount(home[one], minlength=len(labels))
    push = (pushes / (pairs_at_home[home[one]] * images)).sum()
    return Terms((pulls * share).sum(), push, (_length(mean) * share).sum())


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length, with a gradient at 0."""
    return (vectors.square().sum(-1) + _EPSILON**2).sqrt()

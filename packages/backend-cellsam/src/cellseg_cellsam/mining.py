"""Online hard negative mining: the prompts of an image that are answered worst count more."""

from __future__ import annotations

import math

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

LEAST, MOST = 1.2, 2.5
"""Weights of the least and of the most wrong of the hard prompts, where they are weighted."""


def mining_weights(
    losses: Tensor, share: float, weight: float = 2.0, *, weighted: bool = False
) -> Tensor:
    """How much each prompt of one image counts (after Shrivastava et al., arXiv:1604.03540).

    The share of the prompts whose loss is largest, rounded up, is hard; the others count 1. Losses
    times these weights are divided by the number of prompts and not by the sum of the weights: so
    hard prompts count more, and none counts less than without mining; the mean loss is larger, with
    one prompt ``weight`` times as large.

    Args:
        losses: ``(p,)``, the weighted sum of the terms of each; no gradient passes.
        share: of the prompts, 0 to 1, without 0.
        weight: of hard prompts.
        weighted: instead, hard prompts count from ``LEAST`` to ``MOST``, in proportion to where
            their losses lie between the least and the largest of the hard ones; where these are
            equal, as of a single one, ``MOST``.

    Returns:
        ``(p,)`` float32. Of equal losses, the first one is the harder one.
    """
    losses = losses.detach().float()
    weights = torch.ones_like(losses)
    if not len(losses):
        return weights
    # Rounded, so that .1 of 10 is 1 in floating point as well.
    count = min(len(losses), max(1, math.ceil(round(share * len(losses), 6))))
    values, order = losses.sort(descending=True, stable=True)
    hard = values[:count]
    if weighted:
        range_ = hard[0] - hard[-1]
        along = torch.where(range_ > 0, (hard - hard[-1]) / range_.clamp(min=1e-12), 1.0)
        weights[order[:count]] = LEAST + (MOST - LEAST) * along
    else:
        weights[order[:count]] = weight
    return weights

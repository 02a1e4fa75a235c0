"""Of which class voxels are: cross-entropy and soft Dice."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg_vista.losses.blocks import sum_type

_UNKNOWN = -100
_EPSILON = 1e-6


@dataclass(frozen=True)
class SemanticTerms:
    """The terms of the semantic loss, float32 scalars."""

    ce: Tensor
    dice: Tensor


def semantic_loss(
    logits: Tensor,
    classes: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = _UNKNOWN,
) -> SemanticTerms:
    """Cross-entropy, and soft Dice (arXiv:1606.04797) as the mean over the classes that occur.

    Voxels that are left out count in neither; when none is left, both terms are 0. Dice sums over
    the whole batch, in float64 (float32 on Apple GPUs, which have no other): millions of float32
    numbers, added up one by one, lose the last of them. No one-hot copy of the classes is made.

    Args:
        logits: ``(n, k, *s)``, any number of spatial axes, any float type.
        classes: ``(n, *s)`` int64, the class of each voxel from 0 to k - 1; -100 where it is not
            known, which is left out.
        class_weights: ``(k,)``, of the voxels of each class in the cross-entropy, whose mean is
            the weighted one, as in torch. None: all alike. Dice has no weights.
        ignore_index: a class that is left out, too.

    Raises:
        ValueError: ``class_weights`` are not k numbers.
    """
    count = logits.shape[1]
    if class_weights is not None and class_weights.shape != (count,):
        raise ValueError(f"class_weights has shape {tuple(class_weights.shape)}, not ({count},)")
    with torch.autocast(logits.device.type, enabled=False):
        log = logits.float().flatten(2).log_softmax(1)
        truth = classes.flatten(1)
        known = (truth != _UNKNOWN) & (truth != ignore_index)
        truth = torch.where(known, truth, 0)
        here = known.to(log.dtype)
        at_truth = log.gather(1, truth[:, None])[:, 0]

        weight = here if class_weights is None else here * class_weights.to(log)[truth]
        ce = -_over(torch.where(known, at_truth * weight, 0).sum(), weight.sum())

        def by_class(values: Tensor) -> Tensor:
            values = values.flatten().to(sum_type(values))
            return values.new_zeros(count).index_add(0, truth.flatten(), values)

        sizes = by_class(here)
        both = by_class(at_truth.exp() * here)
        given = torch.bmm(log.exp(), here[:, :, None]).sum((0, 2)).to(both)
        dice = (2 * both + _EPSILON) / (given + sizes + _EPSILON)
        occurs = (sizes > 0).to(dice)
        return SemanticTerms(ce, _over(((1 - dice) * occurs).sum(), occurs.sum()).to(ce))


def _over(total: Tensor, count: Tensor) -> Tensor:
    """The quotient; ``total``, which is 0, where ``count`` is 0."""
    return total / torch.where(count > 0, count, 1)

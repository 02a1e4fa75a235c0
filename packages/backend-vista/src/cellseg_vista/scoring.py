"""One number for how good a segmentation is, to choose weights and thresholds by."""

from __future__ import annotations

from cellseg.metrics import THRESHOLDS, Tally

NOTHING = Tally(
    thresholds=THRESHOLDS,
    matched=(0,) * len(THRESHOLDS),
    matched_iou=(0.0,) * len(THRESHOLDS),
)
"""To add tallies to."""
_DENSE = 0.8


def is_dense(known: int, labelled: int) -> bool:
    """Whether objects fill the volume, as in electron microscopy.

    Args:
        known: voxels whose label is known.
        labelled: those of them that belong to objects.
    """
    return labelled > _DENSE * known


def quality(total: Tally, dense: bool) -> float:
    """From 0 to 1: the mean of the F1 at an IoU of 0.5 and of its mean over the thresholds.

    Where objects fill the volume, it is the mean of that and of 1 - adapted Rand error: few large
    false joins matter there as much as many small pieces.

    Args:
        total: of all that is scored together.
        dense: from ``is_dense``.
    """
    objects = total.n_true + total.n_pred
    mean = sum(total.matched) / len(total.thresholds)
    matched = (total.matched[0] + mean) / objects if objects else 0.0
    if not dense:
        return matched
    together = total.together_true + total.together_pred
    return (matched + (2 * total.together_both / together if together else 0.0)) / 2

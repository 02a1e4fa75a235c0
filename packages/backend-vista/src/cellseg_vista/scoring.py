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

    Where objects fill the volume, it is 1 - the adapted Rand error, by which segmentations of
    neurites are ranked (Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142): they run out
    of a patch in many small pieces, few of which an F1 would find.

    Args:
        total: of all that is scored together.
        dense: from ``is_dense``.
    """
    if dense:
        together = total.together_true + total.together_pred
        return 2 * total.together_both / together if together else 0.0
    objects = total.n_true + total.n_pred
    mean = sum(total.matched) / len(total.thresholds)
    return (total.matched[0] + mean) / objects if objects else 0.0

"""Scores of instance segmentation, all from the overlap table.

A table is first boiled down to a `Tally`: sums that can be added up over images. Scores are
ratios of those sums, so the pooled scores of many images are ratios of sums, not means of ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.metrics.matching import match
from cellseg.metrics.table import OverlapTable

THRESHOLDS: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The IoU thresholds that AP is averaged over unless others are asked for."""

Scores: TypeAlias = Mapping[str, float]
"""Scores by name; the part after ``@`` is the IoU threshold. NaN where nothing can be measured."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the scores of one or more images are made of; tallies add up."""

    thresholds: tuple[float, ...]
    n_true: int = 0
    n_pred: int = 0
    matched: tuple[int, ...]
    """True positives at each threshold."""
    matched_iou: tuple[float, ...]
    """Sum of the IoUs of the true positives at each threshold."""
    ctc_iou: float = 0.0
    """Sum of the IoUs of the objects that CTC SEG counts as found."""
    voxels: int = 0
    foreground_true: int = 0
    foreground_pred: int = 0
    foreground_both: int = 0
    together_true: float = 0.0
    """Ordered pairs of voxels in one true object."""
    together_pred: float = 0.0
    """Ordered pairs of voxels in one predicted segment, within the foreground of the truth."""
    together_both: float = 0.0
    """Ordered pairs of voxels in one true object and one predicted segment."""
    split_bits: float = 0.0
    """Voxels times H(prediction | truth), in bits."""
    merge_bits: float = 0.0
    """Voxels times H(truth | prediction), in bits."""

    def __add__(self, other: Tally) -> Tally:
        """The tally of both, as if the images lay side by side."""
        if self.thresholds != other.thresholds:
            raise ValueError("Tallies at different thresholds cannot be added.")
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__dataclass_fields__
            if name not in ("thresholds", "matched", "matched_iou")
        }
        return Tally(
            thresholds=self.thresholds,
            matched=tuple(a + b for a, b in zip(self.matched, other.matched, strict=True)),
            matched_iou=tuple(
                a + b for a, b in zip(self.matched_iou, other.matched_iou, strict=True)
            ),
            **sums,
        )


def tally(table: OverlapTable, thresholds: Sequence[float] = THRESHOLDS) -> Tally:
    """Boil a table down to what can be added up over images.

    Args:
        table: What ``overlaps`` counted.
        thresholds: IoU thresholds, each above 0 and at most 1.
    """
    # No object has two partners above one half, so one matching serves all thresholds from there.
    half = match(table, 0.5).iou
    found = [half[half >= t] if t >= 0.5 else match(table, t).iou for t in thresholds]
    true_sizes, pred_sizes = table.truth_sizes, table.prediction_sizes
    in_true = np.bincount(table.rows, weights=table.shared, minlength=true_sizes.size)
    in_pred = np.bincount(table.columns, weights=table.shared, minlength=pred_sizes.size)
    missed, spurious = true_sizes - in_true, pred_sizes - in_pred
    nothing = table.voxels - true_sizes.sum() - spurious.sum()
    true_background, pred_background = nothing + spurious.sum(), nothing + missed.sum()
    ctc = 2 * table.shared > true_sizes[table.rows]
    shares = [
        (table.shared, true_sizes[table.rows], pred_sizes[table.columns]),
        (missed, true_sizes, np.full(missed.size, pred_background)),
        (spurious, np.full(spurious.size, true_background), pred_sizes),
        (np.array([nothing]), np.array([true_background]), np.array([pred_background])),
    ]
    return Tally(
        thresholds=tuple(thresholds),
        n_true=true_sizes.size,
        n_pred=pred_sizes.size,
        matched=tuple(iou.size for iou in found),
        matched_iou=tuple(float(iou.sum()) for iou in found),
        ctc_iou=float(table.iou[ctc].sum()),
        voxels=table.voxels,
        foreground_true=int(true_sizes.sum()),
        foreground_pred=int(pred_sizes.sum()),
        foreground_both=int(table.shared.sum()),
        together_true=_ordered_pairs(true_sizes),
        together_pred=_ordered_pairs(np.append(in_pred, missed.sum())),
        together_both=_ordered_pairs(np.concatenate([table.shared, missed])),
        split_bits=sum(_bits(share, of_true) for share, of_true, _ in shares),
        merge_bits=sum(_bits(share, of_pred) for share, _, of_pred in shares),
    )


def score(tallies: Iterable[Tally]) -> Scores:
    """The scores of some images pooled, or of one: ratios of the sums of their tallies.

    With TP matches, FP = n_pred - TP and FN = n_true - TP, at each IoU threshold T:

    - ``precision@T`` = TP / (TP + FP), ``recall@T`` = TP / (TP + FN);
    - ``f1@T`` = 2 TP / (2 TP + FP + FN), which is also the recognition quality ``rq@T``;
    - ``ap@T`` = TP / (TP + FP + FN), as in the Data Science Bowl 2018 (Caicedo et al. 2019,
      doi:10.1038/s41592-019-0612-7); ``mSA@A:B`` is its mean over the thresholds;
    - ``sq@T`` = mean IoU of the matches, ``pq@T`` = sq * rq (Kirillov et al. 2019,
      doi:10.1109/CVPR.2019.00963).

    And over all objects and voxels:

    - ``ctc_seg``: mean IoU of the true objects with the predicted object that covers more than
      half of them, 0 where there is none (Maška et al. 2014, doi:10.1093/bioinformatics/btu080);
    - ``dice_foreground`` = 2 |P and T| / (|P| + |T|) of the voxels in any object;
    - ``are`` = adapted Rand error 1 - 2 S / (A + B), with S, A, B the pairs of voxels that are
      together in both, in the truth, in the prediction, where the truth is not background;
      ``are_precision`` = S / B, ``are_recall`` = S / A (Arganda-Carreras et al. 2015,
      doi:10.3389/fnana.2015.00142);
    - ``voi_split`` = H(prediction | truth), ``voi_merge`` = H(truth | prediction), in bits, over
      all voxels, the background being one segment (Meilă 2007, doi:10.1016/j.jmva.2006.11.013).

    Returns:
        A new dict; a score of no objects at all is 0, and an adapted Rand score of no pairs NaN.

    Raises:
        ValueError: no tally, or tallies at different thresholds.
    """
    first, *others = tallies
    total = first
    for other in others:
        total = total + other
    scores: dict[str, float] = {"n_true": total.n_true, "n_pred": total.n_pred}
    for threshold, tp, iou in zip(total.thresholds, total.matched, total.matched_iou, strict=True):
        scores |= _at(f"@{threshold:.2f}", total, tp, iou)
    accuracies = [scores[f"ap@{threshold:.2f}"] for threshold in total.thresholds]
    scores[mean_ap_name(total.thresholds)] = sum(accuracies) / len(accuracies)
    a, b, both = total.together_true, total.together_pred, total.together_both
    foreground = total.foreground_true + total.foreground_pred
    return scores | {
        "ctc_seg": _ratio(total.ctc_iou, total.n_true),
        "dice_foreground": _ratio(2 * total.foreground_both, foreground),
        "are": 1 - _ratio(2 * both, a + b, math.nan),
        "are_precision": _ratio(both, b, math.nan),
        "are_recall": _ratio(both, a, math.nan),
        "voi_split": _ratio(total.split_bits, total.voxels),
        "voi_merge": _ratio(total.merge_bits, total.voxels),
    }


def mean_ap_name(thresholds: Sequence[float]) -> str:
    """What the mean of AP over ``thresholds`` is called: ``mSA@0.50:0.95`` for steps of 0.05."""
    steps = np.diff(thresholds)
    if steps.size > 1 and np.allclose(steps, 0.05):
        return f"mSA@{thresholds[0]:.2f}:{thresholds[-1]:.2f}"
    return "mSA@" + ",".join(f"{threshold:.2f}" for threshold in thresholds)


def _at(suffix: str, total: Tally, tp: int, iou: float) -> dict[str, float]:
    fp, fn = total.n_pred - tp, total.n_true - tp
    f1 = _ratio(2 * tp, 2 * tp + fp + fn)
    scores: dict[str, float] = {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": _ratio(tp, total.n_pred),
        "recall": _ratio(tp, total.n_true),
        "f1": f1,
        "ap": _ratio(tp, tp + fp + fn),
        "pq": _ratio(2 * iou, 2 * tp + fp + fn),
        "sq": _ratio(iou, tp),
        "rq": f1,
    }
    return {name + suffix: value for name, value in scores.items()}


def _ratio(part: float, whole: float, nothing: float = 0.0) -> float:
    return part / whole if whole else nothing


def _ordered_pairs(sizes: NDArray[Any]) -> float:
    sizes = sizes.astype(np.float64)
    return float((sizes * (sizes - 1)).sum())


def _bits(shares: NDArray[Any], wholes: NDArray[Any]) -> float:
    there = shares > 0
    return float(-(shares[there] * np.log2(shares[there] / wholes[there])).sum())

"""How good scored boxes are: average precision, recall, F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg_cellsam.box_pairs import pairwise_overlaps

Found: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of an image: scores ``(p,)``, boxes ``(p, 4)`` and true boxes ``(k, 4)``, ``x0 y0 x1 y1``."""
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class BoxScores:
    """All 0..1; all 0 where there are no cells."""

    average_precision: float
    recall: float
    """The share of the cells that some box finds."""
    f1: float
    """At the threshold for which it is highest."""
    threshold: float
    """That threshold: boxes with this score and more are taken; 1 where there are none."""


def average_precision(scores: Tensor, boxes: Tensor, truth: Tensor, iou: float = 0.5) -> float:
    """Average precision of the boxes of one image, as of ``pooled_average_precision``."""
    return pooled_average_precision([(scores, boxes, truth)], iou)


def pooled_average_precision(images: Sequence[Found], iou: float = 0.5) -> float:
    """Average precision as COCO defines it (Lin et al., arXiv:1405.0312): the mean, over 101
    recalls, of the highest precision at that recall or above; boxes of all images by falling score.

    Args:
        images: what was found, and what is there.
        iou: a box finds a cell if they overlap by so much at least.

    Returns:
        0..1; 0 where there are no cells.
    """
    return box_scores(images, iou).average_precision


def box_scores(
    images: Sequence[Found], iou: float = 0.5, ignored: Sequence[Tensor] | None = None
) -> BoxScores:
    """Score the boxes of some images together.

    By falling score, a box finds that cell of its image, among those not found yet, that it
    overlaps most.

    Args:
        images: what was found, and what is there.
        iou: a box finds a cell if they overlap by so much at least.
        ignored: of each image, ``(p,)`` bool, boxes that are not wrong even if they find nothing.
    """
    cells = sum(len(truth) for _, _, truth in images)
    parts = [_hits(*image, iou) for image in images]
    if ignored is not None:
        parts = [
            tuple(x[hit | ~np.asarray(skip.cpu())] for x in (scores, hit))
            for (scores, hit), skip in zip(parts, ignored, strict=True)
        ]
    scores, hits = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not cells or not len(scores):
        return BoxScores(0.0, 0.0, 0.0, 1.0)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], hits[order].cumsum()
    taken = np.arange(1, len(scores) + 1)
    recall, precision = right / cells, right / taken
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS, side="left")
    sampled = np.append(envelope, 0)[at]
    last = np.append(scores[1:] < scores[:-1], True)  # boxes of one score are taken together
    f1 = np.where(last, 2 * right / (taken + cells), 0)
    best = int(f1.argmax())
    return BoxScores(float(sampled.mean()), float(recall[-1]), float(f1[best]), float(scores[best]))


def _hits(
    scores: Tensor, boxes: Tensor, truth: Tensor, iou: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The scores, and which of the boxes find a cell; in the order of the boxes."""
    found = np.zeros(len(scores), bool)
    values = scores.detach().double().cpu().numpy()
    if len(truth) and len(boxes):
        table = pairwise_overlaps(boxes[None], truth[None])[0][0].cpu().numpy()
        for one in np.argsort(-values, kind="stable"):
            best = int(table[one].argmax())
            if table[one, best] >= iou:
                found[one] = True
                table[:, best] = -1
    return values, found

"""Masks of everything in an image, from a grid of points that Segment Anything answers.

The method is that of Segment Anything (Kirillov et al., arXiv:2304.02643, appendix B). Answers are
looked at where they are small, and only the masks that are left in the end are brought to the size
of the image: see ``cellseg.torch.masks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.mask_pixels import axes, cut, restored
from cellseg.torch.masks import FoundMask, score_masks, suppress

Decode: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points ``(n, 2)`` float32 on the CPU, x and y in pixels of the square, to the logits of their
masks ``(n, k, m, m)`` and the IoU that the model predicts for each ``(n, k)``."""

_THRESHOLD = 0.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    part: NDArray[np.float32]
    """The logits that the pixels of the box come from."""
    box: tuple[int, int, int, int]
    """First and last pixel of the image, ``x0 y0 x1 y1``."""
    score: float


def point_grid(per_side: int) -> Tensor:
    """Points in the middle of the cells of a square grid.

    Args:
        per_side: points along each side, at least 1.

    Returns:
        ``(per_side², 2)`` float32, x and y in 0..1, row by row.

    Raises:
        ValueError: there are no points.
    """
    if per_side < 1:
        raise ValueError(f"{per_side} points per side are none: give at least 1.")
    along = (torch.arange(per_side, dtype=torch.float64) + 0.5) / per_side
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).float()


@torch.no_grad()  # type: ignore[untyped-decorator]
def generate_masks(
    decode: Decode,
    frame: Frame,
    *,
    points_per_side: int = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    box_nms_thresh: float = 0.7,
) -> list[FoundMask]:
    """The masks that ``segment_anything.SamAutomaticMaskGenerator`` finds in one crop.

    Of the masks that answer the points, those are left out whose predicted IoU is not above
    ``pred_iou_thresh``, or whose stability score is below ``stability_score_thresh``; of those
    whose boxes overlap by more than ``box_nms_thresh`` (IoU), the one with the highest predicted
    IoU stays. A threshold of 0 leaves nothing out, except masks without any pixel.

    Args:
        decode: the model's answers to points, for the image in ``frame``.
        frame: where the image lies in the square.
        points_per_side: the grid over the image has this number squared.
        points_per_batch: points that are answered at once; their logits, of low resolution, are
            in memory together.
        pred_iou_thresh: see above.
        stability_score_thresh: see above.
        stability_score_offset: how far the threshold is raised and lowered for the stability.
        box_nms_thresh: see above.

    Returns:
        The masks, by falling predicted IoU, which is their score and may exceed 1.

    Raises:
        ValueError: there are no points, or no points in a batch.
    """
    if points_per_batch < 1:
        raise ValueError(f"{points_per_batch} points per batch are none: give at least 1.")
    found: list[_Candidate] = []
    y, x = frame.scaled
    for points in (point_grid(points_per_side) * torch.tensor([x, y])).split(points_per_batch):
        logits, ious = (answer.flatten(0, 1) for answer in decode(points))
        passed = ious > pred_iou_thresh if pred_iou_thresh > 0 else torch.ones_like(ious) > 0
        found += _stable(
            logits[passed], ious[passed], frame, stability_score_thresh, stability_score_offset
        )
    boxes = torch.tensor([one.box for one in found]).reshape(-1, 4)
    kept = suppress(boxes, torch.tensor([one.score for one in found]), box_nms_thresh)
    if not found:
        return []
    rows, columns = axes(frame, int(logits.shape[-1]))
    return [
        FoundMask(
            restored(one.part, rows, columns, one.box, _THRESHOLD),
            (one.box[1], one.box[0]),
            one.score,
        )
        for one in (found[index] for index in kept.tolist())
    ]


def _stable(
    logits: Tensor, ious: Tensor, frame: Frame, least: float, offset: float
) -> Iterator[_Candidate]:
    """Those masks that are stable enough and not empty, cut to what their boxes need."""
    scores = score_masks(logits, frame, offset, _THRESHOLD)
    passed = (scores.stability >= least) & (scores.areas > 0)
    rows, columns = axes(frame, logits.shape[-1])
    for one, box, score in zip(
        logits[passed].float().cpu().numpy(),
        scores.boxes[passed].int().tolist(),
        ious[passed].tolist(),
        strict=True,
    ):
        yield _Candidate(cut(one, rows, columns, box).copy(), tuple(box), score)

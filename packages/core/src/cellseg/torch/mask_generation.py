"""Masks of what points show, and of everything in an image, from a grid of points that Segment
Anything answers.

The method is that of Segment Anything (Kirillov et al., arXiv:2304.02643, appendix B). Answers are
looked at where they are small, and only the masks that are left in the end are brought to the size
of the image: see ``cellseg.torch.masks``.
"""

from __future__ import annotations

from collections.abc import Callable
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
class Proposals:
    """Masks of one image at low resolution, and what is known of them; all on the CPU.

    They are in the order of the points that they answer, and none of them is empty.
    """

    frame: Frame
    """Where the image lies in the square."""
    samples: int
    """Pixels along a side of the answers, ``m`` in ``Decode``; 0 where there are none."""
    parts: list[NDArray[np.float32]]
    """Of the logits of each mask, ``(y, x)``, what the pixels of its box come from."""
    iou: Tensor
    """``(n,)`` float32, as the model predicts it; it may exceed 1."""
    stability: Tensor
    """``(n,)`` float32, 0 to 1."""
    boxes: Tensor
    """``(n, 4)`` float32, first and last pixel of the image: ``x0 y0 x1 y1``."""

    def __len__(self) -> int:
        return len(self.parts)

    def select(
        self,
        *,
        pred_iou_thresh: float = 0.0,
        stability_score_thresh: float = 0.0,
        box_nms_thresh: float | None = None,
    ) -> list[FoundMask]:
        """The masks that pass, at the size of the image.

        Args:
            pred_iou_thresh: as in ``generate_masks``; below that of ``propose_masks`` it does
                nothing.
            stability_score_thresh: the same.
            box_nms_thresh: the same; None keeps all.

        Returns:
            The masks, whose score is the predicted IoU; by falling score, or without
            ``box_nms_thresh`` in the order of the points.
        """
        passed = _above(self.iou, pred_iou_thresh) & (self.stability >= stability_score_thresh)
        chosen = passed.nonzero()[:, 0]
        if box_nms_thresh is not None:
            chosen = chosen[suppress(self.boxes[chosen], self.iou[chosen], box_nms_thresh)]
        if not len(chosen):
            return []
        rows, columns = axes(self.frame, self.samples)
        return [
            FoundMask(
                restored(self.parts[index], rows, columns, box, _THRESHOLD), (box[1], box[0]), score
            )
            for index, box, score in zip(
                chosen.tolist(),
                self.boxes[chosen].int().tolist(),
                self.iou[chosen].tolist(),
                strict=True,
            )
        ]


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
def propose_masks(
    decode: Decode,
    frame: Frame,
    points: Tensor,
    *,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
) -> Proposals:
    """The masks that answer points, and are good enough.

    Args:
        decode: the model's answers to points, for the image in ``frame``.
        frame: where the image lies in the square.
        points: ``(n, 2)``, x and y in pixels of the square.
        points_per_batch: as in ``generate_masks``.
        pred_iou_thresh: as in ``generate_masks``.
        stability_score_thresh: as in ``generate_masks``.
        stability_score_offset: as in ``generate_masks``.

    Raises:
        ValueError: there are no points in a batch.
    """
    if points_per_batch < 1:
        raise ValueError(f"{points_per_batch} points per batch are none: give at least 1.")
    samples, parts = 0, []
    measured = [(torch.zeros(0), torch.zeros(0), torch.zeros(0, 4))]
    for chunk in points.float().cpu().split(points_per_batch) if len(points) else ():
        logits, iou = (answer.flatten(0, 1) for answer in decode(chunk))
        samples = int(logits.shape[-1])
        passed = _above(iou.float(), pred_iou_thresh)
        logits, iou = logits[passed], iou[passed].float()
        scores = score_masks(logits, frame, stability_score_offset, _THRESHOLD)
        passed = (scores.stability >= stability_score_thresh) & (scores.areas > 0)
        boxes = scores.boxes[passed].cpu()
        rows, columns = axes(frame, samples)
        parts += [
            cut(one, rows, columns, box).copy()
            for one, box in zip(
                logits[passed].float().cpu().numpy(), boxes.int().tolist(), strict=True
            )
        ]
        measured.append((iou[passed].cpu(), scores.stability[passed].cpu(), boxes))
    return Proposals(
        frame, samples, parts, *(torch.cat(values) for values in zip(*measured, strict=True))
    )


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
    y, x = frame.scaled
    proposals: Proposals = propose_masks(
        decode,
        frame,
        point_grid(points_per_side) * torch.tensor([x, y]),
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        stability_score_offset=stability_score_offset,
    )
    return proposals.select(box_nms_thresh=box_nms_thresh)


def _above(iou: Tensor, threshold: float) -> Tensor:
    """``(n,)`` bool: which pass; with a threshold of 0, all."""
    return iou > (threshold or -torch.inf)

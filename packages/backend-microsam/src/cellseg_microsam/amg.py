"""Automatic mask generation: a grid of points, which Segment Anything answers (Kirillov et al.,
arXiv:2304.02643)."""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg import Segmentation
from cellseg.torch.mask_generation import (
    Decode,
    Proposals,
    generate_masks,
    point_grid,
    propose_masks,
)
from cellseg.torch.mask_painting import painted
from cellseg.torch.masks import FoundMask
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved

_BACKGROUND = 0.5
"""A mask that covers more than this of a tile is no object."""


def find_instances(prompted: Prompted) -> Segmentation:
    """Objects that answer a grid of points over a tile.

    Three masks for each point; those that the model itself thinks little of are left out, and
    those that change with the threshold; of masks whose boxes overlap by more than
    ``nms_threshold`` the best one stays. So are masks of more than half of the tile: they are the
    background. The rest is as for ``apg``.

    Args:
        prompted: the image.

    Returns:
        Labels ``(1, y, x)`` uint32, by falling score, and the score of each, 0 to 1: the estimated
        IoU.
    """
    options = prompted.options
    found = generate_masks(
        decoder(prompted),
        prompted.frame,
        points_per_side=options.points_per_side,
        points_per_batch=options.prompts_per_batch,
        pred_iou_thresh=options.pred_iou_thresh,
        stability_score_thresh=options.stability_score_thresh,
        stability_score_offset=options.stability_score_offset,
        box_nms_thresh=options.nms_threshold,
    )
    return chosen(found, prompted.frame.size, options)


def propose(prompted: Prompted, iou: float, stability: float) -> Proposals:
    """What the grid of points is answered, kept so that thresholds can be tried without asking
    again.

    Args:
        prompted: the image; its options say how many points, and the offset of the stability.
        iou: the lowest threshold that will be tried.
        stability: the same of the stability.
    """
    frame, options = prompted.frame, prompted.options
    return propose_masks(
        decoder(prompted),
        frame,
        point_grid(options.points_per_side) * torch.tensor(frame.scaled[::-1]),
        points_per_batch=options.prompts_per_batch,
        pred_iou_thresh=iou,
        stability_score_thresh=stability,
        stability_score_offset=options.stability_score_offset,
    )


def selected(proposals: Proposals, options: Resolved) -> Segmentation:
    """What ``find_instances`` gives with these options, from what was proposed."""
    found = proposals.select(
        pred_iou_thresh=options.pred_iou_thresh,
        stability_score_thresh=options.stability_score_thresh,
        box_nms_thresh=options.nms_threshold,
    )
    return chosen(found, proposals.frame.size, options)


def chosen(found: list[FoundMask], size: tuple[int, int], options: Resolved) -> Segmentation:
    """The objects among the masks of an image of ``size``."""
    y, x = size
    found = [one for one in found if np.count_nonzero(one.mask) <= _BACKGROUND * y * x]
    return painted(found, size, min_size=options.min_size, in_one_piece=True)


def decoder(prompted: Prompted) -> Decode:
    """What answers points ``(n, 2)`` of the square, x and y, with three masks each."""

    def decode(points: Tensor) -> tuple[Tensor, Tensor]:
        device = prompted.embedding.device
        return prompted.model.answer(
            prompted.embedding,
            points=points[:, None].to(device),
            labels=torch.ones(len(points), 1, device=device),
            multimask=True,
        )

    return decode

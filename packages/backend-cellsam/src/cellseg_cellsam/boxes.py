"""The boxes of the cells of an image, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import TypeAlias

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask, restore_masks, score_masks, suppress
from cellseg.torch.sam.architecture import Architecture
from cellseg_cellsam.encoding import Encoder
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.predict_options import CellSamPredictOptions

Boxes: TypeAlias = tuple[Tensor, Tensor]
"""Of one image: scores ``(k,)`` float32, falling, 0 to 1; and boxes ``(k, 4)`` float32,
``x0 y0 x1 y1`` in pixels of the square, from the edge of the first pixel to the far edge of the
last."""

_COPIES = 12
"""How often a box has the embedding in memory, at most, while it is segmented; measured."""
_CACHED = 1 << 25
"""Bytes of the embeddings of the boxes that a CPU takes at once: more are not faster."""
_FREE = 0.5
"""Part of the free memory of a GPU that is used."""
_MOST = 256
"""Boxes that a GPU takes at once; more are not faster."""


def proposed(encoder: Encoder, features: Tensor, frame: Frame, lowest: float) -> list[Boxes]:
    """All boxes whose score is at least ``lowest``, cut off where the image ends.

    Boxes that lie wholly beyond the image, in what continues or pads it, are left out.

    Args:
        encoder: the model.
        features: of tiles, as ``Encoder.trunk`` gives them.
        frame: of the tiles.
        lowest: 0 to 1.

    Returns:
        As many as tiles.
    """
    scores, boxes = encoder.model.detect(features).best()
    y, x = frame.scaled
    ends = boxes.new_tensor([x, y, x, y])
    boxes = torch.minimum(boxes.float() * frame.side, ends).clamp(min=0)
    real = ((boxes[..., 2:] > boxes[..., :2]).all(-1)) & (scores >= lowest)
    found = []
    for score, box, chosen in zip(scores.float(), boxes, real, strict=True):
        order = score[chosen].argsort(descending=True, stable=True)
        found.append((score[chosen][order], box[chosen][order]))
    return found


def detected(
    encoder: Encoder, features: Tensor, frame: Frame, options: CellSamPredictOptions
) -> list[Boxes]:
    """The boxes of the cells of each tile: those of ``proposed`` above ``box_threshold``, of which
    none overlaps a better one by more than ``box_nms``.

    Args:
        encoder: the model.
        features: of tiles, as ``Encoder.trunk`` gives them.
        frame: of the tiles.
        options: thresholds.
    """
    return [
        apart(one, options.box_nms)
        for one in proposed(encoder, features, frame, options.box_threshold)
    ]


def apart(found: Boxes, iou: float) -> Boxes:
    """The boxes that overlap no better one by more than ``iou``, unless a third has suppressed
    that."""
    scores, boxes = found
    kept = suppress(boxes, scores, iou)
    return scores[kept], boxes[kept]


def boxes_at_once(architecture: Architecture, device: torch.device, given: int | None) -> int:
    """How many boxes the mask decoder takes at once.

    Args:
        architecture: of the model.
        device: where it is. A GPU takes what fits into its free memory.
        given: what the user wants; None for what suits the device.
    """
    if given is not None:
        return given
    one = 4 * architecture.out_channels * architecture.grid**2
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return min(max(1, int(_FREE * free) // (_COPIES * one)), _MOST)
    return min(max(1, _CACHED // one), 32)


def decode_boxes(
    model: CellSam, embedding: Tensor, boxes: Tensor, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What Segment Anything answers to the boxes of an image, ``chunk`` boxes in each call.

    Args:
        model: on its device.
        embedding: of the image, ``(1, out_channels, grid, grid)``.
        boxes: ``(k, 4)``, ``x0 y0 x1 y1`` in pixels of the square.
        chunk: at least 1; only so many masks are in memory together.

    Yields:
        Logits ``(j, m, m)``, and the IoU with the true mask that the model estimates ``(j,)``, of
        the next ``j`` boxes.
    """
    for part in boxes.split(chunk) if len(boxes) else ():
        yield model.segment(embedding, part)


def masks_of(
    model: CellSam,
    embedding: Tensor,
    found: Boxes,
    frame: Frame,
    thresholds: tuple[float, ...],
    chunk: int,
) -> tuple[list[list[FoundMask | None]], Tensor]:
    """The masks of the boxes of one image.

    Args:
        model: on its device.
        embedding: of the image, ``(1, out_channels, grid, grid)``.
        found: its boxes.
        frame: of the image.
        thresholds: probabilities above which a pixel is part of a mask; each between 0 and 1.
        chunk: boxes that are segmented at once.

    Returns:
        For each threshold the masks in the order of the boxes, with the scores of the boxes, None
        where a mask is empty; and ``(k,)`` float32 on the CPU, the IoU with the true mask as the
        model estimates it.
    """
    scores, boxes = found
    masks: list[list[FoundMask | None]] = [[] for _ in thresholds]
    ious, start = [torch.zeros(0)], 0
    for logits, iou in decode_boxes(model, embedding, boxes, chunk):
        of_box = scores[start : start + len(iou)]
        for each, threshold in zip(masks, thresholds, strict=True):
            each += _above(logits.float(), of_box, frame, threshold)
        ious.append(iou.float().cpu())
        start += len(iou)
    return masks, torch.cat(ious)


def _above(
    logits: Tensor, scores: Tensor, frame: Frame, threshold: float
) -> list[FoundMask | None]:
    """The masks ``(j, m, m)`` where their probability is above a threshold; None for empty ones."""
    limit = log(threshold / (1 - threshold))
    there = score_masks(logits, frame, 0.0, limit).areas > 0
    real = iter(restore_masks(logits[there], frame, scores[there], limit))
    return [next(real) if full else None for full in there.tolist()]

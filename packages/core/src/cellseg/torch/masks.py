"""Mask proposals of Segment Anything: scored, suppressed and restored from their low resolution.

Segment Anything's decoder answers a prompt with logits at a quarter of the resolution, which its
own tools bring to the size of the image before they look at them. Here only the masks that are
kept are brought there, each within its box. What is measured is nevertheless that of the whole
mask, up to rounding at pixels whose logit is the threshold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch import mask_pixels
from cellseg.torch.frames import Frame
from cellseg.torch.mask_pixels import axes, cut, restored

_BLOCK = 2048
_PAIRS = 1 << 20


@dataclass(frozen=True, slots=True)
class MaskScores:
    """What is known of masks from their logits, all on the device of the logits."""

    stability: Tensor
    """``(n,)`` float32, 0 to 1: the area above the raised threshold over that above the lowered
    one; 0 where there is none."""
    areas: Tensor
    """``(n,)`` int64, in pixels of the image."""
    boxes: Tensor
    """``(n, 4)`` float32: first and last pixel, ``x0 y0 x1 y1``; all 0 where the mask is empty."""


@dataclass(frozen=True, slots=True)
class FoundMask:
    """One mask, cut to its box."""

    mask: NDArray[np.bool_]
    """``(y, x)`` bool."""
    corner: tuple[int, int]
    """Where its first pixel lies in the image, ``(y, x)``."""
    score: float
    """The higher, the better."""


def score_masks(
    logits: Tensor, frame: Frame, offset: float = 1.0, threshold: float = 0.0
) -> MaskScores:
    """Stability, area and box of masks, as of ``frame.restore(logits) > threshold``.

    The stability score is that of Segment Anything (Kirillov et al., arXiv:2304.02643, appendix
    B), and so are the boxes. On CUDA it is computed by ``cellseg.torch.mask_kernels`` where Triton
    can be imported, with the same results.

    Args:
        logits: ``(n, m, m)`` of the square, floating.
        frame: where the image lies in the square.
        offset: how far the threshold is raised and lowered, at least 0.
        threshold: pixels above it are part of the mask.
    """
    rows, columns = axes(frame, logits.shape[-1])
    levels = (threshold + offset, threshold, threshold - offset)
    if logits.is_cuda and find_spec("triton"):
        from cellseg.torch.mask_kernels import count

        areas, boxes = count(logits, rows, columns, levels)
    else:
        found = mask_pixels.count(logits.detach().float().cpu().numpy(), rows, columns, levels)
        areas, boxes = (torch.from_numpy(x).to(logits.device) for x in found)
    stability = areas[:, 0] / areas[:, 2].clamp(min=1)
    return MaskScores(stability, areas[:, 1], boxes.float())


def restore_masks(
    logits: Tensor, frame: Frame, scores: Tensor, threshold: float = 0.0
) -> list[FoundMask]:
    """Masks at the size of the image, each computed within its box only.

    Args:
        logits: ``(n, m, m)`` of the square, floating.
        frame: where the image lies in the square.
        scores: ``(n,)``, of the masks.
        threshold: pixels above it are part of the mask.

    Returns:
        ``frame.restore(logits) > threshold``, cut to their boxes; pixels whose logit is the
        threshold up to rounding may differ. An empty mask has no pixels and is left out.
    """
    found = score_masks(logits, frame, 0.0, threshold)
    there = found.areas.nonzero()[:, 0]
    boxes = found.boxes[there].long().tolist()
    values = logits[there].detach().float().cpu().numpy()
    rows, columns = axes(frame, logits.shape[-1])
    return [
        FoundMask(
            restored(cut(one, rows, columns, box), rows, columns, box, threshold),
            (box[1], box[0]),
            score,
        )
        for one, box, score in zip(values, boxes, scores[there].tolist(), strict=True)
    ]


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression: of two boxes that overlap by more than ``iou``, that with the lower
    score goes, unless a third has suppressed the other.

    The result is that of ``torchvision.ops.nms`` on a CPU, without its matrix of all pairs on a
    GPU: extra memory is bounded, whatever the number of boxes.

    Args:
        boxes: ``(n, 4)``, ``x0 y0 x1 y1``.
        scores: ``(n,)``; of equal ones the first wins.
        iou: 0 to 1.

    Returns:
        ``(k,)`` int64, indices of those kept, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.float()[order]
    left = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(left):
        head, left = left[:_BLOCK], left[_BLOCK:]
        best = head[_independent(boxes[head], iou)]
        kept.append(best)
        hit = torch.zeros(len(left), dtype=torch.bool, device=boxes.device)
        for _, others in _overlapping(boxes[best], boxes[left], iou):
            hit[others] = True
        left = left[~hit]
    return order[torch.cat([left, *kept])]


def _independent(boxes: Tensor, iou: float) -> Tensor:
    """``(n,)`` bool: which boxes of falling score are kept."""
    found = list(_overlapping(boxes, boxes, iou))
    better, worse = (torch.cat(x) for x in zip(*found, strict=True))
    falling = better < worse
    better, worse = better[falling], worse[falling]
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    open_ = ~kept
    # In each round those stay that no better box can suppress any more.
    while len(better):
        threatened = torch.zeros_like(kept)
        threatened[worse] = True
        stays = open_ & ~threatened
        kept |= stays
        open_ &= threatened
        open_[worse[stays[better]]] = False
        still = open_[better] & open_[worse]
        better, worse = better[still], worse[still]
    return kept | open_


def _overlapping(boxes: Tensor, others: Tensor, iou: float) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of a box and another box that overlap by more than ``iou``, part by part."""
    if not (len(boxes) and len(others)):
        return
    # Rounded down, float32 compares as float64 does.
    limit = np.float32(iou)
    limit = np.nextafter(limit, np.float32(-1)) if float(limit) > iou else limit
    wide, middle = boxes[:, 2] - boxes[:, 0], (boxes[:, 0] + boxes[:, 2]) / 2
    middles, order = ((others[:, 0] + others[:, 2]) / 2).sort()
    # How far apart the middles can be: of boxes that touch; of boxes that overlap so much, which
    # are also of similar width.
    far = (wide + (others[:, 2] - others[:, 0]).max()) / 2
    if iou > 0:
        far = torch.minimum(far, wide * max(1 - iou, (1 / iou - 1) / 2))
    far += 1e-5 * torch.maximum(boxes.abs().max(), others.abs().max())
    start = torch.searchsorted(middles, middle - far)
    count = torch.searchsorted(middles, middle + far, right=True) - start
    ends = count.cumsum(0).tolist()
    one, areas = 0, [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (boxes, others)]
    while one < len(boxes):
        done = ends[one - 1] if one else 0
        until = max(one + 1, bisect_right(ends, done + _PAIRS))
        index = torch.arange(one, until, device=boxes.device).repeat_interleave(count[one:until])
        before = count[one:until].cumsum(0) - count[one:until]
        along = torch.arange(len(index), device=boxes.device)
        other = order[along + (start[one:until] - before)[index - one]]
        a, b = boxes[index], others[other]
        size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_(min=0)
        shared = size[:, 0] * size[:, 1]
        over = shared / (areas[0][index] + areas[1][other] - shared) > float(limit)
        yield index[over], other[over]
        one = until


def ranked(masks: Sequence[FoundMask]) -> list[int]:
    """Indices by falling score, whatever the order in which masks are given.

    Of equal scores the larger mask comes first, then the one whose corner comes first, as in
    ``cellseg.painting.paint``; then the flatter box. Only masks that are equal in all of this keep
    their order.
    """
    return sorted(
        range(len(masks)),
        key=lambda index: (
            -masks[index].score,
            -int(np.count_nonzero(masks[index].mask)),
            tuple(masks[index].corner),
            masks[index].mask.shape,
        ),
    )


def suppress_masks(masks: Sequence[FoundMask], iou: float, containment: float = 1.0) -> list[int]:
    """Non-maximum suppression by the overlap of the masks themselves.

    Two masks exclude each other where they overlap too much, as a share of their union or as a
    share of the smaller one; that with the lower score goes, unless a third has suppressed the
    other.

    Args:
        masks: of equal scores the first wins; ``ranked`` puts them in an order that does not
            depend on how they were found.
        iou: masks whose overlap is more than this part of their union exclude each other; 0 to 1.
        containment: masks whose overlap is more than this part of the smaller one's area exclude
            each other, that is, one lies in the other; 0 to 1, and with 1 none do.

    Returns:
        Indices of those kept, by falling score.
    """
    order = sorted(range(len(masks)), key=lambda index: -masks[index].score)
    areas = torch.tensor([int(np.count_nonzero(masks[index].mask)) for index in order])
    corners = torch.tensor([masks[index].corner for index in order]).reshape(-1, 2)
    ends = corners + torch.tensor([masks[index].mask.shape for index in order]).reshape(-1, 2)
    boxes = torch.cat([corners.flip(1), ends.flip(1)], 1).float()
    kept = torch.ones(len(masks), dtype=torch.bool)
    stays = kept.numpy()  # the same, faster one by one
    for start in range(0, len(masks), _BLOCK):
        left = kept[start:].nonzero()[:, 0] + start
        head = left[left < start + _BLOCK]
        # Those of a better mask come together, and the better ones first.
        for first, second in _overlapping(boxes[head], boxes[left], 0.0):
            better, worse = head[first], left[second]
            falling = (better < worse) & kept[better] & kept[worse]
            better, worse = better[falling], worse[falling]
            sizes = torch.minimum(ends[better], ends[worse]) - torch.maximum(
                corners[better], corners[worse]
            )
            # They share no more pixels than their boxes do, and than the smaller one has.
            least, most = (of(areas[better], areas[worse]) for of in (torch.minimum, torch.maximum))
            shared = torch.minimum(sizes.prod(1), least).double()
            likely = _too_much(shared, least, most, iou, containment)
            pairs = torch.stack([better, worse, least, most])[:, likely]
            for one, other, small, large in zip(*pairs.tolist(), strict=True):
                if stays[one] and stays[other]:
                    found = shared_pixels(masks[order[one]], masks[order[other]])
                    stays[other] = not _too_much(found, small, large, iou, containment)
    return [index for index, stay in zip(order, stays.tolist(), strict=True) if stay]


def _too_much(shared: Any, small: Any, large: Any, iou: float, containment: float) -> Any:
    """Whether masks of these areas, the smaller one first, exclude each other if they share so many
    pixels: numbers or tensors."""
    return (shared / (small + large - shared) > iou) | (shared / small > containment)


def shared_pixels(one: FoundMask, other: FoundMask) -> int:
    """How many pixels lie in both masks, whose boxes overlap."""
    (y, x), (v, u) = one.corner, other.corner
    top, left = max(y, v), max(x, u)
    bottom = min(y + one.mask.shape[0], v + other.mask.shape[0])
    right = min(x + one.mask.shape[1], u + other.mask.shape[1])
    a = one.mask[top - y : bottom - y, left - x : right - x]
    b = other.mask[top - v : bottom - v, left - u : right - u]
    return int(np.count_nonzero(a & b))

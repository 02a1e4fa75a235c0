"""From what the decoder answers to the masks of a frame, each pixel for one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.painting import largest_pieces
from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask, ranked, restore_masks, score_masks, suppress_masks
from cellseg_cellsam2.cleaning import cleaned
from cellseg_cellsam2.parts import Answer
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

_INSIDE = 0.8
"""A mask of which more than this lies in a better one is part of it."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """``k`` masks that may be objects of a frame."""

    owner: NDArray[np.int64]
    """``(k,)``: of which question each is the answer."""
    token: NDArray[np.int64]
    """``(k,)``: 0, or 1 and 2 for the daughters of an object that divides."""
    logits: Tensor
    """``(k, 4g, 4g)``."""
    tokens: Tensor
    """``(k, d)``."""
    ious: NDArray[np.float64]
    """``(k,)``: as the model estimates them, 0 to 1."""
    masks: tuple[FoundMask, ...]
    """At the size of the tile; their scores are probability of presence times estimated IoU."""

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, which: Sequence[int]) -> Candidates:
        """Some of them."""
        index = torch.tensor(which, dtype=torch.int64, device=self.logits.device)
        return Candidates(
            self.owner[np.asarray(which, np.int64)],
            self.token[np.asarray(which, np.int64)],
            self.logits[index],
            self.tokens[index],
            self.ious[np.asarray(which, np.int64)],
            tuple(self.masks[i] for i in which),
        )

    def asked_by(self, owner: NDArray[np.int64]) -> Candidates:
        """The same, of other questions: ``owner[i]`` for question ``i``."""
        return replace(self, owner=owner[self.owner])

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of them, at least one part, one after the other."""
        return cls(
            np.concatenate([part.owner for part in parts]),
            np.concatenate([part.token for part in parts]),
            torch.cat([part.logits for part in parts]),
            torch.cat([part.tokens for part in parts]),
            np.concatenate([part.ious for part in parts]),
            tuple(mask for part in parts for mask in part.masks),
        )


def choose(
    answer: Answer,
    frame: Frame,
    options: CellSam2PredictOptions,
    *,
    divide: Tensor | None = None,
) -> Candidates:
    """The masks of those objects that are there, and whose masks are thought to be good.

    An object that divides has two masks, if both are good enough; otherwise it has one.

    Args:
        answer: of ``o`` objects.
        frame: where the tile lies in the square.
        options: thresholds.
        divide: ``(o,)`` bool: which objects may divide; None for none.

    Returns:
        Masks in the order of the objects, each in one piece, and at least ``min_size`` pixels.
    """
    ious, presence = answer.ious.float().clamp(0, 1), answer.presence.float()
    good = ious >= options.pred_iou
    there = presence.sigmoid() > options.presence_threshold
    splits = torch.zeros_like(there)
    if divide is not None:
        divides = answer.division.float().sigmoid() > options.division_threshold
        splits = there & divide & divides & good[:, 1:3].all(1)
    shown = torch.stack([there & ~splits & good[:, 0], splits, splits], 1)
    owner, token = shown.nonzero().unbind(1)
    logits = answer.masks[owner, token].float()
    scores = presence[owner].sigmoid() * ious[owner, token]
    masks = cleaned(_restored(logits, frame, scores), logits.device, options.max_hole)
    kept = [
        i
        for i, mask in enumerate(masks)
        if mask is not None and np.count_nonzero(mask.mask) >= max(options.min_size, 1)
    ]
    found = Candidates(
        owner.cpu().numpy(),
        token.cpu().numpy(),
        logits,
        answer.tokens[owner, token].float(),
        ious[owner, token].double().cpu().numpy(),
        tuple(masks),  # type: ignore[arg-type]
    )
    return found.select(kept)


def _restored(logits: Tensor, frame: Frame, scores: Tensor) -> list[FoundMask | None]:
    """The masks of the tile; None where they are empty."""
    there = score_masks(logits, frame).areas > 0
    found = iter(restore_masks(logits[there], frame, scores[there]))
    return [next(found) if full else None for full in there.tolist()]


def best(
    candidates: Candidates, options: CellSam2PredictOptions, last: NDArray[np.bool_] | None = None
) -> list[int]:
    """Non-maximum suppression by the overlap of the masks.

    Args:
        candidates: any.
        options: ``box_nms``.
        last: ``(k,)``: those that go before no other one, whatever their scores.

    Returns:
        Indices of those kept, the best first.
    """
    masks = candidates.masks
    # Scores lie between 0 and 1: so one more puts a mask before all that have not.
    first = np.ones(len(masks)) if last is None else ~last
    graded = [replace(one, score=one.score + f) for one, f in zip(masks, first, strict=True)]
    order = ranked(graded)
    kept = suppress_masks([graded[i] for i in order], options.box_nms, _INSIDE)
    return [order[i] for i in kept]


def painted(
    masks: Sequence[FoundMask], size: tuple[int, int], taken: NDArray[np.bool_] | None = None
) -> NDArray[np.uint32]:
    """Masks as labels: each pixel goes to the first one that covers it.

    What this cuts off from the rest of a mask is background.

    Args:
        masks: in the order in which pixels are given away.
        size: of the tile, ``(y, x)``.
        taken: ``(y, x)``, pixels that none of them gets.

    Returns:
        ``(y, x)``, the numbers of the masks, from 1; those without any pixel left are missing.
    """
    labels = np.zeros(size, np.uint32)
    for number, one in enumerate(masks, 1):
        (y, x), (height, width) = one.corner, one.mask.shape
        window = (slice(y, y + height), slice(x, x + width))
        free = one.mask & (labels[window] == 0)
        if taken is not None:
            free &= ~taken[window]
        labels[window][free] = number
    return largest_pieces(labels)


def numbered(
    labels: NDArray[np.uint32], count: int, least: int
) -> tuple[NDArray[np.uint32], list[int]]:
    """Leave out labels of which too little is visible.

    Args:
        labels: ``(y, x)``, from 1 to ``count``.
        count: how many there may be.
        least: pixels that each must have; at least one.

    Returns:
        Labels from 1 without gaps, and for each which it was, counted from 0.
    """
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1 : count + 1]
    kept = sizes >= max(least, 1)
    table = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.uint32)
    return table[labels], np.flatnonzero(kept).tolist()

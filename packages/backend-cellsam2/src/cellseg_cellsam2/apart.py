"""Followed masks that cover several cells, taken apart by the heatmap.

The division head sees few divisions in training, and a mask that is propagated may leak onto a
neighbour. The heatmap judges each frame by itself: where it has two peaks in one followed mask, and
the decoder answers each with a mask of its own, there are two cells.
"""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask, shared_pixels
from cellseg_cellsam2.births import ask, points_to_ask
from cellseg_cellsam2.candidates import Candidates
from cellseg_cellsam2.encoding import in_image
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Encoded
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

_OF_IT = 0.5
"""The part of an answer to a peak that lies in the mask that is taken apart."""
_OTHER = 0.3
"""Two answers that overlap by more than this IoU are one cell."""
_SISTER = 0.3
"""The part of a daughter, at least, that lies where the mother was in the frame before."""
_ALIKE = 3.0
"""How much larger one daughter is than the other, at most."""


def take_apart(
    model: CellSam2,
    encoded: Encoded,
    frame: Frame,
    options: CellSam2PredictOptions,
    found: Candidates,
    before: Tensor | None,
    lost: NDArray[np.bool_],
    grown: NDArray[np.bool_],
) -> Candidates:
    """The same, with the cells of masks that cover several.

    Of two cells that both lie where the one was before, and are of similar size, both are its
    daughters. Otherwise the one that resembles it most goes on, and the other is left to
    the search for new objects.

    Args:
        model: answers.
        encoded: one image.
        frame: where the tile lies in the square.
        options: thresholds.
        found: what followed objects answer; those that divide have two masks.
        before: ``(o, 4g, 4g)`` bool: the mask that each object had before.
        lost: ``(o,)``: objects that the frame before did not show; they are left alone.
        grown: ``(o,)``: objects that may divide; of the others one cell goes on.
    """
    owners, counts = np.unique(found.owner, return_counts=True)
    whole = {int(owner) for owner in owners[counts == 1] if not lost[owner]}
    nowhere = np.zeros(frame.size, bool)
    points, _ = points_to_ask(encoded.heat[0], frame, options, nowhere)
    if before is None or not whole or not len(points):
        return found
    pixels = in_image(points, frame).floor().long().cpu().numpy()
    held = {
        place: inside
        for place, mask in enumerate(found.masks)
        if found.owner[place] in whole and len(inside := _within(mask, pixels)) > 1
    }
    if not held:
        return found
    asked = np.unique(np.concatenate(list(held.values())))
    answers = ask(
        model, encoded, 0, points[torch.from_numpy(asked).to(points.device)], frame, options
    )
    if answers is None or not len(answers):
        return found
    answers = answers.asked_by(asked)  # each by its peak
    kept, taken, owner, token = [], [], [], []
    for place in range(len(found)):
        pair = _pair(answers, found.masks[place], held[place]) if place in held else None
        if pair is None:
            kept.append(place)
            continue
        one = int(found.owner[place])
        heirs = _heirs(answers, pair, before[one], bool(grown[one]))
        taken += heirs
        owner += [one] * len(heirs)
        token += [1, 2] if len(heirs) == 2 else [0]
    if not taken:
        return found
    apart = answers.select(taken)
    apart = Candidates(
        np.array(owner), np.array(token), apart.logits, apart.tokens, apart.ious, apart.masks
    )
    return Candidates.joined([found.select(kept), apart])


def _within(mask: FoundMask, pixels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Which of the pixels ``(n, 2)``, x and y of the tile, lie in a mask."""
    (y, x), (height, width) = mask.corner, mask.mask.shape
    column, row = (pixels - (x, y)).T
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside[inside] = mask.mask[row[inside], column[inside]]
    return np.flatnonzero(inside)


def _pair(answers: Candidates, mask: FoundMask, peaks: NDArray[np.intp]) -> tuple[int, int] | None:
    """The two best answers to peaks in a mask that lie in it and are not the same cell."""
    own = [
        i
        for i in np.flatnonzero(np.isin(answers.owner, peaks)).tolist()
        if _shared(answers.masks[i], mask) >= _OF_IT * _area(answers.masks[i])
    ]
    own.sort(key=lambda i: (-answers.masks[i].score, i))
    for i in own[1:]:
        both = _shared(answers.masks[own[0]], answers.masks[i])
        either = _area(answers.masks[own[0]]) + _area(answers.masks[i]) - both
        if both <= _OTHER * either:
            return own[0], i
    return None


def _heirs(answers: Candidates, pair: tuple[int, int], before: Tensor, divides: bool) -> list[int]:
    """Both, if they are daughters of what was there before; else the one that it is."""
    masks = answers.logits[list(pair)] > 0
    sizes = masks.flatten(1).sum(1).clamp(min=1)
    shared = (masks & before).flatten(1).sum(1)
    alike = bool(sizes.max() <= _ALIKE * sizes.min())
    if divides and alike and bool((shared >= _SISTER * sizes).all()):
        return list(pair)
    overlap = shared / (sizes + before.sum() - shared)
    return [pair[int(overlap.argmax())]]


def _area(mask: FoundMask) -> int:
    return int(np.count_nonzero(mask.mask))


def _shared(one: FoundMask, other: FoundMask) -> int:
    """Pixels that both cover."""
    low = np.maximum(one.corner, other.corner)
    high = np.minimum(np.add(one.corner, one.mask.shape), np.add(other.corner, other.mask.shape))
    return shared_pixels(one, other) if (low < high).all() else 0

"""Masks in one piece, without small holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.torch.components import fill_holes_and_remove_specks
from cellseg.torch.masks import FoundMask

_TOGETHER = 16
"""Masks that are cleaned at once: they are padded to one size, so these are of similar sizes."""


def cleaned(
    masks: Sequence[FoundMask | None], device: torch.device, holes: int
) -> list[FoundMask | None]:
    """The largest piece of each mask, with its small holes filled.

    Args:
        masks: at the size of the tile, cut to their boxes; None where a mask is empty.
        device: where connected components are found.
        holes: pixels of the largest hole that is filled; 0 fills none.

    Returns:
        The same, in their order; None stays None.
    """
    found = list(masks)
    full = [(one.mask.size, index, one) for index, one in enumerate(masks) if one is not None]
    full.sort(key=lambda each: each[:2])
    for start in range(0, len(full), _TOGETHER):
        group = full[start : start + _TOGETHER]
        height, width = np.max([one.mask.shape for *_, one in group], axis=0)
        padded = np.zeros((len(group), height, width), bool)
        for place, (_, _, one) in zip(padded, group, strict=True):
            place[: one.mask.shape[0], : one.mask.shape[1]] = one.mask
        clean = fill_holes_and_remove_specks(
            torch.from_numpy(padded).to(device), holes, height * width
        )
        for mask, (_, index, one) in zip(clean.cpu().numpy(), group, strict=True):
            found[index] = _cut(mask, one)
    return found


def _cut(mask: NDArray[np.bool_], of: FoundMask) -> FoundMask:
    """A mask that lies where another one does, cut to its box."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((int(each[0]), int(each[-1]) + 1) for each in (rows, columns))
    corner = (of.corner[0] + top, of.corner[1] + left)
    return replace(of, mask=mask[top:bottom, left:right], corner=corner)

"""Connected components of many masks at once, and what they clean: holes and specks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

_PIXELS = 1 << 26
"""Pixels of the masks that are cleaned at once."""


def connected_components(masks: Tensor, connectivity: Literal[4, 8] = 8) -> Tensor:
    """Number the connected components of each mask.

    On CUDA it is computed by ``cellseg.torch.components_kernels`` where Triton can be imported,
    else by ``scipy.ndimage.label`` on the CPU, with the same results.

    Args:
        masks: ``(n, y, x)`` bool, with less than 2³¹ pixels in all.
        connectivity: 8 where pixels that share a corner are connected, 4 where only those are that
            share a side.

    Returns:
        ``(n, y, x)`` int32 on the device of the masks: 0 for background, and 1, 2, ... in the order
        of the first pixels, counted on from mask to mask.

    Raises:
        ValueError: the masks are not of this shape, type or size.
    """
    if masks.ndim != 3 or masks.dtype != torch.bool or masks.numel() >= 2**31:
        raise ValueError(f"no masks: {masks.dtype} {tuple(masks.shape)}")
    if masks.is_cuda and find_spec("triton"):
        from cellseg.torch.components_kernels import label

        return label(masks, connectivity)
    from scipy import ndimage

    near = np.zeros((3, 3, 3), bool)  # nothing is connected from mask to mask
    near[1] = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    found = np.zeros(masks.shape, np.int32)
    if masks.numel():
        ndimage.label(masks.cpu().numpy(), near, output=found)
    return torch.from_numpy(found).to(masks.device)


def fill_holes_and_remove_specks(masks: Tensor, holes: int, specks: int) -> Tensor:
    """Fill small holes in masks; then drop their small pieces, but the largest of each.

    A hole is background that nothing connects with the border of the mask, not even a corner
    between pixels of the object; pieces are connected over corners, too.

    Args:
        masks: ``(n, y, x)`` bool; they are not changed.
        holes: pixels of the largest hole that is filled; 0 fills none.
        specks: pixels of the largest piece that is dropped; 0 drops none. The largest piece stays,
            the first of equal ones; all others go where ``specks`` is as many pixels as a mask has.

    Returns:
        ``(n, y, x)`` bool on the device of the masks.

    Raises:
        ValueError: the masks are not of this shape or type, or a number is below 0.
    """
    if masks.ndim != 3 or masks.dtype != torch.bool or min(holes, specks) < 0:
        raise ValueError(f"masks {masks.dtype} {tuple(masks.shape)}, {holes=}, {specks=}")
    some = max(1, _PIXELS // max(masks.shape[1] * masks.shape[2], 1))
    return torch.cat([_cleaned(part, holes, specks) for part in masks.split(some)])


def _cleaned(masks: Tensor, holes: int, specks: int) -> Tensor:
    if holes and masks.numel():
        empty = connected_components(~masks, 4)
        small = empty.flatten().bincount() <= holes
        for rim in (empty[:, 0], empty[:, -1], empty[:, :, 0], empty[:, :, -1]):
            small[rim.flatten()] = False
        small[0] = False
        masks = masks | small[empty]
    if specks and masks.numel():
        pieces = connected_components(masks, 8)
        masks = _kept(pieces, specks)[pieces]
    return masks.clone()


def _kept(pieces: Tensor, specks: int) -> Tensor:
    """``(k + 1,)`` bool: whether each piece stays; the background does not."""
    areas = pieces.flatten().bincount()
    number = torch.arange(len(areas), device=pieces.device)
    # The masks have their pieces one after another.
    last = pieces.flatten(1).amax(1).long().cummax(0).values
    mask = torch.searchsorted(last, number)
    rank = areas * len(areas) + (len(areas) - 1 - number)  # of equal ones the first is highest
    rank[0] = -1
    best = torch.full_like(last, -1).scatter_reduce(0, mask, rank, "amax")
    kept = (areas > specks) | (rank == best[mask])
    kept[0] = False
    return kept

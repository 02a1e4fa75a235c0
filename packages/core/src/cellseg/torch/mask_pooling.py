"""Masked pooling: a vector of each mask from the vectors of a grid, as one product.

A pixel counts once, with the vector of the cell that its centre lies in, as in
``cellseg.embeddings.pooling``. That module takes label images, whose objects share no pixel, and
merges what tiles say of them; masks overlap and lie in one plane, so each is counted within its
box instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask

_PAIRS = 1 << 20
"""Pairs of a mask and a cell in one sparse product."""
_LOGITS = 1 << 22
"""Logits that are compared at once on a CPU."""


def pool_masks(masks: Sequence[FoundMask], features: Tensor, step: tuple[float, float]) -> Tensor:
    """The mean vector under each mask, over its pixels.

    Args:
        masks: in one plane; they may overlap.
        features: ``(d, gy, gx)`` floating, finite, of the plane.
        step: pixels of the plane in a cell, ``(y, x)``, above 0. Pixels beyond the last cell, or
            before the first, count with the cell next to them.

    Returns:
        ``(n, d)`` float32 on the device of the features; 0 for a mask without pixels.

    Raises:
        ValueError: the features are not ``(d, gy, gx)`` with at least one cell, or the step is not
            above 0.
    """
    if features.ndim != 3 or not all(features.shape[1:]) or min(step) <= 0:
        raise ValueError(f"no grid: features {tuple(features.shape)}, {step} pixels in a cell")
    cells = features.float().flatten(1).T.contiguous()
    grid = (features.shape[1], features.shape[2])
    parts = [cells.new_zeros(0, len(features))]
    for chunk in _chunks(masks, grid, step):
        where, counts, starts, areas = (torch.from_numpy(x).to(cells.device) for x in chunk)
        # Bags of weighted rows are the product of a sparse matrix with the cells.
        sums = torch.nn.functional.embedding_bag(
            where, cells, starts, mode="sum", per_sample_weights=counts
        )
        parts.append(sums / areas[:, None])
    return torch.cat(parts)


def _chunks(
    masks: Sequence[FoundMask], grid: tuple[int, int], step: tuple[float, float]
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Rows of the sparse matrix, some at a time: the cells of the masks, the pixels in each, where
    each mask begins, and its area, at least 1."""
    rows: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    pairs = 0
    for number, one in enumerate(masks, 1):
        rows.append(_counted(one, grid, step))
        pairs += len(rows[-1][0])
        if number == len(masks) or pairs >= _PAIRS:
            lengths = np.array([len(cells) for cells, _ in rows], np.int64)
            areas = [max(counts.sum(dtype=np.float64), 1) for _, counts in rows]
            cells, counts = (np.concatenate(x) for x in zip(*rows, strict=True))
            yield cells, counts, lengths.cumsum() - lengths, np.array(areas, np.float32)
            rows, pairs = [], 0


def _counted(
    one: FoundMask, grid: tuple[int, int], step: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The cells that the pixels of a mask lie in, and how many lie in each."""
    if not one.mask.size:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    counts, lines = one.mask.view(np.uint8), []
    for axis in (0, 1):
        centres = np.arange(one.mask.shape[axis]) + (one.corner[axis] + 0.5)
        cell = (centres // step[axis]).astype(np.int64).clip(0, grid[axis] - 1)
        first = np.flatnonzero(np.diff(cell, prepend=-1))  # each cell is one run: they rise
        counts = np.add.reduceat(counts, first, axis=axis, dtype=np.int32)
        lines.append(cell[first])
    row, column = np.nonzero(counts)
    return lines[0][row] * grid[1] + lines[1][column], counts[row, column].astype(np.float32)


def pool_logits(logits: Tensor, features: Tensor, frame: Frame, threshold: float = 0.0) -> Tensor:
    """The mean vector under each mask, from its logits at their own resolution.

    A cell counts as often as logits in it lie above the threshold; those of the padding do not
    count. A logit belongs to the image if its centre does, and those of the first row and column
    always do. On CUDA it is computed by ``cellseg.torch.mask_pooling_kernels`` where Triton can be
    imported, up to rounding with the same results.

    Args:
        logits: ``(n, m, m)`` of the square, floating.
        features: ``(d, g, g)`` of the square, floating, finite, on the same device; ``m`` is a
            multiple of ``g``, 4 times it in Segment Anything.
        frame: where the image lies in the square.
        threshold: logits above it are part of the mask.

    Returns:
        ``(n, d)`` float32 on the device of the features; 0 for a mask without any such logit.

    Raises:
        ValueError: the logits or features are not square, or the one no multiple of the other.
    """
    m, g = logits.shape[-1], features.shape[-1]
    square = logits.shape[1:] == (m, m) and features.shape[1:] == (g, g)
    if not square or not g or m % g:
        raise ValueError(f"logits {tuple(logits.shape)} for features {tuple(features.shape)}")
    height, width = (_inside(scaled, frame.side, m) for scaled in frame.scaled)
    logits = logits.detach()[:, :height, :width]
    features = features.detach()[:, : -(-height * g // m), : -(-width * g // m)]
    if logits.is_cuda and find_spec("triton"):
        from cellseg.torch.mask_pooling_kernels import pool

        return pool(logits, features, m // g, threshold)
    cells = features.float().flatten(1).T
    parts = [cells.new_zeros(0, len(features))]
    for some in logits.split(max(1, _LOGITS // (height * width))):
        counts = _cells(some.float().cpu().numpy() > np.float32(threshold), m // g)
        weights = torch.from_numpy(counts).to(cells.device)
        parts.append(weights @ cells / weights.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(parts)


def _inside(scaled: int, side: int, samples: int) -> int:
    """Of ``samples`` along a side, how many have their centre in the image; at least 1."""
    return max(1, -(-(2 * scaled * samples - side) // (2 * side)))


def _cells(above: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """How many of ``(n, y, x)`` lie in each cell of ``factor`` × ``factor``, ``(n, cells)``."""
    n, height, width = above.shape
    above = np.pad(above, ((0, 0), (0, -height % factor), (0, -width % factor)))
    kind = np.min_scalar_type(factor**2)  # the least that holds the sums
    parts = above.reshape(n, above.shape[1] // factor, factor, above.shape[2])
    rows = np.add.reduce(parts, axis=2, dtype=kind)
    counts = reduce(np.add, [rows[:, :, i::factor] for i in range(factor)])
    found: NDArray[np.float32] = counts.reshape(n, prod(counts.shape[1:])).astype(np.float32)
    return found

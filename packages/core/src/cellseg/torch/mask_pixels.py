"""The pixels of masks, found from logits of low resolution without computing each of them.

A pixel of the image is a weighted mean of at most 3 × 3 neighbouring logits. Where all of these
are on one side of a threshold, so is the pixel; only the others, along the outline, are computed.
In NumPy, whose comparisons take a tenth of the time of torch's on a CPU; for CUDA there is
``cellseg.torch.mask_kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, TypeAlias

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.torch.frames import Frame

_MASKS = 16
"""Masks whose outlines are looked at together."""
_CELLS = 1 << 14
"""Cells that are looked at together: what fits into the cache of a processor."""

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kind:
    """Cells of an axis that have equally many pixels."""

    holds: Bools
    """``(cells,)``: which they are."""
    weights: Floats
    """``(pixels, taps, cells)``: of the samples, for each pixel of a cell; or, where all these
    cells have the same, ``(pixels, taps, 1)``."""

    def at(self, cells: Ints) -> Floats:
        """``(pixels, taps, k)``, or ``k`` = 1: the weights of some cells."""
        return self.weights if self.weights.shape[2] == 1 else self.weights.take(cells, 2)


@dataclass(frozen=True, slots=True)
class Axis:
    """How the pixels of one axis of an image come from the samples of a map.

    Pixels that come from the same samples are one cell; cell ``i`` begins with sample ``i``.
    """

    first: Ints
    """``(pixels,)``: the first of the samples, and the cell, of each pixel; rising."""
    weights: Floats
    """``(pixels, taps)``, of the samples; they sum up to 1."""
    counts: Ints
    """``(cells,)``: pixels of each cell."""
    starts: Ints
    """``(cells,)``: the first pixel of each cell."""
    kinds: tuple[Kind, ...]
    """The cells by how many pixels they have."""

    @classmethod
    def of(cls, samples: int, side: int, scaled: int, size: int) -> Axis:
        """What ``Frame.restore`` does along one axis of a map with so many samples."""
        # What torch makes of unit vectors, so that no weight can differ from torch's own.
        unit = torch.eye(samples)[None]
        if samples != side:
            unit = torch.nn.functional.interpolate(unit, side, mode="linear")
        unit = unit[..., :scaled]
        if scaled != size:
            unit = torch.nn.functional.interpolate(unit, size, mode="linear")
        matrix = unit[0].T.numpy()
        first = (matrix != 0).argmax(1)
        taps = int((samples - (matrix[:, ::-1] != 0).argmax(1) - first).max())
        first = np.minimum(first, samples - taps)
        weights = np.take_along_axis(matrix, first[:, None] + np.arange(taps), 1)
        counts = np.bincount(first)
        starts = counts.cumsum() - counts
        kinds = tuple(_kind(counts, starts, weights, n) for n in np.unique(counts) if n > 0)
        return cls(first, weights, counts, starts, kinds)

    @property
    def taps(self) -> int:
        """Samples that a pixel comes from."""
        return int(self.weights.shape[1])

    @property
    def reach(self) -> int:
        """Samples that any pixel comes from."""
        return len(self.counts) + self.taps - 1


def _kind(counts: Ints, starts: Ints, weights: Floats, pixels: int) -> Kind:
    holds = counts == pixels
    table = weights[starts[:, None].clip(max=len(weights) - pixels) + np.arange(pixels)]
    same = bool((table[holds] == table[holds][0]).all())
    return Kind(holds, (table[holds][:1] if same else table).transpose(1, 2, 0).copy())


@lru_cache(maxsize=8)
def axes(frame: Frame, samples: int) -> tuple[Axis, Axis]:
    """Rows and columns of the image in ``frame``, from maps of ``(samples, samples)``."""
    rows, columns = (
        Axis.of(samples, frame.side, scaled, size)
        for scaled, size in zip(frame.scaled, frame.size, strict=True)
    )
    return rows, columns


def count(
    logits: Floats, rows: Axis, columns: Axis, levels: tuple[float, float, float]
) -> tuple[Ints, Ints]:
    """How many pixels of the image are above thresholds.

    Args:
        logits: ``(n, m, m)``.
        rows: of the image.
        columns: of the image.
        levels: the thresholds, falling.

    Returns:
        ``(n, 3)`` pixels above each of them, and ``(n, 4)`` the box of those above the second:
        first and last pixel, ``x0 y0 x1 y1``; all 0 where there is none.
    """
    areas, boxes = np.zeros((len(logits), 3), np.int64), np.zeros((len(logits), 4), np.int64)
    for start in range(0, len(logits), _MASKS):
        part = slice(start, start + _MASKS)
        _count(logits[part], rows, columns, levels, areas[part], boxes[part])
    return areas, boxes


def _count(
    logits: Floats,
    rows: Axis,
    columns: Axis,
    levels: tuple[float, float, float],
    areas: Ints,
    boxes: Ints,
) -> None:
    logits = np.ascontiguousarray(logits[:, : rows.reach, : columns.reach])
    limits = [np.float32(level) for level in levels]
    in_rows, in_columns = (np.zeros((len(logits), len(x.first)), bool) for x in (rows, columns))
    masks, cells, wholes = [], [], []
    for index, one in enumerate(logits):
        low, high = _extremes(one, rows, columns)
        whole = [low > limit for limit in limits]
        unsure = reduce(np.logical_or, ((high > a) ^ b for a, b in zip(limits, whole, strict=True)))
        weights = columns.counts.astype(np.float32)
        areas[index] = [(above @ weights).astype(np.int64) @ rows.counts for above in whole]
        in_rows[index] = whole[1].any(1).repeat(rows.counts)
        in_columns[index] = whole[1].any(0).repeat(columns.counts)
        flat = np.flatnonzero(unsure)
        masks.append(np.full(len(flat), index))
        cells.append(flat)
        wholes.append(np.stack([above.ravel().take(flat) for above in whole]))

    mask, (row, column) = (
        np.concatenate(masks),
        np.divmod(np.concatenate(cells), len(columns.counts)),
    )
    whole_cells = np.concatenate(wholes, 1)
    for tall in rows.kinds:
        of_height = tall.holds.take(row)
        for wide in columns.kinds:
            chosen = np.flatnonzero(of_height & wide.holds.take(column))
            for start in range(0, len(chosen), _CELLS):
                part = chosen[start : start + _CELLS]
                at = mask.take(part), row.take(part), column.take(part)
                patches = _patches(logits, rows.taps, columns.taps, *at)
                found, ys, xs = _inside(patches, tall.at(at[1]), wide.at(at[2]), limits)
                # Pixels of cells that are above a level as a whole have been counted already.
                found[whole_cells.take(part, 1)] = 0
                for level in range(3):
                    areas[:, level] += np.bincount(at[0], found[level], len(areas)).astype(np.int64)
                _mark(in_rows, rows, at[0], at[1], ys)
                _mark(in_columns, columns, at[0], at[2], xs)
    (y0, y1), (x0, x1) = _ends(in_rows), _ends(in_columns)
    boxes[:] = np.stack([x0, y0, x1, y1], 1) * (areas[:, 1:2] > 0)


def _extremes(logits: Floats, rows: Axis, columns: Axis) -> tuple[Floats, Floats]:
    """The lowest and the highest of the samples of each cell, ``(rows, columns)``."""
    low = high = logits
    for axis, dim in ((rows, 0), (columns, 1)):
        length = len(axis.counts)
        low, high = (
            reduce(of, [x[(slice(None),) * dim + (slice(tap, tap + length),)]
                        for tap in range(axis.taps)])
            for x, of in ((low, np.minimum), (high, np.maximum))
        )  # fmt: skip
    return low, high


def _patches(
    logits: Floats, high: int, wide: int, mask: Ints, row: Ints, column: Ints
) -> list[list[Floats]]:
    """The logits ``(k,)`` at each place of the ``high`` × ``wide`` that ``k`` cells come from."""
    height, width = logits.shape[1:]
    flat, corner = logits.ravel(), (mask * height + row) * width + column
    return [[flat.take(corner + (a * width + b)) for b in range(wide)] for a in range(high)]


def _inside(
    patches: list[list[Floats]], down: Floats, across: Floats, limits: Sequence[np.float32]
) -> tuple[NDArray[Any], Bools, Bools]:
    """How many pixels of each cell are above each level ``(3, k)`` int32, and whether any pixel is
    above the second of them, in each line of the cell, ``(lines, k)``, along y and along x.

    Args:
        patches: what ``_patches`` gives.
        down: ``(lines, taps, k)``, weights of each line of a cell; ``k`` may be 1.
        across: the same along x.
        limits: the levels, falling.
    """
    cells = len(patches[0][0])
    counts = np.zeros((3, cells), np.int32)
    ys, xs = (np.zeros((len(x), cells), bool) for x in (down, across))
    for weights, seen in zip(down, ys, strict=True):
        lines = [_mean(column, weights) for column in zip(*patches, strict=True)]
        found = np.zeros((3, cells), np.uint8)
        for others, below in zip(across, xs, strict=True):
            values = _mean(lines, others)
            for number, limit in enumerate(limits):
                above = values > limit
                found[number] += above.view(np.uint8)
                if number == 1:
                    seen |= above
                    below |= above
        counts += found
    return counts, ys, xs


def _mean(values: Sequence[Floats], weights: Floats) -> Floats:
    result: Floats = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        result += value * weight
    return result


def _mark(lines: Bools, axis: Axis, mask: Ints, cell: Ints, seen: Bools) -> None:
    """Mark, in ``(n, pixels)``, the lines of cells ``(lines, k)`` in which something was seen."""
    begin = mask * lines.shape[1] + axis.starts.take(cell)
    for place, here in enumerate(seen):
        lines.reshape(-1)[begin[here] + place] = True


def _ends(flags: Bools) -> tuple[Ints, Ints]:
    """The first and the last that is true, ``(n,)`` each."""
    return flags.argmax(1), flags.shape[1] - 1 - flags[:, ::-1].argmax(1)


def cut(logits: Floats, rows: Axis, columns: Axis, box: Sequence[int]) -> Floats:
    """The part of the logits ``(m, m)`` of one mask that the pixels of a box, ``x0 y0 x1 y1``, come
    from."""
    x0, y0, x1, y1 = box
    return logits[
        rows.first[y0] : rows.first[y1] + rows.taps,
        columns.first[x0] : columns.first[x1] + columns.taps,
    ]


def restored(
    part: Floats, rows: Axis, columns: Axis, box: Sequence[int], threshold: float
) -> Bools:
    """The pixels ``(y, x)`` of a box, ``x0 y0 x1 y1``, that are above a threshold, from the part
    of the logits that ``cut`` gives."""
    x0, y0, x1, y1 = box
    down = _interpolated(part, rows, slice(y0, y1 + 1))
    across = _interpolated(np.ascontiguousarray(down.T), columns, slice(x0, x1 + 1))
    return np.ascontiguousarray((across > np.float32(threshold)).T)


def _interpolated(lines: Floats, axis: Axis, pixels: slice) -> Floats:
    """Some pixels along the first axis, whose samples begin with those of the first pixel."""
    first = axis.first[pixels] - axis.first[pixels.start]
    weights = axis.weights[pixels].T[:, :, None]
    return _mean([lines.take(first + tap, 0) for tap in range(axis.taps)], weights)

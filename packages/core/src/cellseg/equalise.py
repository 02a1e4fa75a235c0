"""Contrast-limited adaptive histogram equalisation (CLAHE) of images of any size, read in blocks.

Method: Zuiderveld, Contrast Limited Adaptive Histogram Equalization, Graphics Gems IV (1994)
474-485. An image is cut into a grid of cells; the histogram of each, with no bin above a limit,
tells which value becomes which; a pixel gets the mean of what the four nearest cells say, by its
distance to their middles. The grid is that of the whole image, so a block of it comes out the same
in whatever blocks the image is read.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, LazyArray

BINS = 256
"""Of a histogram; between the edges of a bin, values are mapped linearly."""
KEPT = 64 << 20
"""Bytes of the mappings that a process keeps, of all its images together."""

Floats: TypeAlias = NDArray[np.float32]
Cell: TypeAlias = tuple[int, int, int]
"""Plane, row and column of a cell."""


class _Mappings:
    """The mappings that were used last, of all images of the process: ``(c, BINS + 1)`` each."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: OrderedDict[tuple[object, Cell], Floats] = OrderedDict()
        self._bytes = 0

    def get(self, owner: object, cell: Cell) -> Floats | None:
        with self._lock:
            found = self._found.get((owner, cell))
            if found is not None:
                self._found.move_to_end((owner, cell))
            return found

    def put(self, owner: object, cell: Cell, mapping: Floats) -> None:
        with self._lock:
            if (owner, cell) in self._found:
                return
            self._found[owner, cell] = mapping
            self._bytes += mapping.nbytes
            while self._bytes > KEPT:
                self._bytes -= self._found.popitem(last=False)[1].nbytes


_MAPPINGS = _Mappings()


@dataclass(slots=True, eq=False)
class Equaliser:
    """What CLAHE does to one image: each channel and each plane by itself.

    Cells are about ``kernel`` pixels wide and high: the image is divided evenly into as many as
    fit best, at least one. Their mappings are found when they are needed, each from the pixels of
    its cell. Picklable if the image is.
    """

    image: LazyArray
    """``(c, z, y, x)`` float32, all of it; what lies beyond 0 to 1 counts as 0 or 1."""
    kernel: int
    clip: float
    """Share of a cell's pixels that a bin may hold, above 1 / ``BINS`` and at most 1. What is
    beyond is spread over the other bins."""
    _owner: object = field(default_factory=object, init=False, repr=False)

    def apply(self, block: Floats, corner: ZYX) -> None:
        """Equalise a block of the image in place: all channels, then from 0 to 1.

        Args:
            block: ``(c, z, y, x)`` float32, as ``image`` has it.
            corner: of its first voxel in the image, ``(z, y, x)``.
        """
        depth, height, width = block.shape[1:]
        rows = list(_Strip.all_of(self.image.shape[2], self.kernel, corner[1], height))
        columns = list(_Strip.all_of(self.image.shape[3], self.kernel, corner[2], width))
        if not rows or not columns:
            return
        np.clip(block, 0, 1, out=block)
        mappings = self._mappings(range(corner[0], corner[0] + depth), rows, columns)
        for z, row, column in itertools.product(range(depth), rows, columns):
            pairs = [[mappings[corner[0] + z, r, c] for c in column.cells] for r in row.cells]
            for channel, plane in enumerate(block[:, z, row.pixels, column.pixels]):
                four = [[mapping[channel] for mapping in pair] for pair in pairs]
                plane[...] = _mapped(plane, four, row.weights[:, None], column.weights)
        np.clip(block, 0, 1, out=block)

    def _mappings(
        self, planes: range, rows: list[_Strip], columns: list[_Strip]
    ) -> dict[Cell, Floats]:
        """Those of all cells that a block needs."""
        found: dict[Cell, Floats] = {}
        missing = []
        for cell in itertools.product(planes, _cells(rows), _cells(columns)):
            mapping = _MAPPINGS.get(self._owner, cell)
            if mapping is None:
                missing.append(cell)
            else:
                found[cell] = mapping
        if missing:
            z, row, column = (
                range(min(axis), max(axis) + 1) for axis in zip(*missing, strict=True)
            )
            for cell, mapping in self._measured(z, row, column):
                found[cell] = mapping
                _MAPPINGS.put(self._owner, cell, mapping)
        return found

    def _measured(
        self, planes: range, rows: range, columns: range
    ) -> Iterator[tuple[Cell, Floats]]:
        """The mappings of some cells beside each other, whose pixels are read at once."""
        down = _edges(self.image.shape[2], self.kernel)[rows.start : rows.stop + 1]
        right = _edges(self.image.shape[3], self.kernel)[columns.start : columns.stop + 1]
        y, x = (slice(int(edges[0]), int(edges[-1])) for edges in (down, right))
        z = slice(planes.start, planes.stop)
        pixels = self.image[slice(0, self.image.shape[0]), z, y, x]
        sides = np.diff(down), np.diff(right)
        area = np.multiply.outer(*sides)
        number = np.arange(area.size).reshape(area.shape) * BINS
        start = number.repeat(sides[0], axis=0).repeat(sides[1], axis=1)
        for plane in planes:
            bins, _ = _positions(np.clip(pixels[:, plane - planes.start], 0, 1))
            counts = np.stack(
                [np.bincount((start + b).ravel(), minlength=area.size * BINS) for b in bins]
            ).reshape(len(bins), *area.shape, BINS)
            mappings = _mappings_of(counts, area[..., None], self.clip)
            for row, column in np.ndindex(area.shape):
                mapping = np.ascontiguousarray(mappings[:, row, column])
                yield (plane, rows[row], columns[column]), mapping


@dataclass(frozen=True, slots=True)
class _Strip:
    """Pixels of a block along an axis that lie between the middles of the same two cells."""

    pixels: slice
    """Counted within the block."""
    cells: tuple[int, int]
    """The same one twice, beyond the middle of the last."""
    weights: Floats
    """Of the second cell, for each pixel."""

    @staticmethod
    def all_of(length: int, kernel: int, start: int, count: int) -> Iterator[_Strip]:
        """Of the ``count`` pixels from ``start`` of an axis of an image."""
        edges = _edges(length, kernel)
        middles = (edges[1:] + edges[:-1]) / 2
        last = len(middles) - 1
        at = start + np.arange(count) + 0.5
        before = np.clip(np.searchsorted(middles, at, side="right") - 1, 0, last)
        after = np.minimum(before + 1, last)
        apart = np.where(after > before, middles[after] - middles[before], 1.0)
        weights = np.clip((at - middles[before]) / apart, 0, 1) * (after > before)
        cuts = [0, *(np.flatnonzero(np.diff(before)) + 1), count] if count else []
        for a, b in itertools.pairwise(int(cut) for cut in cuts):
            cells = int(before[a]), int(after[a])
            yield _Strip(slice(a, b), cells, weights[a:b].astype(np.float32))


def _edges(length: int, kernel: int) -> NDArray[np.int64]:
    """Where the cells of an axis begin, and where the last one ends."""
    count = max((length + kernel // 2) // kernel, 1)
    return np.arange(count + 1, dtype=np.int64) * length // count


def _cells(strips: list[_Strip]) -> list[int]:
    return sorted({cell for strip in strips for cell in strip.cells})


def _positions(values: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Of values from 0 to 1 the bin, and where in it they lie, from 0 to 1."""
    scaled = values * np.float32(BINS)
    bins = np.minimum(scaled.astype(np.intp), BINS - 1)
    return bins, scaled - bins.astype(np.float32)


def _mapped(values: Floats, four: list[list[Floats]], down: Floats, right: Floats) -> Floats:
    """What four mappings make of values from 0 to 1, weighted; ``[[above, ...], [below, ...]]``."""
    bins, within = _positions(values)

    def one(mapping: Floats) -> Floats:
        low = mapping.take(bins)
        low += (mapping.take(bins + 1) - low) * within
        return low

    above, below = ((1 - right) * one(left) + right * one(other) for left, other in four)
    result: Floats = (1 - down) * above + down * below
    return result


def _mappings_of(counts: NDArray[np.int64], area: NDArray[np.int64], clip: float) -> Floats:
    """Cumulative histograms ``(…, BINS + 1)`` from 0 to 1, for ``counts`` ``(…, BINS)``.

    All bins are raised by the same number, but none above the limit, so that the sum stays. Of
    the bins in rising order, the lowest ``k`` are below the limit; were it just they, the number
    would be ``raised`` at ``k``. The sum is the smallest over ``k`` of what each would give, so
    the largest of the numbers is the right one.
    """
    limit = clip * area
    k = np.arange(1, BINS + 1)
    raised = (area - (BINS - k) * limit - np.sort(counts, axis=-1).cumsum(-1)) / k
    clipped = np.minimum(counts + raised.max(-1, keepdims=True), limit)
    mapping = np.zeros((*counts.shape[:-1], BINS + 1), np.float32)
    mapping[..., 1:] = clipped.cumsum(-1) / area
    mapping[..., -1] = 1
    return mapping

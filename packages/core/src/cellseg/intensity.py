"""Measuring intensities of images of any size, exactly, in the memory of one block.

Percentiles are found by radix selection on the bits of the pixels: a histogram of the leading 16
bits tells in which bin the wanted rank lies, another of the next 16 bits where in that bin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import LazyArray
from cellseg.errors import DataError
from cellseg.sampling_options import Method

BLOCK = 1 << 22
"""Voxels read at once; also the largest count that the float32 bins of OpenCV hold exactly."""
NOT_FINITE = "Replace them in the file, for instance by 0: numpy.nan_to_num does it."
"""What to do about pixels that are NaN or infinite."""
_PIECE = 1 << 20
_BINS = 1 << 16
_EXPONENT = {2: 0x7C00, 4: 0x7F80, 8: 0x7FF0}  # leading 16 bits of infinity, by bytes of a float

Bits: TypeAlias = NDArray[np.unsignedinteger[Any]]
Counts: TypeAlias = NDArray[np.int64]
Pixels: TypeAlias = NDArray[Any]


def rescaled(block: Pixels, shift: Sequence[float], scale: Sequence[float]) -> NDArray[np.float32]:
    """``(block - shift) * scale`` for each channel, as new float32.

    Args:
        block: ``(c, z, y, x)``, integers or floats.
        shift: for each channel.
        scale: for each channel; 0 gives 0.

    Raises:
        DataError: the result is not finite, because the block is not.
    """
    exact = block.dtype.kind == "f" or block.dtype.itemsize <= 2
    wide = np.float32 if exact and block.dtype.itemsize <= 4 else np.float64
    out = np.empty(block.shape, np.float32)
    for number, channel in enumerate(block):
        plane, channel = out[number], np.ascontiguousarray(channel)
        if shift[number] == 0 and scale[number] == 1:
            plane[...] = channel
        elif wide is np.float32:
            np.subtract(channel, wide(shift[number]), out=plane, dtype=wide)
            plane *= wide(scale[number])
        else:
            difference = np.subtract(channel, shift[number], dtype=wide)
            np.multiply(difference, scale[number], out=plane, casting="same_kind")
    if block.dtype.kind == "f" and not np.isfinite(out).all():
        bad = int(out.size - np.isfinite(out).sum())
        raise DataError(f"{bad} pixels are NaN or infinite.", hint=NOT_FINITE)
    return out


def restored(
    block: NDArray[np.float32],
    shift: Sequence[float],
    scale: Sequence[float],
    dtype: np.dtype[Any],
) -> Pixels:
    """The inverse of :func:`rescaled`: ``block / scale + shift``, as ``dtype``.

    Args:
        block: ``(c, z, y, x)``, finite.
        shift: for each channel.
        scale: for each channel; where it is 0, the channel is ``shift`` throughout.
        dtype: integers are rounded; what it cannot hold is clipped to its range.
    """
    out = np.empty(block.shape, dtype)
    for number, channel in enumerate(block):
        factor = 1 / scale[number] if scale[number] else 0.0
        values = channel.astype(np.float64) * factor + shift[number]
        if dtype.kind in "ui":
            limits = np.iinfo(dtype)
            # The largest float64 below 2^64 is no neighbour of it: casting that would wrap around.
            top = np.nextafter(float(limits.max) + 1, 0)
            values = np.clip(np.rint(values), limits.min, min(float(limits.max), top))
        elif dtype.kind == "f":
            values = np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max)
        out[number] = values.astype(dtype)
    return out


def measure(
    images: Sequence[LazyArray],
    names: Sequence[str],
    *,
    method: Method,
    percentiles: tuple[float, float],
    together: bool,
    non_zero: bool,
) -> tuple[list[float], list[float]]:
    """Where 0 and 1 of the normalised scale lie among the raw values, for each channel.

    Args:
        images: each ``(c, z, y, x)``; several are measured as if they were one.
        names: what errors call them.
        method: for ``z-score`` 0 is the mean, and 1 lies one standard deviation above it.
        percentiles: those that become 0 and 1, for ``percentile``.
        together: one pair of values for all channels.
        non_zero: leave pixels of value 0 out.

    Returns:
        The values that become 0, and those that become 1; equal where a channel is constant.

    Raises:
        DataError: pixels are not finite, or the images have different numbers of channels.
    """
    blocks = _Blocks(images, names)
    kinds: dict[str, type[_Extremes] | type[_Moments]] = {"min-max": _Extremes, "z-score": _Moments}
    groups = 1 if together else blocks.channels
    if method == "percentile":
        ranks = [_Ranks(blocks.dtype, percentiles, non_zero) for _ in range(groups)]
        for _ in range(ranks[0].passes):
            for block in blocks:
                for group, pixels in enumerate(_grouped(block.pixels, together)):
                    if not ranks[group].add(pixels):
                        raise block.not_finite()
            for rank in ranks:
                rank.next_pass()
        pairs = [rank.values() for rank in ranks]
    else:
        sums = [kinds[method](non_zero) for _ in range(groups)]
        for block in blocks:
            for group, pixels in enumerate(_grouped(block.pixels, together)):
                if not sums[group].add(pixels):
                    raise block.not_finite()
        pairs = [total.values() for total in sums]
    if together:
        pairs *= blocks.channels
    return [low for low, _ in pairs], [high for _, high in pairs]


def block_slices(image: LazyArray, budget: int = BLOCK) -> Iterator[tuple[slice, ...]]:
    """Cut ``(…, z, y, x)`` into blocks of at most ``budget`` elements, or of one chunk.

    They hold all that lies before z, and line up with the array's ``chunks``, where it tells them,
    else with powers of 2, as chunks usually do.
    """
    lead, shape = image.shape[:-3], image.shape[-3:]
    left = max(budget // max(math.prod(lead), 1), 1)
    chunks = getattr(image, "chunks", None)
    units = [min(*pair) for pair in zip(chunks[-3:], shape, strict=True)] if chunks else [1, 1, 1]
    size = list(units)
    # Whole rows first, for strips; then some depth, for chunks of volumes; then what fits.
    for axis, goal in ((2, 1 << 14), (1, 64), (0, 64), (1, shape[1]), (2, shape[2]), (0, shape[0])):
        rest = math.prod(size) // size[axis]
        while size[axis] < min(goal, shape[axis]):
            doubled = min(2 * size[axis], shape[axis])
            if doubled * rest > left:
                break
            size[axis] = doubled
    starts = [range(0, length, step) for length, step in zip(shape, size, strict=True)]
    for corner in itertools.product(*starts):
        inner = (slice(a, min(a + n, m)) for a, n, m in zip(corner, size, shape, strict=True))
        yield (*(slice(0, n) for n in lead), *inner)


@dataclass(frozen=True, slots=True)
class _Block:
    pixels: Pixels
    name: str
    where: tuple[slice, ...]

    def not_finite(self) -> DataError:
        place = ", ".join(
            f"{axis} {part.start} to {part.stop - 1}"
            for axis, part in zip("zyx", self.where[-3:], strict=True)
        )
        bad = int(self.pixels.size - np.isfinite(self.pixels).sum())
        return DataError(
            f"{self.name}: {bad} pixels are NaN or infinite, at {place}.", hint=NOT_FINITE
        )


class _Blocks:
    """The blocks of some images, as often as asked; kept in memory only if there is just one."""

    def __init__(self, images: Sequence[LazyArray], names: Sequence[str]) -> None:
        self.channels = images[0].shape[0]
        for image, name in zip(images, names, strict=True):
            if image.shape[0] != self.channels:
                raise DataError(
                    f"{name} has {image.shape[0]} channels, but {names[0]} has {self.channels}.",
                    hint="Pick the same ones from each with --channels.",
                )
        common = np.result_type(*(image.dtype for image in images))
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if common.kind == "b" else common
        if self.dtype.kind not in "uif" or self.dtype.itemsize > 8:
            raise DataError(f"{names[0]}: cannot normalise pixels of type {common}.")
        self._images = list(zip(images, names, strict=True))
        self._only: _Block | None = None

    def __iter__(self) -> Iterator[_Block]:
        if self._only is not None:
            yield self._only
            return
        count = 0
        block = None
        for image, name in self._images:
            for where in block_slices(image):
                pixels = np.ascontiguousarray(image[where], dtype=self.dtype)
                block = _Block(pixels, name, where)
                count += 1
                yield block
        if count == 1:
            self._only = block


def _grouped(pixels: Pixels, together: bool) -> Iterable[Pixels]:
    """Flat pixels of each channel, or of all."""
    return [pixels.reshape(-1)] if together else pixels.reshape(len(pixels), -1)


@dataclass(slots=True)
class _Search:
    """The value of one rank: its leading bits so far, and its rank among those that share them."""

    rank: int
    prefix: int = 0


class _Ranks:
    """Percentiles of pixels that come in pieces, several times over."""

    def __init__(
        self, dtype: np.dtype[Any], percentiles: tuple[float, float], non_zero: bool
    ) -> None:
        self.passes = max(dtype.itemsize // 2, 1)
        self._dtype, self._percentiles, self._non_zero = dtype, percentiles, non_zero
        self._bits = 8 * dtype.itemsize
        self._pass = 0
        self._searches: list[_Search] = []
        self._fractions: list[float] = []
        self._counts: dict[int, Counts] = {0: np.zeros(_BINS, np.int64)}

    def add(self, pixels: Pixels) -> bool:
        """Count these in the histograms of this pass; False if some are not finite."""
        if self._non_zero and self._bits > 16:
            pixels = pixels[pixels != 0]
        bits = _ordered(pixels)
        if self._bits <= 16:
            counts = _histogram(bits)
            if self._non_zero:
                counts[int(_ordered(np.zeros(1, self._dtype))[0])] = 0
            self._counts[0] += counts
            return self._finite(counts)
        shift = self._bits - 16 * (self._pass + 1)
        if self._pass == 0:
            counts = _histogram((bits >> shift).astype(np.uint16))
            self._counts[0] += counts
            return self._finite(counts)
        leading = bits >> (shift + 16)
        for prefix, total in self._counts.items():
            total += _histogram((bits[leading == prefix] >> shift).astype(np.uint16))
        return True

    def _finite(self, counts: Counts) -> bool:
        if self._dtype.kind != "f":
            return True
        top = _EXPONENT[self._dtype.itemsize] | 0x8000
        return not (counts[top:].any() or counts[: _BINS - top].any())

    def next_pass(self) -> None:
        """Use the histograms of this pass."""
        if self._pass == 0:
            total = int(self._counts[0].sum())
            for percentile in self._percentiles if total else ():
                position = percentile / 100 * (total - 1)
                rank = min(math.floor(position), total - 1)
                self._fractions.append(position - rank)
                self._searches += [_Search(rank), _Search(min(rank + 1, total - 1))]
        sums = {prefix: counts.cumsum() for prefix, counts in self._counts.items()}
        for search in self._searches:
            cumulative = sums[search.prefix]
            digit = int(np.searchsorted(cumulative, search.rank, side="right"))
            search.rank -= int(cumulative[digit - 1]) if digit else 0
            search.prefix = (search.prefix << 16) | digit
        self._counts = {s.prefix: np.zeros(_BINS, np.int64) for s in self._searches}
        self._pass += 1

    def values(self) -> tuple[float, float]:
        """The two percentiles, in between ranks by linear interpolation; 0 and 0 for no pixels."""
        if not self._searches:
            return 0.0, 0.0
        found = np.array([s.prefix for s in self._searches], np.dtype(f"u{self._dtype.itemsize}"))
        a, b, c, d = (float(value) for value in _unordered(found, self._dtype))
        return a + (b - a) * self._fractions[0], c + (d - c) * self._fractions[1]


class _Extremes:
    """The smallest and largest pixel."""

    def __init__(self, non_zero: bool) -> None:
        self._non_zero = non_zero
        self._low, self._high = math.inf, -math.inf

    def add(self, pixels: Pixels) -> bool:
        """Take these in; False if some are not finite."""
        if self._non_zero:
            pixels = pixels[pixels != 0]
        if pixels.size:
            low, high = float(pixels.min()), float(pixels.max())
            self._low, self._high = min(self._low, low), max(self._high, high)
            return math.isfinite(low) and math.isfinite(high)
        return True

    def values(self) -> tuple[float, float]:
        """Both, or 0 and 0 for no pixels."""
        return (self._low, self._high) if self._low <= self._high else (0.0, 0.0)


@dataclass(slots=True)
class _Moments:
    """Mean and standard deviation, merged piece by piece (Chan, Golub and LeVeque, 1983)."""

    non_zero: bool
    count: int = 0
    mean: float = 0.0
    squares: float = field(default=0.0)

    def add(self, pixels: Pixels) -> bool:
        """Take these in; False if some are not finite."""
        for start in range(0, pixels.size, _PIECE):
            piece = pixels[start : start + _PIECE]
            piece = (piece[piece != 0] if self.non_zero else piece).astype(np.float64)
            if not piece.size:
                continue
            mean = float(piece.mean())
            if not math.isfinite(mean):
                return False
            piece -= mean
            total = self.count + piece.size
            apart = mean - self.mean
            self.squares += float(piece @ piece) + apart**2 * self.count * piece.size / total
            self.mean += apart * piece.size / total
            self.count = total
        return True

    def values(self) -> tuple[float, float]:
        """The mean, and the mean plus one standard deviation."""
        return self.mean, self.mean + math.sqrt(self.squares / max(self.count, 1))


def _histogram(values: NDArray[Any]) -> Counts:
    """Counts of 2^16 values, of flat uint8 or uint16."""
    import cv2

    counts = np.zeros(_BINS, np.int64)
    bins = 256 if values.dtype.itemsize == 1 else _BINS
    for start in range(0, values.size, BLOCK):
        piece = values[start : start + BLOCK].reshape(1, -1)
        counts[:bins] += (
            cv2.calcHist([piece], [0], None, [bins], [0, bins]).reshape(-1).astype(np.int64)
        )
    return counts


def _ordered(values: Pixels) -> Bits:
    """Unsigned integers of the same size that sort as the values do."""
    size = values.dtype.itemsize
    bits: Bits = values.view(np.dtype(f"u{size}"))
    sign = bits.dtype.type(1 << (8 * size - 1))
    if values.dtype.kind == "i":
        return bits ^ sign
    if values.dtype.kind == "f":
        negative = (values.view(np.dtype(f"i{size}")) >> (8 * size - 1)).view(bits.dtype)
        return bits ^ (negative | sign)
    return bits


def _unordered(bits: Bits, dtype: np.dtype[Any]) -> Pixels:
    """The inverse of ``_ordered``."""
    sign = bits.dtype.type(1 << (8 * dtype.itemsize - 1))
    if dtype.kind == "i":
        return (bits ^ sign).view(dtype)
    if dtype.kind == "f":
        return np.where(bits & sign, bits ^ sign, ~bits).view(dtype)
    return bits.view(dtype)

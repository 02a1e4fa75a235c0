"""Calling a predictor: checks what it returns, and halves what does not fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from cellseg.data import ZYX, Prompt, Segmentation, Tile, Tiling
from cellseg.engine.plan import Box, Plan
from cellseg.engine.stitch import PartsInMemory, stitch
from cellseg.engine.tile import NO_CLASS, tile_labels
from cellseg.errors import DeviceError, PluginError
from cellseg.memory import free_memory, out_of_memory
from cellseg.prompting import within
from cellseg.specs import Predictor

SMALLEST = 64
"""Tiles are not halved below this length of their longest side."""
_ROUNDING = 1e-4
"""How far above 1 a probability may come out, where float16 still rounds it to 1."""


class Segmenter:
    """A predictor that may be trusted.

    When memory runs out, it segments fewer tiles at once, and then tiles in halves whose
    objects it stitches. It remembers what was too big, so that the same tile is always
    segmented the same way, whatever came before it.

    Args:
        predictor: the backend's.
        backend: its name, for messages.
        halo: how far halves of a tile overlap at most, ``(z, y, x)``.
        volumetric: whether tiles may be halved along z.
        least: the share of the smaller object that makes two objects one.
        probabilities: whether each result must bring them, or else must not.
        classes: how many they are of; 0 takes what the first result has.
    """

    def __init__(
        self,
        predictor: Predictor,
        backend: str,
        halo: ZYX,
        volumetric: bool,
        least: float,
        *,
        probabilities: bool = False,
        classes: int = 0,
    ) -> None:
        self.notes: list[str] = []
        """What the user should know; whoever reads them empties the list."""
        self._predictor = predictor
        self._backend = backend
        self._halo = halo
        self._volumetric = volumetric
        self._least = least
        self._probabilities = probabilities
        self._classes = classes
        self._batch = sys.maxsize
        self._too_big = sys.maxsize

    def __call__(self, tiles: Sequence[Tile]) -> list[Segmentation]:
        """Segment tiles of one shape.

        Raises:
            PluginError: the predictor breaks its contract.
            DeviceError: not even a very small tile fits into memory.
        """
        if len(tiles) > self._batch:
            half = self._batch
            return self(tiles[:half]) + self(tiles[half:])
        if tiles[0].image.size >= self._too_big:
            return [self._in_halves(tile) for tile in tiles]
        try:
            return self._checked(tiles)
        except Exception as error:
            if not out_of_memory(error):
                raise
        free_memory()
        if len(tiles) > 1:
            self._batch = len(tiles) // 2
            self.notes.append(f"Out of memory: {self._batch} tile(s) at once from now on.")
        else:
            self._too_big = tiles[0].image.size
            size = " x ".join(str(n) for n in tiles[0].image.shape[1:])
            self.notes.append(f"Out of memory with a tile of {size} voxels: halving it.")
        return self(tiles)

    def halved(self, tile: Tile) -> Segmentation | None:
        """Segment a tile in halves, without trying the whole; None if it is too small for that."""
        size, before = tile.image.size, self._too_big
        if max(tile.image.shape[i + 1] for i in self._axes) < SMALLEST:
            return None
        self._too_big = min(size, before)
        try:
            return self([tile])[0]
        finally:
            if self._too_big == size:  # this one alone
                self._too_big = before

    @property
    def _axes(self) -> tuple[int, ...]:
        """Along which tiles may be halved: of ``(z, y, x)``."""
        return (0, 1, 2) if self._volumetric else (1, 2)

    def _checked(self, tiles: Sequence[Tile]) -> list[Segmentation]:
        found = self._predictor(tiles)
        if not isinstance(found, Sequence) or len(found) != len(tiles):
            got = len(found) if isinstance(found, Sequence) else type(found).__name__
            raise self._broken(f"returned {got} instead of {len(tiles)} results")
        for tile, one in zip(tiles, found, strict=True):
            if not isinstance(one, Segmentation):
                raise self._broken(f"returned a {type(one).__name__}, not a Segmentation")
            labels, shape = one.labels, tile.image.shape[1:]
            if not isinstance(labels, np.ndarray):
                raise self._broken(f"returned labels as {type(labels).__name__}, not numpy")
            if labels.shape != shape:
                raise self._broken(
                    f"returned labels of shape {labels.shape} for a tile of shape {shape}"
                )
            if not np.issubdtype(labels.dtype, np.integer):
                raise self._broken(f"returned labels of type {labels.dtype}, not integers")
            if np.issubdtype(labels.dtype, np.signedinteger) and labels.min(initial=0) < 0:
                raise self._broken("returned negative labels")
            self._check_probabilities(one.probabilities, (shape[0], shape[1], shape[2]))
        return list(found)

    def _check_probabilities(self, found: object, shape: ZYX) -> None:
        if found is None or not self._probabilities:
            if self._probabilities:
                raise self._broken("returned no probabilities, though its card says it can")
            if found is not None:
                raise self._broken("returned probabilities that it was not asked for")
            return
        if not isinstance(found, np.ndarray):
            raise self._broken(f"returned probabilities as {type(found).__name__}, not numpy")
        if found.dtype != np.float32:
            raise self._broken(f"returned probabilities of type {found.dtype}, not float32")
        self._classes = self._classes or (found.shape[0] if found.ndim == 4 else 0)
        if found.shape != (self._classes, *shape):
            raise self._broken(
                f"returned probabilities of shape {found.shape} for {self._classes or 'all'} "
                f"class(es) and a tile of shape {shape}"
            )
        low, high = float(found.min(initial=1.0)), float(found.max(initial=0.0))
        if not (low >= 0 and high <= 1 + _ROUNDING):  # nor NaN
            raise self._broken(f"returned probabilities from {low:g} to {high:g}, not from 0 to 1")

    def _broken(self, what: str) -> PluginError:
        return PluginError(f"The predictor of the backend {self._backend!r} {what}.")

    def _in_halves(self, tile: Tile) -> Segmentation:
        shape: ZYX = (tile.image.shape[1], tile.image.shape[2], tile.image.shape[3])
        axis = max(self._axes, key=lambda i: shape[i])
        if shape[axis] < SMALLEST:
            raise DeviceError(
                f"Out of memory even with a tile of {' x '.join(map(str, shape))} voxels.",
                hint="Free the device's memory, or use another one with --device.",
            )
        core, halo = list(shape), [0, 0, 0]
        core[axis] = -(-shape[axis] // 2)
        halo[axis] = min(self._halo[axis], shape[axis] // 8)
        plan = Plan(shape, (core[0], core[1], core[2]), (halo[0], halo[1], halo[2]))
        parts = []
        for index in range(len(plan)):
            read = (slice(None), *plan.read_box(index).slices)
            half = Tile(
                image=np.ascontiguousarray(tile.image[read]),
                spacing=tile.spacing,
                prompts=_prompts(tile, plan.read_box(index)),
            )
            parts.append(tile_labels(self([half])[0], plan, index))
        found = PartsInMemory([part.objects for part in parts])
        joined = stitch(plan, found, lambda i, d: parts[i].strips[d], self._least)
        labels = np.zeros(shape, np.uint32)
        likely = np.zeros((self._classes, *shape), np.float32) if self._probabilities else None
        for index, part in enumerate(parts):
            box: Box = plan.core_box(index)
            labels[box.slices] = np.take(joined.table(index), part.core)
            if likely is not None:
                likely[(slice(None), *box.slices)] = part.probabilities
        score, kind = joined.objects.score, joined.objects.kind
        return Segmentation(
            labels,
            {i + 1: float(s) for i, s in enumerate(score) if not np.isnan(s)},
            {i + 1: int(k) for i, k in enumerate(kind) if k != NO_CLASS},
            likely,
        )


def halved_tiling(tiling: Tiling) -> Tiling | None:
    """Tiles with half the length along y or x, whichever is longer; None where they are small."""
    z, y, x = tiling.core
    if max(y, x) < SMALLEST:
        return None
    core = (z, y, -(-x // 2)) if x >= y else (z, -(-y // 2), x)
    return Tiling(core=core, halo=tiling.halo)


def _prompts(tile: Tile, box: Box) -> tuple[Prompt, ...] | None:
    """Those of a part of a tile."""
    return None if tile.prompts is None else within(tile.prompts, box.start, box.stop)

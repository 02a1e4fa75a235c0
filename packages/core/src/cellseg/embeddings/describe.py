"""Calling an embedder: checks what it returns, and gives it fewer tiles when memory runs out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, Features, Tile
from cellseg.engine.plan import Box
from cellseg.errors import DeviceError, PluginError
from cellseg.memory import out_of_memory
from cellseg.specs import Embedder

Cells = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""For each axis, the index of the cell that each voxel lies in."""


class Describer:
    """An embedder that may be trusted.

    Args:
        embedder: the backend's.
        backend: its name, for messages.
    """

    def __init__(self, embedder: Embedder, backend: str) -> None:
        self.notes: list[str] = []
        """What the user should know; whoever reads them empties the list."""
        self.dimension: int | None = None
        """Length of the vectors; known after the first call."""
        self._embedder = embedder
        self._backend = backend
        self._batch = sys.maxsize

    def __call__(self, tiles: Sequence[Tile]) -> list[Features]:
        """Describe tiles of one shape.

        Raises:
            PluginError: the embedder breaks its contract.
            DeviceError: not even one tile fits into memory.
        """
        if len(tiles) > self._batch:
            return self(tiles[: self._batch]) + self(tiles[self._batch :])
        try:
            return self._checked(tiles)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(tiles) == 1:
                size = " x ".join(str(n) for n in tiles[0].image.shape[1:])
                raise DeviceError(
                    f"Out of memory with a tile of {size} voxels.",
                    hint="Make the tiles smaller with --tile-size, or use another --device.",
                ) from error
        self._batch = len(tiles) // 2
        self.notes.append(f"Out of memory: {self._batch} tile(s) at once from now on.")
        return self(tiles)

    def vectors(self, found: Features, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some cells, ``(d, m)``.

        Raises:
            PluginError: some are NaN or infinite.
        """
        chosen = found.values.reshape(len(found.values), -1)[:, cells]
        if not np.isfinite(chosen).all():
            raise self._broken("returned features that are NaN or infinite")
        return chosen

    def cells(self, found: Features, tile: ZYX, part: Box) -> Cells:
        """The cells that the voxels of a part of a tile lie in, by the middle of each voxel.

        Args:
            found: of the tile.
            tile: its shape.
            part: in voxels of the tile.

        Raises:
            PluginError: the grid does not cover the tile.
        """
        grid, step = found.values.shape[1:], found.step
        for n, length, size in zip(tile, grid, step, strict=True):
            if int((n - 0.5) / size) >= length:
                covered = " x ".join(f"{m * s:g}" for m, s in zip(grid, step, strict=True))
                raise self._broken(
                    f"returned features that cover {covered} of "
                    f"{' x '.join(map(str, tile))} voxels of a tile"
                )
        z, y, x = (
            ((np.arange(a, b) + 0.5) / size).astype(np.int64)
            for a, b, size in zip(part.start, part.stop, step, strict=True)
        )
        return z, y, x

    def _checked(self, tiles: Sequence[Tile]) -> list[Features]:
        found = self._embedder(tiles)
        if not isinstance(found, Sequence) or len(found) != len(tiles):
            got = len(found) if isinstance(found, Sequence) else type(found).__name__
            raise self._broken(f"returned {got} instead of {len(tiles)} results")
        for one in found:
            if not isinstance(one, Features):
                raise self._broken(f"returned a {type(one).__name__}, not Features")
            values = one.values
            if not isinstance(values, np.ndarray) or values.dtype != np.float32:
                kind = getattr(values, "dtype", type(values).__name__)
                raise self._broken(f"returned features as {kind}, not float32")
            if values.ndim != 4 or 0 in values.shape:
                raise self._broken(f"returned features of shape {values.shape}, not (d, z, y, x)")
            if len(one.step) != 3 or not all(0 < size < np.inf for size in one.step):
                raise self._broken(f"returned features with the step {one.step}")
            self.dimension = self.dimension or len(values)
            if len(values) != self.dimension:
                raise self._broken(
                    f"returned vectors of {self.dimension} and of {len(values)} numbers"
                )
        return list(found)

    def _broken(self, what: str) -> PluginError:
        return PluginError(f"The embedder of the backend {self._backend!r} {what}.")

"""How an image is cut into tiles: pure geometry, no pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from cellseg.data import ZYX, Tiling

Direction = tuple[int, int, int]
DIRECTIONS: tuple[Direction, ...] = tuple(
    (z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if (z, y, x) != (0, 0, 0)
)


@dataclass(frozen=True, slots=True)
class Box:
    """A region of an image in voxels, ``(z, y, x)``, without its end."""

    start: ZYX
    stop: ZYX

    @property
    def shape(self) -> ZYX:
        """Length of each axis."""
        (a, b, c), (d, e, f) = self.start, self.stop
        return (d - a, e - b, f - c)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The region as an index into a ``(z, y, x)`` array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (z, y, x)

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """The region as an index into an array that holds ``outer``."""
        z, y, x = (
            slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True)
        )
        return (z, y, x)


@dataclass(frozen=True)
class Plan:
    """The tiles of one image.

    The cores are a regular grid that covers every voxel exactly once. A tile reads its core and
    the halo around it, clipped at the border of the image. Tiles are numbered in C order.
    """

    shape: ZYX
    """Of the image."""
    core: ZYX
    """Of every tile but the last along an axis, which may be smaller."""
    halo: ZYX

    @classmethod
    def cut(cls, shape: ZYX, tiling: Tiling, volumetric: bool) -> Plan:
        """Tiles for an image of ``shape``.

        An axis no longer than a core with its two halos is not cut. On others, the cores are
        made equal instead of leaving a sliver at the end. Unless ``volumetric``, each plane is
        cut by itself.
        """
        core, halo = list(tiling.core), list(tiling.halo)
        if not volumetric:
            core[0], halo[0] = 1, 0
        for axis, length in enumerate(shape):
            if length <= core[axis] + 2 * halo[axis] and (volumetric or axis > 0):
                core[axis] = length
            else:
                core[axis] = _even(length, core[axis])
        return cls(shape, (core[0], core[1], core[2]), (halo[0], halo[1], halo[2]))

    @cached_property
    def grid(self) -> ZYX:
        """Number of tiles along each axis."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.core, strict=True))
        return (z, y, x)

    @cached_property
    def reach(self) -> ZYX:
        """How far on each side of a face two tiles are compared: half the halo, at least 8.

        What a model says about the outermost voxels it reads is not worth comparing.
        """
        z, y, x = (min(h, max(h // 2, 8)) for h in self.halo)
        return (z, y, x)

    @cached_property
    def surely_whole(self) -> ZYX:
        """How long something is at most that each tile, some of it in its core, sees with all that
        borders on it."""
        z, y, x = (
            n if tiles == 1 else h
            for n, tiles, h in zip(self.shape, self.grid, self.halo, strict=True)
        )
        return (z, y, x)

    def __len__(self) -> int:
        """Number of tiles."""
        return prod(self.grid)

    def position(self, tile: int) -> ZYX:
        """Place of a tile in the grid."""
        _, ny, nx = self.grid
        return (tile // (ny * nx), tile // nx % ny, tile % nx)

    def core_box(self, tile: int) -> Box:
        """What the tile labels."""
        p, n, c = self.position(tile), self.shape, self.core
        start = (p[0] * c[0], p[1] * c[1], p[2] * c[2])
        stop = (
            min(start[0] + c[0], n[0]),
            min(start[1] + c[1], n[1]),
            min(start[2] + c[2], n[2]),
        )
        return Box(start, stop)

    def under(self, wanted: Box) -> Iterator[tuple[int, Box]]:
        """The tiles whose cores meet a region, each with what of the region lies in its core."""
        ranges = (
            range(a // c, -(-b // c))
            for a, b, c in zip(wanted.start, wanted.stop, self.core, strict=True)
        )
        _, ny, nx = self.grid
        for z, y, x in product(*ranges):
            tile = (z * ny + y) * nx + x
            box = self.core_box(tile)
            start = tuple(max(a, b) for a, b in zip(box.start, wanted.start, strict=True))
            stop = tuple(min(a, b) for a, b in zip(box.stop, wanted.stop, strict=True))
            yield tile, Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def read_box(self, tile: int) -> Box:
        """What the tile sees: its core and the halo."""
        box, n, h = self.core_box(tile), self.shape, self.halo
        s, e = box.start, box.stop
        return Box(
            (max(s[0] - h[0], 0), max(s[1] - h[1], 0), max(s[2] - h[2], 0)),
            (min(e[0] + h[0], n[0]), min(e[1] + h[1], n[1]), min(e[2] + h[2], n[2])),
        )

    def neighbours(self, tile: int) -> list[tuple[Direction, int]]:
        """The tiles that share a face, an edge or a corner, and a halo, with this one."""
        here, (nz, ny, nx) = self.position(tile), self.grid
        found = []
        for direction in DIRECTIONS:
            if any(d and not r for d, r in zip(direction, self.reach, strict=True)):
                continue
            z, y, x = (a + d for a, d in zip(here, direction, strict=True))
            if 0 <= z < nz and 0 <= y < ny and 0 <= x < nx:
                found.append((direction, (z * ny + y) * nx + x))
        return found

    def window(self, tile: int, direction: Direction) -> Box:
        """Where a tile and its neighbour in ``direction`` are compared; both see all of it."""
        box = self.core_box(tile)
        start, stop = [], []
        for axis, d in enumerate(direction):
            low, high = box.start[axis], box.stop[axis]
            if d:
                face = high if d > 0 else low
                low = max(face - self.reach[axis], 0)
                high = min(face + self.reach[axis], self.shape[axis])
            start.append(low)
            stop.append(high)
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _even(length: int, core: int) -> int:
    """The smallest core, a multiple of 16 where possible, that needs no more tiles than ``core``.

    Multiples of 16 are what tiled TIFF files can store.
    """
    tiles = -(-length // core)
    even = -(-length // tiles)
    return min(core, -(-even // 16) * 16) if core >= 64 else even

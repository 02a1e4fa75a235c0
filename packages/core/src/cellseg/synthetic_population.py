"""A population of synthetic cells over time: they crawl, turn, grow, push, divide and die."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellseg.synthetic_optics import Float

HARMONICS = (2, 3, 4)
"""Of the dents in the outline of a cell."""
_CELL = np.dtype(
    [
        ("id", np.int64),
        ("mother", np.int64),  # 0 where the cell comes otherwise
        ("y", float),
        ("x", float),
        ("vy", float),
        ("vx", float),
        ("birth_area", float),
        ("phase", float),  # of the cell cycle, 0 at birth, 1 at division
        ("cycle", float),  # frames
        ("age", float),  # frames since birth
        ("angle", float),
        ("stretch", float),  # of the axes: long over short
        ("dents", complex, (len(HARMONICS),)),
        ("brightness", float),
        ("dying", float),  # frames since death began; 0 in cells that live
    ]
)
_ROUNDING = 3.0  # frames of mitosis before the division
_SPREADING = 3.0  # frames until a daughter has its own shape
_DYING = 4.0  # frames until a dead cell is gone
_LARGEST = 1.5  # radius of the largest cells, in mean radii
_FULL = 0.72  # share of the area in which nothing grows any more: cells inhibit each other


@dataclass(frozen=True, slots=True)
class Shapes:
    """What the cells look like in one frame; an array per property, ``(n,)`` but for dents."""

    id: NDArray[np.int64]
    mother: NDArray[np.int64]
    """The cell whose division this one comes from; 0 for others."""
    y: Float
    x: Float
    """Centres, in pixels of the image; many lie beyond its border."""
    semi_axes: tuple[Float, Float]
    """Of the ellipse that dents are pressed into; long and short, in pixels."""
    angle: Float
    """Of the long axis, in radians, from x towards y."""
    dents: NDArray[np.complex128]
    """``(n, harmonics)``: amplitude and phase, relative to the radius."""
    brightness: Float


@dataclass(slots=True, kw_only=True)
class Population:
    """The cells in and around a field of view.

    The field lies in a larger one whose sides are joined: a cell that leaves it far from the
    image comes back on the other side as another one, so that the density stays the same.
    """

    shape: tuple[int, int]
    """Of the image, ``(y, x)``."""
    diameter: float
    """Mean over the cell cycle, in pixels."""
    cycle: float
    """Mean length of the cell cycle, in frames; infinite for cells that do not divide."""
    speed: float
    """Root mean square of the steps that cells make by themselves, in pixels a frame."""
    death_rate: float
    """Probability of a cell to die, per frame."""
    rng: np.random.Generator
    cells: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, _CELL))
    _last: int = 0

    @property
    def _margin(self) -> float:
        """Width of the surroundings, in which cells reach no pixel of the image at the far end."""
        return self.diameter * _LARGEST + 2

    @property
    def _world(self) -> Float:
        return np.array(self.shape) + 2 * self._margin

    def settle(self, density: float) -> None:
        """Sow cells, ``density`` of them per pixel of the image, and let them make room."""
        count = round(density * float(np.prod(self._world)))
        self.cells = self._made(self.rng.uniform(0, 1, (count, 2)) * self._world)
        self.cells["phase"] = self.rng.uniform(0, 1, count)
        self.cells["age"] = self.cells["phase"] * np.minimum(self.cells["cycle"], 1e6)
        for _ in range(30):
            self._push()

    def step(self) -> None:
        """One frame on."""
        cells, rng = self.cells, self.rng
        lives = cells["dying"] == 0
        crowding = self._area().sum() / np.prod(self._world)
        growth = float(np.clip((_FULL - crowding) / 0.15, 0, 1))
        rounding = self._rounding()
        cells["phase"] += np.where(rounding > 0, 1, growth) * lives / cells["cycle"]
        cells["age"] += 1
        dies = lives & (rounding == 0) & (rng.random(len(cells)) < self.death_rate)
        cells["dying"] += ~lives | dies

        keeps = 0.7 * (1 - 0.8 * rounding) * (cells["dying"] == 0)
        for axis in ("y", "x"):
            push = rng.normal(0, self.speed * 0.5**0.5, len(cells)) * (1 - rounding)
            cells["v" + axis] = keeps * cells["v" + axis] + (1 - 0.7**2) ** 0.5 * push
            cells[axis] += cells["v" + axis]
        cells["angle"] += rng.normal(0, 0.12, len(cells))
        cells["stretch"] += 0.15 * (1.25 - cells["stretch"]) + rng.normal(0, 0.05, len(cells))
        cells["stretch"] = np.clip(cells["stretch"], 1, 1.6)
        cells["dents"] = 0.9 * cells["dents"] + 0.1**0.5 * self._dents(len(cells))

        divides = (cells["phase"] >= 1) & (cells["dying"] == 0)
        daughters = self._daughters(cells[divides])
        stay = ~divides & (cells["dying"] < _DYING)
        self.cells = np.concatenate([cells[stay], daughters])
        for _ in range(4):
            self._push()

    def shapes(self) -> Shapes:
        """What there is to draw."""
        cells, rounding = self.cells, self._rounding()
        own = np.clip(cells["age"] / _SPREADING, 0, 1) * (1 - rounding) * (cells["dying"] == 0)
        stretch = 1 + (cells["stretch"] - 1) * own
        newborn = np.clip(1 - cells["age"] / _SPREADING, 0, 1) * (cells["age"] < _SPREADING)
        stretch = stretch * 1.2**-newborn  # sisters are pressed together
        radius = (self._area() / np.pi) ** 0.5
        dead = cells["dying"] / _DYING
        brightness = cells["brightness"] * (1 + 0.8 * np.maximum(rounding, 0.6 * newborn) + dead)
        return Shapes(
            cells["id"].copy(),
            cells["mother"].copy(),
            cells["y"] - self._margin,
            cells["x"] - self._margin,
            (radius * stretch**0.5, radius / stretch**0.5),
            cells["angle"].copy(),
            cells["dents"] * own[:, None],
            brightness,
        )

    def _made(self, places: Float) -> NDArray[np.void]:
        """New cells at ``(n, 2)`` places, of all ids above those of others."""
        rng, count = self.rng, len(places)
        cells = np.zeros(count, _CELL)
        cells["id"] = self._last + 1 + np.arange(count)
        self._last += count
        cells["y"], cells["x"] = places.T
        mean_birth_area = np.pi / 4 * self.diameter**2 / 1.44  # doubles from birth to division
        cells["birth_area"] = mean_birth_area * np.clip(rng.lognormal(0, 0.2, count), 0.6, 1.6)
        cells["cycle"] = np.maximum(self.cycle * np.clip(rng.normal(1, 0.15, count), 0.5, 1.5), 2)
        cells["angle"] = rng.uniform(0, np.pi, count)
        cells["stretch"] = rng.uniform(1, 1.5, count)
        cells["dents"] = self._dents(count)
        cells["brightness"] = np.clip(rng.lognormal(0, 0.33, count), 0.45, 2)
        for axis in ("vy", "vx"):
            cells[axis] = rng.normal(0, self.speed * 0.5**0.5, count)
        return cells

    def _dents(self, count: int) -> NDArray[np.complex128]:
        amplitude = 0.10 / (np.array(HARMONICS) - 1)
        noise = self.rng.normal(0, 1, (2, count, len(HARMONICS)))
        dents: NDArray[np.complex128] = amplitude * 0.5**0.5 * (noise[0] + 1j * noise[1])
        return dents

    def _daughters(self, mothers: NDArray[np.void]) -> NDArray[np.void]:
        """Two for each, side by side along its long axis, and drifting apart."""
        pairs = np.repeat(mothers, 2)
        daughters = self._made(np.stack([pairs["y"], pairs["x"]], axis=1))
        side = np.tile([-1.0, 1.0], len(mothers))
        apart = np.stack([np.sin(pairs["angle"]), np.cos(pairs["angle"])], axis=1) * side[:, None]
        share = 0.5 + np.repeat(self.rng.normal(0, 0.03, len(mothers)), 2) * side
        inherited = pairs["birth_area"] * 2 * share
        daughters["birth_area"] = inherited**0.6 * daughters["birth_area"] ** 0.4
        away = 0.9 * (daughters["birth_area"] / np.pi) ** 0.5
        for index, axis in enumerate(("y", "x")):
            daughters[axis] += apart[:, index] * away
            daughters["v" + axis] = 0.5 * self.speed * apart[:, index]
        daughters["mother"] = pairs["id"]
        daughters["angle"] = pairs["angle"]
        daughters["brightness"] = pairs["brightness"]
        return daughters

    def _rounding(self) -> Float:
        """How far in mitosis each cell is, 0 to 1."""
        frames = np.minimum(_ROUNDING, self.cells["cycle"] / 4)
        left = (1 - self.cells["phase"]) * np.minimum(self.cells["cycle"], 1e6)
        rounding: Float = np.clip(1 - (left - 1) / frames, 0, 1)
        return rounding

    def _area(self) -> Float:
        cells = self.cells
        area = cells["birth_area"] * (1 + np.minimum(cells["phase"], 1))
        area = area * (1 - 0.15 * self._rounding()) * (1 - 0.75 * cells["dying"] / _DYING)
        largest = np.pi / 4 * (self.diameter * _LARGEST) ** 2
        shrunk: Float = np.minimum(area, largest)
        return shrunk

    def _push(self) -> None:
        """Cells that overlap too far give way."""
        from scipy.spatial import cKDTree

        self._wrap()
        if len(self.cells) < 2:
            return
        places = np.stack([self.cells["y"], self.cells["x"]], axis=1)
        radius = (self._area() / np.pi) ** 0.5
        near = cKDTree(places, boxsize=self._world)
        first, second = near.query_pairs(2 * float(radius.max()), output_type="ndarray").T
        between = places[second] - places[first]
        between -= self._world * np.round(between / self._world)
        distance = np.maximum(np.hypot(*between.T), 1e-6)
        depth = 0.9 * (radius[first] + radius[second]) - distance
        push = between / distance[:, None] * (0.4 * np.maximum(depth, 0))[:, None]
        for index, axis in enumerate(("y", "x")):
            self.cells[axis] += np.bincount(second, push[:, index], len(places))
            self.cells[axis] -= np.bincount(first, push[:, index], len(places))

    def _wrap(self) -> None:
        """Cells that come back on the other side are other cells."""
        for axis, length in zip(("y", "x"), self._world, strict=True):
            places = self.cells[axis]
            gone = (places < 0) | (places >= length)
            places %= length
            places[places >= length] = 0  # of rounding
            self.cells["mother"][gone] = 0
            self.cells["id"][gone] = self._last + 1 + np.arange(gone.sum())
            self._last += int(gone.sum())

"""From cells that move to the frames of a synthetic movie: labels and photographs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.synthetic_optics import Float, Microscope, smooth_noise
from cellseg.synthetic_population import Shapes


@dataclass(frozen=True, slots=True)
class Camera:
    """What makes images of all frames of a movie."""

    microscope: Microscope
    grain: NDArray[np.float64]
    """A texture that every cell carries a piece of."""
    debris: NDArray[np.float64]
    """``(n, 4)``: place ``(y, x)``, radius and glow; it lies still."""

    @classmethod
    def random(cls, shape: tuple[int, int], rng: np.random.Generator) -> Camera:
        """One for movies of frames of ``shape`` ``(y, x)``."""
        specks = int(rng.poisson(math.prod(shape) / 13000))
        debris = np.stack(
            [
                rng.uniform(0, shape[0], specks),
                rng.uniform(0, shape[1], specks),
                rng.uniform(0.8, 2.2, specks),
                rng.uniform(0.3, 1.5, specks),
            ],
            axis=1,
        )
        grain = np.clip(1 + 0.3 * smooth_noise((512, 512), 2.0, rng), 0.3, None)
        return cls(Microscope.random(shape, rng), grain, debris)

    def photograph(
        self,
        shapes: Shapes,
        index: NDArray[np.int32],
        depth: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> NDArray[np.uint16]:
        """The image of one frame, ``(y, x)``."""
        light: Float = np.zeros(index.shape)
        y, x = np.nonzero(index)
        of = index[y, x] - 1
        angle = shapes.angle[of]
        dy, dx = y - shapes.y[of], x - shapes.x[of]
        place = shapes.id[of] * 61  # its piece of the texture
        u = (np.cos(angle) * dx + np.sin(angle) * dy + place).astype(np.intp) % 512
        v = (np.cos(angle) * dy - np.sin(angle) * dx + place * 7).astype(np.intp) % 512
        dome = 0.2 + 0.8 * np.sqrt(np.clip(1 - depth[y, x] ** 2, 0, 1))
        light[y, x] = shapes.brightness[of] * dome * self.grain[v, u]
        rows, columns = np.ogrid[: index.shape[0], : index.shape[1]]
        for at_y, at_x, radius, glow in self.debris:
            down = np.exp(-((rows - at_y) ** 2) / (2 * radius**2))
            light += glow * down * np.exp(-((columns - at_x) ** 2) / (2 * radius**2))
        return self.microscope.record(light, rng)


def draw(shapes: Shapes, shape: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The index of the cell at each pixel, counted from 1, and how deep in it the pixel lies.

    Depth is 0 at the centre and 1 at the rim. Where two cells meet, each keeps its nearer side.
    """
    index, depth = np.zeros(shape, np.int32), np.ones(shape, np.float32)
    reach = 1.4 * shapes.semi_axes[0] + 2
    near = (shapes.y > -reach) & (shapes.y < shape[0] + reach)
    near &= (shapes.x > -reach) & (shapes.x < shape[1] + reach)
    for i in np.flatnonzero(near):
        y, x, far = float(shapes.y[i]), float(shapes.x[i]), float(reach[i])
        window = (
            slice(max(int(y - far), 0), max(int(y + far) + 1, 0)),
            slice(max(int(x - far), 0), max(int(x + far) + 1, 0)),
        )
        there = depth[window]
        dy = np.arange(there.shape[0], dtype=np.float32)[:, None] + np.float32(window[0].start - y)
        dx = np.arange(there.shape[1], dtype=np.float32)[None] + np.float32(window[1].start - x)
        turn = np.exp(-1j * shapes.angle[i])
        offset = (dx + 1j * dy) * np.complex64(turn)
        along, across = shapes.semi_axes[0][i], shapes.semi_axes[1][i]
        offset.real /= np.float32(along)
        offset.imag /= np.float32(across)
        distance = np.abs(offset)
        direction = offset / np.maximum(distance, np.float32(1e-6))
        power, rim = direction, np.ones_like(distance)
        for dent in shapes.dents[i]:
            power = power * direction
            rim += (np.complex64(dent) * power).real
        distance /= rim
        mine = distance < there
        there[mine] = distance[mine]
        index[window][mine] = i + 1
    return index, depth


def tidy(index: NDArray[np.int32], smallest: int) -> NDArray[np.int32]:
    """Keep the largest piece of each cell, and drop slivers."""
    import cc3d

    pieces = cc3d.connected_components(index, connectivity=4)
    sizes = np.bincount(pieces.ravel())
    of = np.zeros(len(sizes), np.int32)
    of[pieces.ravel()] = index.ravel()
    order = np.lexsort((sizes, of))  # the largest piece of each cell comes last
    last = np.append(of[order][1:] != of[order][:-1], True)
    keep = np.zeros(len(sizes), bool)
    keep[order[last]] = True
    keep &= (sizes >= smallest) & (of > 0)
    kept: NDArray[np.int32] = np.where(keep[pieces], index, 0)
    return kept

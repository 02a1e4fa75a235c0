"""Synthetic cells with exact labels, for the demo, the tests and the benchmarks.

They look like fluorescence microscopy, difficulties included: cells touch, differ in size and
brightness, lie in and out of focus under uneven light, and are counted photon by photon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Sample
from cellseg.errors import ConfigError
from cellseg.files import storage_errors
from cellseg.synthetic_optics import Float, Microscope, smooth_noise

Seed: TypeAlias = int | Sequence[int]

PIXELS_PER_CELL = 1300
"""Area of the image for each cell of it, where no count is given: crowded, but not full."""
_SMALLEST = 40  # pixels; less is left of a cell: its neighbours have overgrown it


@dataclass(frozen=True, slots=True)
class _Cell:
    """Outline ``R(θ)`` of one cell: an ellipse with a few smooth dents."""

    y: float
    x: float
    semi_axes: tuple[float, float]
    angle: float
    dents: tuple[tuple[int, float, float], ...]  # (harmonic, amplitude, phase)

    @classmethod
    def random(cls, y: float, x: float, rng: np.random.Generator) -> _Cell:
        radius = float(np.clip(rng.lognormal(np.log(12.5), 0.22), 7, 21))
        stretch = float(rng.uniform(1.0, 1.45)) ** 0.5
        dents = tuple(
            (k, float(rng.normal(0, 0.10 / (k - 1))), float(rng.uniform(0, 2 * np.pi)))
            for k in (2, 3, 4)
        )
        angle = float(rng.uniform(0, np.pi))
        return cls(y, x, (radius * stretch, radius / stretch), angle, dents)

    def depth(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Float]:
        """The window around the cell, and in it the distance from its centre: 1 at the rim."""
        reach = max(self.semi_axes) * 1.6 + 2
        top, left = max(int(self.y - reach), 0), max(int(self.x - reach), 0)
        window = (
            slice(top, max(min(int(self.y + reach) + 1, shape[0]), top)),
            slice(left, max(min(int(self.x + reach) + 1, shape[1]), left)),
        )
        dy, dx = np.ogrid[window]
        dy, dx = dy - self.y, dx - self.x
        u = (np.cos(self.angle) * dx + np.sin(self.angle) * dy) / self.semi_axes[0]
        v = (np.cos(self.angle) * dy - np.sin(self.angle) * dx) / self.semi_axes[1]
        theta = np.arctan2(v, u)
        rim = np.ones_like(theta)
        for harmonic, amplitude, phase in self.dents:
            rim += amplitude * np.cos(harmonic * theta + phase)
        return window, np.hypot(u, v) / rim


def make_image(
    seed: Seed, shape: tuple[int, int] = (256, 256), count: int | None = None
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Draw one image of fluorescent cells and its ground truth.

    Args:
        seed: the same seed gives the same image.
        shape: ``(y, x)`` in pixels, at least 32 each.
        count: how many cells to aim for; fewer come out where they do not fit. 0 gives an empty
            image; None suits the shape.

    Returns:
        The image, ``(y, x)`` uint16, in counts of a camera; and its labels, ``(y, x)`` uint16,
        0 for background and 1, 2, … for the cells, each in one piece.

    Raises:
        ConfigError: the image is too small, or the count negative or above 65535.
    """
    if min(shape) < 32:
        raise ConfigError(f"Synthetic images need at least 32 x 32 pixels, not {shape}.")
    if count is None:
        count = max(shape[0] * shape[1] // PIXELS_PER_CELL, 1)
    if not 0 <= count <= np.iinfo(np.uint16).max:
        raise ConfigError(f"The number of cells must be 0 to 65535, not {count}.")
    rng = np.random.default_rng(seed)
    labels, depth = _place(shape, count, rng)
    light = _fluorescence(labels, depth, rng)
    return Microscope.random(shape, rng).record(light, rng), labels


def write_dataset(folder: Path, count: int, size: int = 256, seed: int = 0) -> list[str]:
    """Write ``count`` images of ``size``² pixels and their labels, as TIFF files of equal names.

    Args:
        folder: gets ``images/cells_000.tif``, … and ``labels/cells_000.tif``, …
        count: how many images.
        size: length of their sides in pixels.
        seed: the same seed gives the same files; image ``i`` does not depend on ``count``.

    Returns:
        The names of the images, without the ending.

    Raises:
        StorageError: the folder cannot be written.
    """
    import tifffile

    names = [f"cells_{index:03d}" for index in range(count)]
    for index, name in enumerate(names):
        image, labels = make_image((seed, index), (size, size))
        for kind, pixels in (("images", image), ("labels", labels)):
            target = folder / kind / f"{name}.tif"
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(target, pixels, compression="zlib", metadata={"axes": "YX"})
    return names


def _place(
    shape: tuple[int, int], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], Float]:
    """Labels, and how deep in its cell each pixel lies: 0 at the centre, 1 at the rim."""
    labels = np.zeros(shape, np.int64)
    depth = np.ones(shape)
    placed: list[_Cell] = []
    for _ in range(count * 12):
        if len(placed) == count:
            break
        cell = _Cell.random(*_spot(shape, placed, rng), rng)
        window, distance = cell.depth(shape)
        inside = distance < 1
        area = int(inside.sum())
        if area < _SMALLEST or (labels[window][inside] > 0).sum() > 0.22 * area:
            continue
        mine = distance < depth[window]  # where two cells meet, each keeps its nearer side
        depth[window][mine] = distance[mine]
        placed.append(cell)
        labels[window][mine] = len(placed)
    return _tidy(labels), depth


def _spot(
    shape: tuple[int, int], placed: list[_Cell], rng: np.random.Generator
) -> tuple[float, float]:
    """Where the next cell goes: mostly beside another one, as dividing cells do."""
    if placed and rng.random() < 0.65:
        beside = placed[int(rng.integers(len(placed)))]
        away, direction = rng.uniform(17, 27), rng.uniform(0, 2 * np.pi)
        y, x = beside.y + away * np.sin(direction), beside.x + away * np.cos(direction)
        if -4 < y < shape[0] + 4 and -4 < x < shape[1] + 4:
            return float(y), float(x)
    return float(rng.uniform(-4, shape[0] + 4)), float(rng.uniform(-4, shape[1] + 4))


def _tidy(labels: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Keep the largest piece of each cell, drop slivers, and count from 1 without gaps."""
    from scipy import ndimage

    tidy = np.zeros(labels.shape, np.uint16)
    number = 0
    for label, window in enumerate(ndimage.find_objects(labels), start=1):
        if window is None:
            continue
        pieces, _ = ndimage.label(labels[window] == label)
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max() < _SMALLEST:
            continue
        number += 1
        tidy[window][pieces == sizes.argmax() + 1] = number
    return tidy


def _fluorescence(labels: NDArray[np.uint16], depth: Float, rng: np.random.Generator) -> Float:
    """Light that leaves the specimen: domed, grainy cells of uneven brightness, and debris."""
    brightness = np.clip(rng.lognormal(0.0, 0.33, int(labels.max()) + 1), 0.45, 2.0)
    brightness[0] = 0
    dome = 0.2 + 0.8 * np.sqrt(np.clip(1 - depth**2, 0, 1))
    grain = np.clip(1 + 0.30 * smooth_noise(labels.shape, 2.0, rng), 0.3, None)
    light: Float = brightness[labels] * dome * grain
    for _ in range(int(rng.poisson(labels.size / 6500))):
        y, x = rng.uniform(0, labels.shape[0]), rng.uniform(0, labels.shape[1])
        radius, glow = rng.uniform(0.8, 2.6), rng.uniform(0.4, 2.5)
        reach = int(radius * 4) + 1
        window = (
            slice(max(int(y) - reach, 0), int(y) + reach + 1),
            slice(max(int(x) - reach, 0), int(x) + reach + 1),
        )
        top, left = window[0].start, window[1].start
        dy, dx = np.indices(light[window].shape) + np.array([top, left])[:, None, None]
        light[window] += glow * np.exp(-((dy - y) ** 2 + (dx - x) ** 2) / (2 * radius**2))
    return light


def blobs(
    seed: int = 0, shape: tuple[int, int, int] = (1, 64, 64), count: int = 6, channels: int = 1
) -> Sample:
    """A tiny image of bright discs on noise, normalised, with its ground truth.

    The image is ``(channels, z, y, x)`` float32 with background near 0 and discs near 1; labels
    are ``(z, y, x)`` uint32. Discs do not touch; ``count`` 0 gives an image without objects.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    grid = np.indices(shape[1:])
    placed: list[Any] = []
    for _ in range(200 * count):
        centre = rng.integers(8, np.array(shape[1:]) - 8)
        if len(placed) < count and all(np.hypot(*(centre - other)) > 14 for other in placed):
            placed.append(centre)
            inside = ((grid - centre[:, None, None]) ** 2).sum(0) < 25
            labels[:, inside] = len(placed)
    image = rng.normal(0.0, 0.05, (channels, *shape)) + (labels > 0)
    return Sample(name=f"blobs-{seed}", image=image.astype(np.float32), labels=labels)

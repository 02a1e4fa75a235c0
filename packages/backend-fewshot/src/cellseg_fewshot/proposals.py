"""Where to ask an encoder for objects: points of a grid, and points that the data suggest.

Points are ``(n, 2)`` float32, y and x in pixels of the plane, continuous: pixel ``i`` reaches from
``i`` to ``i + 1``, so its middle is at ``i + 0.5``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, log, sqrt

import numpy as np
from numpy.typing import NDArray

_STEP = sqrt(2)
"""Between neighbouring scales: a blob answers almost as strongly a quarter octave off."""
_COARSE = 3.0
"""Pixels of the standard deviation of a Gaussian that are enough to sample it well."""
_NOISE = 1.0
"""Extrema that are weaker than this many standard deviations of the response are left out."""
_MAD = 1.4826
"""Standard deviation of a normal distribution, in units of its median absolute deviation."""


def grid_points(size: tuple[int, int], per_side: int) -> NDArray[np.float32]:
    """The middles of the cells of a grid of as many rows as columns, row by row.

    Args:
        size: of the plane, ``(y, x)``.
        per_side: points along each side; without a limit, and 0 for none.

    Raises:
        ValueError: it is negative.
    """
    if per_side < 0:
        raise ValueError(f"{per_side} points per side make no grid.")
    along = (np.arange(per_side, dtype=np.float64) + 0.5) / max(per_side, 1)
    y, x = np.meshgrid(along * size[0], along * size[1], indexing="ij")
    return np.stack([y.ravel(), x.ravel()], 1).astype(np.float32)


def peak_points(
    similarity: NDArray[np.float32],
    step: tuple[float, float],
    spacing: float,
    size: tuple[int, int],
    least: float | None = None,
) -> NDArray[np.float32]:
    """Where a map is highest in its neighbourhood, by falling height.

    Args:
        similarity: ``(gy, gx)`` over a plane, finite; cell ``i`` covers ``i * step`` to
            ``(i + 1) * step``.
        step: pixels of the plane in a cell, ``(y, x)``.
        spacing: pixels between two peaks, at least; of nearer ones the higher stays.
        size: of the plane, ``(y, x)``; a peak in a cell that reaches beyond it is moved inside.
        least: peaks must be higher; None for the lowest value of the map.

    Returns:
        The middles of the cells; none where all values are the same.
    """
    from skimage.feature import peak_local_max

    if not similarity.size:
        return np.zeros((0, 2), np.float32)
    cells = peak_local_max(
        similarity,
        min_distance=max(1, round(spacing / max(step))),
        threshold_abs=least,
        exclude_border=False,
    )
    return _inside((cells + 0.5) * np.asarray(step), size)


def blob_points(
    plane: NDArray[np.float32], diameters: Sequence[float], noise: float = _NOISE
) -> NDArray[np.float32]:
    """Bright and dark blobs of given sizes, the most marked first.

    They are the extrema, in each channel, of the Laplacian of Gaussians multiplied by their
    variance, which for a disc of radius ``r`` is strongest at the standard deviation ``r / √2``
    (Lindeberg, doi:10.1023/A:1008045108935). The scales cover the diameters in steps of ``√2``; at
    each, extrema are half a diameter apart, at least. Those at several scales that are nearer than
    a quarter of the smallest diameter are one, the most marked. Large scales are computed on means
    of blocks of pixels.

    Args:
        plane: ``(c, y, x)``, finite.
        diameters: of the examples in pixels, above 0; their order does not matter.
        noise: an extremum must exceed so many standard deviations, estimated from the median
            absolute value, of the response at its scale; 0 keeps each.

    Raises:
        ValueError: a diameter is not above 0.
    """
    if not len(diameters):
        return np.zeros((0, 2), np.float32)
    if min(diameters) <= 0:
        raise ValueError(f"a blob has a diameter above 0, not {min(diameters)}.")
    points, strengths = [], []
    for diameter in _scales(diameters):
        for channel in plane:
            for found, strength in _extrema(channel, diameter, noise):
                points.append(found)
                strengths.append(strength)
    every, strength = np.concatenate(points), np.concatenate(strengths)
    order = np.lexsort((every[:, 1], every[:, 0], -strength))
    every = _inside(every[order], (plane.shape[1], plane.shape[2]))
    return every[_apart(every, min(diameters) / 4)]


def merge_points(points: NDArray[np.float32], distance: float) -> NDArray[np.float32]:
    """Points that are apart: of those nearer than a distance, the one with the smaller y, then x,
    stays, unless another one has taken it out.

    Args:
        points: ``(n, 2)``; their order does not matter.
        distance: in pixels; with 0, repetitions alone are left out.

    Returns:
        ``(k, 2)``, sorted by y, then x.
    """
    every = np.unique(points.reshape(-1, 2), axis=0).astype(np.float32)
    return every[_apart(every, distance)]


def _apart(points: NDArray[np.float32], distance: float) -> NDArray[np.bool_]:
    """``(n,)``: which points stay when each takes out those after it that are nearer than a
    distance."""
    from scipy.spatial import cKDTree

    kept = np.ones(len(points), bool)
    if not len(points) or distance <= 0:
        return kept
    nearest = np.nextafter(distance, 0.0)  # pairs at just this distance stay
    pairs = cKDTree(points).query_pairs(nearest, output_type="ndarray")
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        if kept[first]:
            kept[second] = False
    return kept


def _scales(diameters: Sequence[float]) -> list[float]:
    """Diameters from the smallest to the largest, in equal steps of at most ``_STEP``."""
    low, high = min(diameters), max(diameters)
    steps = ceil(log(high / low) / log(_STEP) - 1e-9)
    return [low * (high / low) ** (i / max(steps, 1)) for i in range(steps + 1)]


def _extrema(
    channel: NDArray[np.float32], diameter: float, noise: float
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """Places ``(n, 2)`` of dark blobs, then of bright ones, and how marked each is, ``(n,)``."""
    from scipy.ndimage import gaussian_laplace
    from skimage.feature import peak_local_max
    from skimage.measure import block_reduce

    sigma = diameter / (2 * sqrt(2))
    block = max(1, min(floor(sigma / _COARSE), *channel.shape))
    if block > 1:
        extra = [(0, -length % block) for length in channel.shape]
        channel = block_reduce(np.pad(channel, extra, mode="edge"), block, np.mean)
        sigma = sqrt(sigma**2 - (block**2 - 1) / 12) / block  # the block is a blur itself
    # Cut off as it is, the filter answers to a constant, too.
    level = np.asarray(channel - channel.mean(dtype=np.float64), np.float32)
    response = sigma**2 * gaussian_laplace(level, sigma)
    least = noise * _MAD * float(np.median(np.abs(response)))
    apart = max(1, floor(diameter / block / 2))
    for sign in (1, -1):
        signed = sign * response
        cells = peak_local_max(
            signed, min_distance=apart, threshold_abs=max(least, 0.0), exclude_border=False
        )
        yield (cells + 0.5) * block, signed[tuple(cells.T)]


def _inside(points: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Points moved into a plane of ``size``."""
    inside: NDArray[np.float32] = np.clip(points, 0.5, np.asarray(size) - 0.5).astype(np.float32)
    return inside

"""Automatic instance segmentation: a watershed of what the decoder says (Archit et al. 2025,
doi:10.1038/s41592-024-02580-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cellseg_microsam.thresholds import Resolved


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The decoder's maps of an image after smoothing, ``(y, x)`` float32 each, 0 to 1."""

    foreground: NDArray[np.float32]
    center: NDArray[np.float32]
    """Distance from the centre of the object: 0 there."""
    boundary: NDArray[np.float32]
    """The same of the boundary, the other way round: 0 deepest inside."""

    @classmethod
    def of(cls, maps: NDArray[np.float32], options: Resolved) -> Smoothed:
        """Smooth the foreground, and both distances.

        Args:
            maps: ``(3, y, x)``: foreground, distance from the centre, from the boundary.
            options: with the widths of the Gaussians.
        """
        foreground, center, boundary = maps
        return cls(
            smoothed(foreground, options.foreground_smoothing),
            smoothed(center, options.distance_smoothing),
            smoothed(boundary, options.distance_smoothing),
        )

    def seeds(self, options: Resolved, connectivity: Literal[4, 8]) -> NDArray[np.uint32]:
        """Where objects start: connected areas that are foreground, near a centre and far from a
        boundary; numbered from 1.

        Args:
            options: thresholds.
            connectivity: neighbours of a pixel: those with a common edge, or corner.
        """
        import cc3d

        starts = (
            (self.center < options.center_distance_threshold)
            & (self.boundary < options.boundary_distance_threshold)
            & (self.foreground > options.foreground_threshold)
        )
        # Of bool, cc3d 4.1 finds wrong areas over corners.
        found = cc3d.connected_components(starts.view(np.uint8), connectivity=connectivity)
        seeds: NDArray[np.uint32] = found.astype(np.uint32, copy=False)
        return seeds


def smoothed(values: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """A map after a Gaussian of ``width`` pixels; as it is with 0."""
    from bioimage_cpp.filters import gaussian_smoothing

    values = np.ascontiguousarray(values, np.float32)
    if width == 0:
        return values
    result: NDArray[np.float32] = gaussian_smoothing(values, width)
    return result


def find_instances(
    maps: NDArray[np.float32], options: Resolved
) -> tuple[NDArray[np.uint32], dict[int, float]]:
    """Objects by a watershed: each seed floods the foreground, deep places first.

    Foreground that no seed reaches is left out, and so are objects below ``min_size`` pixels. The
    result is that of micro-SAM.

    Args:
        maps: of one image, ``(3, y, x)``, 0 to 1: foreground, distance from the centre, and from
            the boundary, as ``MicroSam.maps`` gives them.
        options: thresholds.

    Returns:
        Labels ``(y, x)`` uint32, 1 to n without gaps; and the score of each, the mean probability
        of its pixels to be foreground, 0 to 1.
    """
    from bioimage_cpp.segmentation import watershed

    seen = Smoothed.of(maps, options)
    mask = seen.foreground > options.foreground_threshold
    labels = watershed(seen.boundary, seen.seeds(options, 8), mask=mask)
    sizes = np.bincount(labels.ravel())
    kept = sizes >= max(options.min_size, 1)
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    total = np.bincount(labels.ravel(), maps[0].ravel())
    means = np.clip(total[kept] / sizes[kept], 0, 1)
    return table[labels], {i: float(mean) for i, mean in enumerate(means, 1)}

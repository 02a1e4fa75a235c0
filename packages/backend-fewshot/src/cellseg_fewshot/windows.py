"""The planes in which examples lie, cut as prediction cuts images: objects look the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from cellseg import Tiling
from cellseg.data import Example, ExampleImage, LazyArray
from cellseg.engine.plan import Box, Plan

_FILTERS_CORE = 1024
_OBJECTS_ALONG = 20
"""Objects span at least one part in so many of what an encoder sees at once."""
_HALO = 1.5
"""In extents of the largest example."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a plane with examples in it."""

    image: LazyArray
    """``(c, z, y, x)``, of which this is a part."""
    name: str
    """Of the image."""
    z: int
    y: tuple[int, int]
    """First row, and one past the last."""
    x: tuple[int, int]
    examples: tuple[Example, ...]
    """Those whose middle lies in the core of the tile."""

    def read(self) -> NDArray[np.float32]:
        """The pixels ``(c, y, x)``."""
        channels = slice(0, self.image.shape[0])
        block = self.image[channels, slice(self.z, self.z + 1), slice(*self.y), slice(*self.x)]
        plane: NDArray[np.float32] = np.ascontiguousarray(block[:, 0], np.float32)
        return plane


def middle(example: Example) -> tuple[float, float]:
    """Where an example lies in its plane, ``(y, x)``: its point, or the middle of its box."""
    if example.mask is None:
        assert example.point is not None
        return example.point
    y, x = (
        corner + side / 2
        for corner, side in zip(example.corner[1:], example.mask.shape, strict=True)
    )
    return y, x


def diameters(masks: Sequence[NDArray[np.bool_]]) -> list[float]:
    """Of discs of the areas of masks, in pixels."""
    return [2 * sqrt(np.count_nonzero(mask) / np.pi) for mask in masks]


def tiling_for(masks: Sequence[NDArray[np.bool_]], side: int, scales: bool) -> Tiling:
    """How to cut images so that objects are seen large enough, and whole.

    Args:
        masks: of the examples, at least one.
        side: of what the encoder sees at once, in pixels.
        scales: whether it scales planes to that; others take planes of any size as they are.
    """
    halo = max(1, round(_HALO * max(max(mask.shape) for mask in masks)))
    if not scales:
        return Tiling(
            (1, max(_FILTERS_CORE, 2 * halo), max(_FILTERS_CORE, 2 * halo)), (0, halo, halo)
        )
    seen = min(side, round(_OBJECTS_ALONG * float(np.median(diameters(masks)))))
    core = max(seen - 2 * halo, 2 * halo)
    return Tiling((1, core, core), (0, halo, halo))


def windows(images: Sequence[ExampleImage], tiling: Tiling) -> list[Window]:
    """What to look at: the tiles with examples in their core, in an order that does not depend on
    that of the images or examples."""
    found = []
    for image in sorted(images, key=lambda image: (image.sample.name, str(image.sample.path))):
        pixels = image.sample.image
        plan = Plan.cut(pixels.shape[1:], tiling, volumetric=False)
        tiles: dict[int, list[Example]] = {}
        for example in sorted(image.examples, key=_rank):
            tiles.setdefault(_tile(plan, example), []).append(example)
        for tile, examples in sorted(tiles.items()):
            (z, *low), (_, *high) = plan.read_box(tile).start, plan.read_box(tile).stop
            y, x = zip(low, high, strict=True)
            found.append(Window(pixels, image.sample.name, z, y, x, tuple(examples)))
    return found


def _tile(plan: Plan, example: Example) -> int:
    """The tile in whose core the middle of an example lies."""
    at = [
        min(max(int(value), 0), length - 1)  # what reaches beyond the image may have it there
        for value, length in zip((example.corner[0], *middle(example)), plan.shape, strict=True)
    ]
    pixel = Box((at[0], at[1], at[2]), (at[0] + 1, at[1] + 1, at[2] + 1))
    return next(plan.under(pixel))[0]


def _rank(example: Example) -> tuple[object, ...]:
    """By place; then whatever tells two examples of one place apart."""
    mask = b"" if example.mask is None else example.mask.tobytes()
    shape = () if example.mask is None else example.mask.shape
    return (
        example.corner,
        middle(example),
        example.kind,
        example.positive,
        shape,
        mask,
    )

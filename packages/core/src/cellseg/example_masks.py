"""Shapes of a file as the examples of an image: in which plane and frame, and on which pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import UNKNOWN
from cellseg.data import Example
from cellseg.engine.items import Item
from cellseg.errors import DataError
from cellseg.example_shapes import Shape
from cellseg.outlines import check_polygons, covered


def example_of(shape: Shape, item: Item, kind: int) -> tuple[int, Example]:
    """The example that a shape is, and the frame that it lies in (0 in a still image).

    Args:
        shape: of a file.
        item: its image or movie.
        kind: its class, 0 for one that is to be left alone.

    Raises:
        DataError: it does not say in which plane or frame it lies, lies outside of the image,
            crosses itself, or covers no pixel.
    """
    plane, frame = _where(shape, item)
    _, height, width = item.plan.shape
    shared: dict[str, Any] = {"kind": kind, "positive": kind > 0, "where": shape.where}
    if shape.mask is not None:
        return frame, Example(mask=shape.mask, corner=(plane, *shape.corner), **shared)
    if shape.point is not None:
        y, x = shape.point
        if not (0 <= y < height and 0 <= x < width):
            raise _outside(shape, item, x, y)
        corner = plane, math.floor(y), math.floor(x)
        return frame, Example(point=(y, x), corner=corner, **shared)
    for polygon in shape.polygons:
        for ring in polygon:
            beyond = (ring < 0) | (ring > (height, width))
            if beyond.any():
                y, x = ring[np.flatnonzero(beyond.any(1))[0]].tolist()
                raise _outside(shape, item, x, y)
    check_polygons(shape.polygons, shape.where)
    found = covered(shape.polygons)
    if found is None:
        ring = shape.polygons[0][0]
        y, x = ((ring.min(0) + ring.max(0)) / 2).tolist()
        raise DataError(
            f"{shape.where}: covers no pixel, at x {x:g}, y {y:g}.",
            hint="It is smaller than a pixel; are its coordinates in pixels?",
        )
    mask, corner_yx = found
    return frame, Example(mask=mask, corner=(plane, *corner_yx), **shared)


@dataclass(frozen=True, slots=True)
class ShownLabels:
    """A label image of the examples in an image, painted where it is sliced; points are left out.

    What is to be left alone is ``UNKNOWN``.
    """

    examples: tuple[Example, ...]
    shape: tuple[int, ...]
    """``(z, y, x)``."""
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint32))

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        begin = [part.start for part in key]
        block = np.zeros([part.stop - part.start for part in key], np.uint32)
        for number, one in enumerate(self.examples, 1):
            if one.mask is None or not key[0].start <= one.corner[0] < key[0].stop:
                continue
            low = np.maximum(one.corner[1:], begin[1:])
            high = np.minimum(
                np.add(one.corner[1:], one.mask.shape), [part.stop for part in key[1:]]
            )
            if (low >= high).any():
                continue
            (y0, x0), (y1, x1) = (low - one.corner[1:]).tolist(), (high - one.corner[1:]).tolist()
            (top, left), (bottom, right) = (low - begin[1:]).tolist(), (high - begin[1:]).tolist()
            there = block[one.corner[0] - begin[0], top:bottom, left:right]
            there[one.mask[y0:y1, x0:x1]] = number if one.positive else UNKNOWN
        return block


def _where(shape: Shape, item: Item) -> tuple[int, int]:
    """The plane and the frame."""
    depth = item.plan.shape[0]
    frames = {sample.frame or 0 for sample in item.frames}
    plane, frame = shape.plane, shape.frame
    if shape.leading is not None:
        if plane is None and frame is None and depth > 1 and len(frames) > 1:
            raise DataError(
                f"{shape.where}: {item.name} has planes and frames, but only a place in the whole "
                "stack is given.",
                hint="Say both the plane and the frame.",
            )
        if item.movie and depth == 1 and frame is None:
            plane, frame = None, shape.leading
        elif plane is None:
            plane = shape.leading
    if frame is None and len(frames) > 1:
        raise DataError(
            f"{shape.where}: {item.name} is a movie, but the frame is not given.",
            hint="Add a column frame, or the property frame in GeoJSON; they count from 0.",
        )
    frame = min(frames) if frame is None else frame
    if frame not in frames:
        what = f"has the frames {min(frames)} to {max(frames)}" if item.movie else "is no movie"
        raise DataError(f"{shape.where}: is in frame {frame}, but {item.name} {what}.")
    if plane is None and depth > 1:
        raise DataError(
            f"{shape.where}: {item.name} has {depth} planes, but z is not given.",
            hint="Add a column z, or the plane in GeoJSON; they count from 0.",
        )
    plane = plane or 0
    if not 0 <= plane < depth:
        raise DataError(
            f"{shape.where}: is in plane {plane}, but {item.name} has {depth} plane(s), counted "
            "from 0."
        )
    return plane, frame


def _outside(shape: Shape, item: Item, x: float, y: float) -> DataError:
    _, height, width = item.plan.shape
    called = f" ({', '.join(sorted(shape.names))})" if shape.names else ""
    return DataError(
        f"{shape.where}{called}: lies outside of {item.name}: x {x:g}, y {y:g}, but the image has "
        f"{width} x {height} pixels (x, y).",
        hint="Coordinates are in pixels of the image; x comes before y in GeoJSON and in ImageJ.",
    )

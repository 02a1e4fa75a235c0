"""Pictures of a segmentation: contours of prediction and truth on the image.

The two differ in colour (orange and sky blue of the Okabe-Ito palette, which people with any
colour vision tell apart) and in line style (solid and dashed). Objects without a partner of
IoU 0.5 or more are filled, so that errors stand out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Image, LazyArray
from cellseg.errors import DataError
from cellseg.metrics import match, overlaps
from cellseg.report.drawing import (
    Picture,
    draw_lines,
    encoded,
    enlarged,
    fill,
    outlines,
    scale_for,
    stretched,
)

PREDICTION = (230, 159, 0)
TRUTH = (86, 180, 233)
SIDE = 576
"""Length in pixels that the longer side of a picture has at most."""
WINDOW = 1536
"""Larger images are shown in part: their middle."""
_LOOK_AT = 9  # planes of a volume that are read to find one with objects


def overlay(
    image: Image | None,
    prediction: NDArray[Any],
    truth: NDArray[Any] | None = None,
    side: int = SIDE,
) -> bytes:
    """Draw the contours of a prediction, and of the truth if given, on an image.

    Args:
        image: ``(c, 1, y, x)``, any number type; each channel is stretched between its 1st and
            99.8th percentile, and their mean is shown in grey. None gives a black background.
        prediction: labels, ``(1, y, x)``, 0 for background: solid orange.
        truth: labels, ``(1, y, x)``, 0 for background: dashed blue.
        side: the longer side is enlarged by a whole number, or reduced, to at most this length.

    Returns:
        A PNG file, 8-bit RGB.

    Raises:
        DataError: the shapes do not belong together.
    """
    return encoded(overlaid(image, prediction, truth, side))


def overlaid(
    image: Image | None,
    prediction: NDArray[Any],
    truth: NDArray[Any] | None = None,
    side: int = SIDE,
) -> Picture:
    """The picture that :func:`overlay` encodes; arguments and errors are the same."""
    _check(image, prediction, truth)
    shape: tuple[int, int] = prediction.shape[-2:]
    scale = scale_for(shape, side)
    canvas = enlarged(stretched(image, shape), scale)
    if truth is not None:
        table = overlaps(prediction, truth)
        matched = match(table, 0.5)
        fill(canvas, truth[0], np.delete(table.truth_ids, matched.rows), TRUTH)
        fill(canvas, prediction[0], np.delete(table.prediction_ids, matched.columns), PREDICTION)
    draw_lines(canvas, outlines(prediction[0], scale), PREDICTION, dash=0)
    if truth is not None:
        draw_lines(canvas, outlines(truth[0], scale), TRUTH, dash=5)
    return canvas


def plane_of(labels: LazyArray) -> int:
    """The slice of a volume to show: of a few evenly spaced ones, that with most foreground."""
    depth = labels.shape[0]
    candidates = sorted({round(i * (depth - 1) / (_LOOK_AT - 1)) for i in range(_LOOK_AT)})
    if len(candidates) == 1:
        return candidates[0]
    _, y, x = labels.shape
    middle = (depth - 1) / 2

    def worth(z: int) -> tuple[int, float]:
        filled = np.count_nonzero(labels[slice(z, z + 1), slice(0, y), slice(0, x)])
        return int(filled), -abs(z - middle)

    return max(candidates, key=worth)


def window_of(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The part ``(y, x)`` of a large image that is shown: its middle."""
    sides = [min(length, WINDOW) for length in shape[-2:]]
    starts = [(length - side) // 2 for length, side in zip(shape[-2:], sides, strict=True)]
    (top, left), (height, width) = starts, sides
    return slice(top, top + height), slice(left, left + width)


def _check(image: Image | None, prediction: NDArray[Any], truth: NDArray[Any] | None) -> None:
    wrong = prediction.ndim != 3 or prediction.shape[0] != 1
    wrong |= truth is not None and truth.shape != prediction.shape
    wrong |= image is not None and (image.ndim != 4 or image.shape[1:] != prediction.shape)
    if wrong:
        shapes = [None if a is None else a.shape for a in (image, prediction, truth)]
        raise DataError(
            f"Image, prediction and truth of shapes {shapes[0]}, {shapes[1]} and {shapes[2]} do "
            "not belong together; (c, 1, y, x) and twice (1, y, x) do."
        )

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
    _check(image, prediction, truth)
    shape: tuple[int, int] = prediction.shape[-2:]
    scale = _scale(shape, side)
    canvas = _enlarged(_grey(image, shape), scale)
    if truth is not None:
        table = overlaps(prediction, truth)
        matched = match(table, 0.5)
        _fill(canvas, truth[0], np.delete(table.truth_ids, matched.rows), TRUTH)
        _fill(canvas, prediction[0], np.delete(table.prediction_ids, matched.columns), PREDICTION)
    _draw(canvas, _outlines(prediction[0], scale), PREDICTION, dash=0)
    if truth is not None:
        _draw(canvas, _outlines(truth[0], scale), TRUTH, dash=5)
    return _png(canvas)


def montage(pictures: list[bytes], columns: int, gap: int = 6) -> bytes:
    """Arrange PNG pictures in rows, from left to right, on white; returns a PNG.

    Raises:
        DataError: one of them is no picture.
    """
    tiles = [_decoded(picture) for picture in pictures]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return _png(sheet)


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


def _decoded(png: bytes) -> NDArray[np.uint8]:
    import cv2

    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise DataError("A PNG picture is damaged.")
    return np.asarray(picture, np.uint8)


def _png(picture: NDArray[np.uint8]) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])


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


def _scale(shape: tuple[int, int], side: int) -> float:
    fits = side / max(shape)
    return float(int(fits)) if fits >= 1 else fits


def _grey(image: Image | None, shape: tuple[int, int]) -> NDArray[np.uint8]:
    if image is None:
        return np.zeros(shape, np.uint8)
    seen = np.zeros(shape, np.float32)
    for channel in image[:, 0]:
        values = np.nan_to_num(channel.astype(np.float32), posinf=0, neginf=0)
        low, high = np.percentile(values, (1, 99.8))
        seen += np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    grey: NDArray[np.uint8] = (seen / len(image) * 255).round().astype(np.uint8)
    return grey


def _enlarged(grey: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    import cv2

    height, width = (max(round(length * scale), 1) for length in grey.shape)
    how = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    # A little darker than the display can show: the coloured lines must stand out on white.
    seen = cv2.resize(grey, (width, height), interpolation=how)
    coloured: NDArray[np.uint8] = np.repeat((seen * 0.82).astype(np.uint8)[..., None], 3, axis=2)
    return coloured


def _fill(
    canvas: NDArray[np.uint8],
    labels: NDArray[Any],
    ids: NDArray[np.uint64],
    colour: tuple[int, int, int],
) -> None:
    import cv2

    chosen = np.isin(labels, ids.astype(labels.dtype)).astype(np.uint8)
    size = (canvas.shape[1], canvas.shape[0])
    inside = cv2.resize(chosen, size, interpolation=cv2.INTER_NEAREST) > 0
    canvas[inside] = (0.68 * canvas[inside] + 0.32 * np.array(colour)).astype(np.uint8)


def _outlines(labels: NDArray[Any], scale: float) -> list[NDArray[np.float64]]:
    """The rims of all objects, each ``(points, 2)`` as x and y in pixels of the picture."""
    from scipy import ndimage
    from skimage.measure import find_contours

    _, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + (0 if (labels == 0).any() else 1)
    outlines = []
    for label, window in enumerate(ndimage.find_objects(dense), start=1):
        mask = np.pad(dense[window] == label, 1).astype(float)
        corner = np.array([window[0].start - 1, window[1].start - 1])
        for rim in find_contours(mask, 0.5):
            outlines.append(((rim + corner + 0.5) * scale)[:, ::-1])
    return outlines


def _draw(
    canvas: NDArray[np.uint8],
    outlines: list[NDArray[np.float64]],
    colour: tuple[int, int, int],
    dash: int,
) -> None:
    """Draw closed lines; with ``dash``, in pieces of that many pixels with gaps as long."""
    import cv2

    pieces = [part for rim in outlines for part in (_dashes(rim, dash) if dash else [rim])]
    # OpenCV takes whole numbers; four more bits place the points between the pixels.
    points = [np.round((part - 0.5) * 16).astype(np.int32) for part in pieces]
    cv2.polylines(canvas, points, False, colour, 1, cv2.LINE_AA, 4)


def _dashes(rim: NDArray[np.float64], length: int) -> list[NDArray[np.float64]]:
    """Cut a line into dashes of equal length by its arc length."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(rim, axis=0).T))])
    count = max(round(along[-1] / (2 * length)), 1)
    marks = np.linspace(0, along[-1], 2 * count + 1)
    parts = []
    for start, stop in zip(marks[:-1:2], marks[1::2], strict=True):
        at = np.concatenate([[start], along[(along > start) & (along < stop)], [stop]])
        parts.append(np.stack([np.interp(at, along, rim[:, i]) for i in (0, 1)], axis=1))
    return parts

"""What pictures of a segmentation are made of: contrast, scale, lines, fills, PNG."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Image

Picture = NDArray[np.uint8]
"""``(y, x, 3)``, RGB."""
Colour = tuple[int, int, int]


def encoded(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    import cv2

    return bytes(cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])


def decoded(png: bytes) -> Picture | None:
    """The picture in a PNG file; None where it is damaged."""
    import cv2

    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None if picture is None else np.asarray(picture, np.uint8)


def distinct(numbers: NDArray[np.integer[Any]]) -> list[Colour]:
    """A light colour for each number; hues stay far apart, by steps of the golden angle."""
    import cv2

    pixels = np.full((len(numbers), 1, 3), (0, 150, 255), np.uint8)
    pixels[:, 0, 0] = (numbers * 137.508) % 360 / 2
    if not len(numbers):
        return []
    return [(r, g, b) for r, g, b in cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB)[:, 0].tolist()]


def scale_for(shape: tuple[int, int], side: int) -> float:
    """What makes the longer side at most ``side``: a whole number if it can be enlarged."""
    fits = side / max(shape)
    return float(int(fits)) if fits >= 1 else fits


def stretched(image: Image | None, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """An image ``(c, 1, y, x)`` in grey: each channel from its 1st to its 99.8th percentile, and
    their mean; black without an image.

    Returns:
        ``(y, x)`` uint8.
    """
    if image is None:
        return np.zeros(shape, np.uint8)
    seen = np.zeros(shape, np.float32)
    for channel in image[:, 0]:
        values = np.nan_to_num(channel.astype(np.float32), posinf=0, neginf=0)
        low, high = np.percentile(values, (1, 99.8))
        seen += np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    grey: NDArray[np.uint8] = (seen / len(image) * 255).round().astype(np.uint8)
    return grey


def enlarged(grey: NDArray[np.uint8], scale: float) -> Picture:
    """A grey image ``(y, x)`` as a picture at another scale, dimmed so that coloured lines stand
    out."""
    import cv2

    height, width = (max(round(length * scale), 1) for length in grey.shape)
    how = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    seen = cv2.resize(grey, (width, height), interpolation=how)
    # Steps of 4 cannot be seen, and make noise take a sixth less space.
    dim = (seen * 0.82).astype(np.uint8) // 4 * 4
    coloured: Picture = np.repeat(dim[..., None], 3, axis=2)
    return coloured


def fill(
    canvas: Picture,
    labels: NDArray[Any],
    ids: NDArray[np.uint64],
    colour: Colour,
    strength: float = 0.32,
) -> None:
    """Tint the objects ``ids`` of ``labels`` ``(y, x)``, seen at the scale of the canvas."""
    import cv2

    chosen = np.isin(labels, ids.astype(labels.dtype)).astype(np.uint8)
    size = (canvas.shape[1], canvas.shape[0])
    inside = cv2.resize(chosen, size, interpolation=cv2.INTER_NEAREST) > 0
    canvas[inside] = ((1 - strength) * canvas[inside] + strength * np.array(colour)).astype(
        np.uint8
    )


def outlines(labels: NDArray[Any], scale: float) -> list[NDArray[np.float64]]:
    """The rims of all objects, each ``(points, 2)`` as x and y in pixels of the picture."""
    from scipy import ndimage
    from skimage.measure import find_contours

    _, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + (0 if (labels == 0).any() else 1)
    rims = []
    for label, window in enumerate(ndimage.find_objects(dense), start=1):
        mask = np.pad(dense[window] == label, 1).astype(float)
        corner = np.array([window[0].start - 1, window[1].start - 1])
        for rim in find_contours(mask, 0.5):
            rims.append(((rim + corner + 0.5) * scale)[:, ::-1])
    return rims


def draw_lines(
    canvas: Picture,
    rims: list[NDArray[np.float64]],
    colour: Colour,
    dash: int,
) -> None:
    """Draw closed lines; with ``dash``, in pieces of that many pixels with gaps as long."""
    import cv2

    pieces = [part for rim in rims for part in (_dashes(rim, dash) if dash else [rim])]
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

"""A picture for people in a hurry: image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Image, Labels
from cellseg.metrics import match, overlaps
from cellseg.report.drawing import (
    Colour,
    Picture,
    distinct,
    draw_lines,
    encoded,
    enlarged,
    fill,
    outlines,
    scale_for,
    stretched,
)

_GAP = 8
_CAPTION = 30
_ALONE: Colour = (255, 255, 255)
_TITLES = ("image", "truth", "prediction")


def comparison(rows: Sequence[tuple[Image, Labels, Labels]], side: int = 512) -> bytes:
    """Draw a row for each ``(image, truth, prediction)``, as a PNG.

    A predicted object has the colour of the true one that it matches at IoU 0.5; what matches
    nothing is white.

    Args:
        rows: images ``(c, 1, y, x)``, each with two label images ``(1, y, x)`` of its size; all
            rows have one size.
        side: the longer side of each picture is enlarged or reduced to at most this length.
    """
    drawn = [_row(image, truth, prediction, side) for image, truth, prediction in rows]
    sheet = np.concatenate([_captions([p.shape[1] for p in drawn[0]]), *map(_joined, drawn)])
    return encoded(sheet[:-_GAP])


def _row(image: Image, truth: Labels, prediction: Labels, side: int) -> list[Picture]:
    shape: tuple[int, int] = truth.shape[-2:]
    scale = scale_for(shape, side)
    plain = enlarged(stretched(image, shape), scale)
    table = overlaps(prediction, truth)
    matched = match(table, 0.5)
    colours = distinct(np.arange(len(table.truth_ids)))
    of_truth = dict.fromkeys(map(int, table.truth_ids), _ALONE)
    of_prediction = dict.fromkeys(map(int, table.prediction_ids), _ALONE)
    for row, column in zip(matched.rows, matched.columns, strict=True):
        of_truth[int(table.truth_ids[row])] = colours[int(row)]
        of_prediction[int(table.prediction_ids[column])] = colours[int(row)]
    return [
        plain,
        _painted(plain, truth[0], of_truth, scale),
        _painted(plain, prediction[0], of_prediction, scale),
    ]


def _painted(plain: Picture, labels: Labels, colours: dict[int, Colour], scale: float) -> Picture:
    picture = plain.copy()
    for label, colour in colours.items():
        one = labels == label
        fill(picture, one, np.array([1], np.uint64), colour, strength=0.45)
        draw_lines(picture, outlines(one, scale), colour, dash=0)
    return picture


def _joined(pictures: Sequence[Picture]) -> Picture:
    """Side by side on white, with a gap between and below."""
    height = pictures[0].shape[0]
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    row: NDArray[np.uint8] = np.concatenate(parts, axis=1)
    return np.concatenate([row, np.full((_GAP, row.shape[1], 3), 255, np.uint8)])


def _captions(widths: Sequence[int]) -> Picture:
    import cv2

    band = np.full((_CAPTION, sum(widths) + _GAP * (len(widths) - 1), 3), 255, np.uint8)
    left = 0
    for title, width in zip(_TITLES, widths, strict=True):
        cv2.putText(
            band, title, (left + 2, 20), cv2.FONT_HERSHEY_DUPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA
        )
        left += width + _GAP
    return band

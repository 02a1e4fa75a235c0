"""Pictures of the boxes that a detector finds while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.files import write_atomic
from cellseg.report.drawing import (
    Picture,
    draw_lines,
    encoded,
    enlarged,
    scale_for,
    stretched,
)
from cellseg.report.overlay import PREDICTION, TRUTH
from cellseg.report.panels import SIDE

_GAP = 6


@dataclass(frozen=True, slots=True)
class BoxPanel:
    """An image and boxes, ``(k, 4)``, ``x0 y0 x1 y1`` in its pixels."""

    image: NDArray[np.float32]
    """``(c, y, x)``."""
    truth: NDArray[np.float32]
    found: NDArray[np.float32]


def write_box_panels(panels: Sequence[BoxPanel], path: Path) -> None:
    """Draw images side by side: found boxes in solid orange, true ones in dashed blue.

    Args:
        panels: at least one.
        path: the PNG file to write, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    pictures = [_drawn(panel) for panel in panels]
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] + _GAP for picture in pictures) - _GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    write_atomic(path, encoded(canvas))


def _drawn(panel: BoxPanel) -> Picture:
    shape = panel.image.shape[1:]
    scale = scale_for((shape[0], shape[1]), SIDE)
    canvas = enlarged(stretched(panel.image[:, None], (shape[0], shape[1])), scale)
    draw_lines(canvas, [_rim(box * scale) for box in panel.found], PREDICTION, dash=0)
    draw_lines(canvas, [_rim(box * scale) for box in panel.truth], TRUTH, dash=5)
    return canvas


def _rim(box: NDArray[np.float32]) -> NDArray[np.float64]:
    """``(5, 2)``: around a box, within it by half a pixel."""
    x0, y0, x1, y1 = box.astype(np.float64) + np.array((0.5, 0.5, -0.5, -0.5))
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])

"""Pictures of what the network does to validation patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.files import write_atomic
from cellseg_vista.targets import edges

_TRUTH = (235, 160, 60)  # blue, in OpenCV's order
_FOUND = (40, 140, 255)  # orange
Panel = tuple[NDArray[np.float32], NDArray[np.integer], NDArray[np.integer]]


def write_preview(panels: Sequence[Panel], path: Path) -> None:
    """Draw patches side by side: true outlines in blue, and over them predicted ones in orange.

    Args:
        panels: image ``(c, y, x)``, true and predicted labels ``(y, x)``; or volumes
            ``(c, z, y, x)`` and ``(z, y, x)``, of which the middle plane is drawn.
        path: a PNG file.
    """
    import cv2

    ok, data = cv2.imencode(".png", np.concatenate([_draw(*panel) for panel in panels], axis=1))
    assert ok
    write_atomic(path, data.tobytes())


def _draw(
    image: NDArray[np.float32], truth: NDArray[np.integer], found: NDArray[np.integer]
) -> NDArray[np.uint8]:
    if truth.ndim == 3:
        middle = len(truth) // 2
        image, truth, found = image[:, middle], truth[middle], found[middle]
    grey = image.mean(axis=0)
    low, high = np.percentile(grey, (0.5, 99.5))
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    picture[edges(truth)] = _TRUTH
    picture[edges(found)] = _FOUND
    return picture

"""Pictures of what a network does to validation images while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cellseg.files import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellseg.report.drawing import Picture

Panel: TypeAlias = "tuple[NDArray[Any], NDArray[np.integer[Any]], NDArray[np.integer[Any]]]"
"""An image ``(c, y, x)``, its true labels and those found ``(y, x)``; or a volume ``(c, z, y, x)``
with labels ``(z, y, x)``."""
SIDE = 384
"""Length in pixels that the longer side of a panel has at most."""
_GAP = 6


def write_panels(panels: Sequence[Panel], path: Path) -> None:
    """Draw images side by side: found objects in solid orange, true ones in dashed blue.

    Objects without a partner of IoU 0.5 or more are filled. Of a volume, a plane with much true
    foreground is drawn. Each channel is stretched between its 1st and 99.8th percentile, and their
    mean is shown in grey; small images are enlarged by a whole number.

    Args:
        panels: at least one; they may differ in size.
        path: the PNG file to write, whole or not at all.

    Raises:
        DataError: the shapes of a panel do not belong together.
        StorageError: the file cannot be written.
    """
    from cellseg.report.drawing import encoded

    write_atomic(path, encoded(_side_by_side([_drawn(*panel) for panel in panels])))


def _drawn(
    image: NDArray[Any], truth: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]]
) -> Picture:
    from cellseg.report.overlay import overlaid, plane_of

    if truth.ndim == 2:
        return overlaid(image[:, None], found[None], truth[None], SIDE)
    z = plane_of(truth)
    return overlaid(image[:, z : z + 1], found[z : z + 1], truth[z : z + 1], SIDE)


def _side_by_side(pictures: Sequence[Picture]) -> Picture:
    """On white, with a gap between them."""
    import numpy as np

    height = max(picture.shape[0] for picture in pictures)
    padded = []
    for number, picture in enumerate(pictures):
        below, right = height - picture.shape[0], _GAP if number < len(pictures) - 1 else 0
        padded.append(np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=255))
    return np.concatenate(padded, axis=1)

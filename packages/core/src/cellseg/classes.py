"""Object classes within label images: an id that also says what kind of object it is.

Where a data set has classes (``Sample.classes``), the four upper bits of an id are the number of
the class and the others tell its objects apart. So there is one label image, whatever cuts, turns
or resamples it moves both, and every object has exactly one class. The idea is that of panoptic
segmentation (Kirillov et al., doi:10.1109/CVPR.2019.00963). Plain ids are those of class 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHIFT = 28
"""Ids of class ``k`` lie from ``k << SHIFT`` on."""
MOST_CLASSES = 15
"""Classes beside the background that fit."""
UNKNOWN = 0xFFFFFFFF
"""The id of voxels whose label is not known; nothing is learned from them."""


def encoded(ids: NDArray[np.integer], kind: int) -> NDArray[np.uint32]:
    """The ids of objects of class ``kind``; 0 stays 0.

    Args:
        ids: any shape, 0 for background.
        kind: 1 to ``MOST_CLASSES``.

    Raises:
        ValueError: an id, or the class, is too large.
    """
    import numpy as np

    if not 1 <= kind <= MOST_CLASSES:
        raise ValueError(f"class {kind} is not in 1 to {MOST_CLASSES}")
    if ids.size and int(ids.max()) >= (1 << SHIFT) - 1:
        raise ValueError(f"ids with classes end at {(1 << SHIFT) - 2}")
    plain = ids.astype(np.uint32)
    plain[plain > 0] |= np.uint32(kind << SHIFT)
    return plain


def classes_of(labels: NDArray[np.integer], ignored: int = -100) -> NDArray[np.int64]:
    """The class of each voxel: 0 for background, ``ignored`` where it is not known.

    Args:
        labels: ids, any shape. Plain ids are of class 1.
        ignored: what stands for ``UNKNOWN``.
    """
    import numpy as np

    ids = labels.astype(np.int64)
    kinds = np.where(ids > 0, np.maximum(ids >> SHIFT, 1), 0)
    kinds[ids == UNKNOWN] = ignored
    return kinds

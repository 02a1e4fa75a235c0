"""Object classes within label images: an id that also says what kind of object it is.

Where a data set has classes (``Sample.classes``), the four upper bits of an id are the number of
the class and the others tell its objects apart. So there is one label image, whatever cuts, turns
or resamples it moves both, and every object has exactly one class. The idea is that of panoptic
segmentation (Kirillov et al., doi:10.1109/CVPR.2019.00963). Plain ids have 0 in those bits, and
are of class 1.
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
"""The id of voxels whose label is not known, with classes or without; nothing is learned from
them."""


def encoded(ids: NDArray[np.integer], kind: int) -> NDArray[np.uint32]:
    """The ids of objects of class ``kind``; 0 and ``UNKNOWN`` stay what they are.

    Args:
        ids: any shape, 0 for background, at most 2^28 - 2.
        kind: 1 to ``MOST_CLASSES``.

    Raises:
        ValueError: an id is negative or too large, or there is no such class.
    """
    import numpy as np

    if not 1 <= kind <= MOST_CLASSES:
        raise ValueError(f"class {kind} is not in 1 to {MOST_CLASSES}")
    objects = (ids != 0) & (ids != UNKNOWN)
    known = ids[objects]
    if known.size and int(known.min()) < 0:
        raise ValueError(f"the id {int(known.min())} is negative")
    if known.size and int(known.max()) >= (1 << SHIFT) - 1:
        raise ValueError(f"ids with classes end at {(1 << SHIFT) - 2}")
    coded = ids.astype(np.uint32)
    coded[objects] |= np.uint32(kind << SHIFT)
    return coded


def classes_of(labels: NDArray[np.integer], ignored: int = -100) -> NDArray[np.int64]:
    """The class of each voxel: 0 for background, ``ignored`` where it is not known.

    Args:
        labels: ids, any shape, as training patches have them: ids below 2^28 are plain, of class 1.
        ignored: what stands for ``UNKNOWN``.
    """
    import numpy as np

    ids = labels.astype(np.int64)
    kinds = np.where(ids > 0, np.maximum(ids >> SHIFT, 1), 0)
    kinds[ids == UNKNOWN] = ignored
    return kinds


def without_classes(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Plain ids that cannot be mistaken for ids with a class.

    They are as given where all are below 2^28, else numbered anew from 1. Background and
    ``UNKNOWN`` stay what they are.

    Args:
        ids: plain, any shape.
    """
    import fastremap
    import numpy as np

    if not ids.size or int(ids.max()) < 1 << SHIFT:
        return ids
    unknown = ids == UNKNOWN
    known: NDArray[np.uint32] = np.where(unknown, np.uint32(0), ids)
    if int(known.max()) < 1 << SHIFT:
        return ids
    known = fastremap.renumber(known, preserve_zero=True)[0].astype(np.uint32)
    known[unknown] = UNKNOWN
    return known

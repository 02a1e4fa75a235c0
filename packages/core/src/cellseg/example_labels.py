"""The objects of label images as examples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import SHIFT
from cellseg.data import LazyArray
from cellseg.errors import DataError
from cellseg.example_shapes import Shape
from cellseg.objects import ObjectIndex, as_ids
from cellseg.outlines import cropped


def shapes_of_labels(
    labels: LazyArray,
    where: str,
    image: str,
    frame: int | None,
    classes: tuple[str, ...] = (),
) -> Iterator[Shape]:
    """Every object, in the plane where it is largest; of several, the first one.

    Args:
        labels: ``(z, y, x)``, integers, 0 is background.
        where: what messages call them.
        image: its name.
        frame: the index in its movie; None for a still image.
        classes: names of the classes, ``background`` first; ids have their class in their upper
            bits then (``cellseg.classes``).

    Raises:
        DataError: an id is negative, does not fit in 32 bits, or is of a class without a name.
    """
    index = ObjectIndex.of(labels, where)
    depth = labels.shape[0]
    largest = np.zeros(len(index), np.int64)
    chosen = np.zeros(len(index), np.int64)
    order = np.argsort(index.ids)
    for z in range(depth) if depth > 1 and len(index) else ():
        ids, sizes = np.unique(_plane(labels, z, where), return_counts=True)
        at = order[np.searchsorted(index.ids, ids, sorter=order) % len(order)]
        own = index.ids[at] == ids  # neither background nor unknown
        at, sizes = at[own], sizes[own]
        more = sizes > largest[at]
        largest[at[more]], chosen[at[more]] = sizes[more], z
    for z in np.unique(chosen).tolist():
        plane = _plane(labels, z, where)
        for number in np.flatnonzero(chosen == z).tolist():
            identity = int(index.ids[number])
            (_, y0, x0), (_, y1, x1) = index.low[number].tolist(), index.high[number].tolist()
            cut = cropped(plane[y0:y1, x0:x1] == identity, (y0, x0))
            assert cut is not None  # it is in this plane
            yield Shape(
                where=f"{where}, object {identity}",
                mask=cut[0],
                corner=cut[1],
                plane=z,
                frame=frame,
                image=image,
                names=_names(identity, classes, where),
            )


def _plane(labels: LazyArray, z: int, where: str) -> NDArray[np.uint32]:
    _, height, width = labels.shape
    return as_ids(labels[slice(z, z + 1), slice(0, height), slice(0, width)][0], where)


def _names(identity: int, classes: tuple[str, ...], where: str) -> frozenset[str]:
    if not classes:
        return frozenset()
    kind = max(identity >> SHIFT, 1)
    if kind >= len(classes):
        raise DataError(f"{where}: has objects of class {kind}, but only {len(classes) - 1} names.")
    return frozenset([classes[kind]])

"""Maps of classes as label images: the connected components of each class are its objects."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import SHIFT, UNKNOWN
from cellseg.data import LazyArray, Spacing
from cellseg.errors import DataError
from cellseg.files import storage_errors
from cellseg.readers.composed import Coded
from cellseg.readers.nifti_file import scratch_file

CONNECTIVITY = 6
"""Voxels that share a face are connected; those that only share an edge or a corner are not."""


@dataclass(frozen=True, slots=True)
class Rim:
    """A class whose voxels are the boundary of the objects of another."""

    kind: int
    of: int


@dataclass(frozen=True, slots=True)
class Components(Coded):
    """Class-coded ids of the connected components of a map of classes.

    The first slice reads the whole map (one byte a voxel, and eight while it works) and keeps the
    ids in a nameless temporary file, for this process. Boundary voxels take the id of the nearest
    object among those that they touch, directly or through other boundary voxels.
    """

    labels: LazyArray
    """``(z, y, x)``: the number of a class, 0 is background."""
    values: tuple[int, ...]
    """The numbers in ``labels`` that stand for the classes 1, 2, ..."""
    unknown: int | None = None
    """The number for voxels that nobody labelled."""
    rim: Rim | None = None
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Voxel size ``(z, y, x)``, which decides what is nearest."""
    modified: int = 0
    """When the file was written."""

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.uint32]:
        """The class-coded ids of one block.

        Raises:
            DataError: a number that is no class, or too many objects.
        """
        return np.array(_found(self)[key])


_NOBODY = 255
"""Stands for voxels that nobody labelled, among the classes."""


@lru_cache(maxsize=1024)
def _found(map_: Components) -> NDArray[np.uint32]:
    kinds = _kinds(map_)
    ids = _numbered(map_, kinds)
    coded = np.where(ids > 0, ids | (kinds.astype(np.uint32) << SHIFT), 0).astype(np.uint32)
    coded[kinds == _NOBODY] = UNKNOWN
    with storage_errors(Path(tempfile.gettempdir())), scratch_file() as file:
        coded.tofile(file)
        file.flush()
        return np.memmap(file, np.uint32, "r", shape=map_.shape)


def _kinds(map_: Components) -> NDArray[np.uint8]:
    """The class of each voxel, from 1; ``_NOBODY`` where it is not known."""
    stored = map_.labels[tuple(slice(0, n) for n in map_.shape)]
    kinds = np.zeros(stored.shape, np.uint8)
    seen = stored == 0
    pairs = [(value, kind) for kind, value in enumerate(map_.values, 1)]
    pairs += [(map_.unknown, _NOBODY)] if map_.unknown is not None else []
    for value, kind in pairs:
        here = stored == value
        kinds[here] = kind
        seen |= here
    if not seen.all():
        raise DataError(
            f"{map_.where}: has the label {int(stored[~seen][0])}, which dataset.json does not "
            "name as a class.",
            hint="If the labels are ids of objects: --label-kind instance",
        )
    return kinds


def _numbered(map_: Components, kinds: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """A number for each object, from 1, in the order of the voxels."""
    import cc3d

    own = np.where(kinds == _NOBODY, 0, kinds).astype(np.uint8)
    if map_.rim is not None:
        own[kinds == map_.rim.kind] = 0
    ids: NDArray[np.uint32]
    ids, count = cc3d.connected_components(
        own, connectivity=CONNECTIVITY, return_N=True, out_dtype=np.uint32
    )
    if map_.rim is not None:
        count = _join_rim(map_.rim, kinds, ids, count, map_.spacing)
    if count >= (1 << SHIFT) - 1:
        raise DataError(f"{map_.where}: has {count} objects; {(1 << SHIFT) - 2} fit.")
    return ids


def _join_rim(
    rim: Rim, kinds: NDArray[np.uint8], ids: NDArray[np.uint32], count: int, spacing: Spacing
) -> int:
    """Number the boundary voxels in ``ids``; the number of objects after that."""
    import cc3d
    from scipy import ndimage

    both = (kinds == rim.kind) | (kinds == rim.of)
    groups = cc3d.connected_components(both, connectivity=CONNECTIVITY, out_dtype=np.uint32)
    for number, box in enumerate(ndimage.find_objects(groups), 1):
        mine = groups[box] == number
        bound = mine & (kinds[box] == rim.kind)
        if not bound.any():
            continue
        core = mine & ~bound
        part = ids[box]
        if core.any():
            at = ndimage.distance_transform_edt(
                ~core, sampling=spacing, return_distances=False, return_indices=True
            )
            part[bound] = part[tuple(at)][bound]
        else:  # a boundary around nothing is an object of its own
            count += 1
            part[bound] = count
    return count

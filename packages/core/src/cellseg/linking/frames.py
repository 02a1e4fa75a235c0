"""What a linker knows of the objects of a frame, and of the tracks so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Labels, Segmentation, Spacing, Tiling
from cellseg.engine.plan import Plan
from cellseg.engine.tile import Objects, tile_labels
from cellseg.metrics import overlaps
from cellseg.objects import as_ids

Rows = NDArray[np.int64]
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """The ``n`` objects of one frame."""

    labels: NDArray[np.uint32]
    """``(z, y, x)``."""
    ids: NDArray[np.uint32]
    """``(n,)``, ascending."""
    objects: Objects
    """In the order of their ids."""
    position: Points
    """``(n, 3)``, their centres in pixels, ``(z, y, x)``; where voxels are no cubes, in pixels of
    x along all axes."""
    diameter: Points
    """``(n,)``, of the disc or ball of the same size, in the same unit."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, labels: Labels, spacing: Spacing, name: str = "") -> Frame:
        """Measure the objects of a frame.

        Args:
            labels: ``(z, y, x)``.
            spacing: voxel size, ``(z, y, x)``.
            name: what errors call the frame.

        Raises:
            DataError: ids are negative or do not fit in 32 bits.
        """
        known = as_ids(labels, name)
        z, y, x = known.shape
        plan = Plan.cut((z, y, x), Tiling((z, y, x), (0, 0, 0)), True)
        objects = tile_labels(Segmentation(known), plan, 0).objects
        scale = np.asarray(spacing) / spacing[2]
        if z == 1:
            diameter = 2 * np.sqrt(objects.area * scale[1] / np.pi)
        else:
            diameter = np.cbrt(6 * objects.area * scale[0] * scale[1] / np.pi)
        ids = np.unique(known)
        return cls(known, ids[ids > 0], objects, objects.centroid * scale, diameter)


@dataclass(frozen=True, slots=True)
class Open:
    """The ``m`` tracks that may go on."""

    track: Rows
    """``(m,)``, their ids."""
    age: Rows
    """``(m,)``, frames since they were seen: 1 for those in the frame before."""
    position: Points
    """``(m, 3)``, where they were seen last; as in ``Frame``."""
    diameter: Points
    """``(m,)``, then."""
    area: Rows
    """``(m,)``, then, in voxels."""
    moved: Points
    """``(m, 3)``, their last step, 0 where they were not in the frame before that."""
    place: Rows
    """``(m,)``, which object of the frame before they are; -1 for those that are not in it."""

    def __len__(self) -> int:
        return len(self.track)


@dataclass(frozen=True, slots=True)
class Shared:
    """Pairs of an open track and an object of the frame that share voxels."""

    row: Rows
    """``(k,)``, rows of ``Open``."""
    place: Rows
    """``(k,)``, objects of the frame."""
    voxels: Rows
    """``(k,)``, that they share."""
    iou: Points
    """``(k,)``, above 0 and at most 1."""
    part: Points
    """``(k,)``, which part of the object is shared, above 0 and at most 1."""

    @classmethod
    def of(cls, before: Frame | None, open: Open, frame: Frame) -> Shared:
        """How the objects of two frames overlap.

        Raises:
            DataError: they differ in shape.
        """
        if before is None:
            none, nothing = np.zeros(0, np.int64), np.zeros(0)
            return cls(none, none, none, nothing, nothing)
        table = overlaps(frame.labels, before.labels)
        rows = np.full(len(before), -1)
        seen = open.place >= 0
        rows[open.place[seen]] = np.flatnonzero(seen)
        size = table.prediction_sizes[table.columns]
        return cls(rows[table.rows], table.columns, table.shared, table.iou, table.shared / size)


@dataclass(frozen=True, slots=True)
class Step:
    """What a linker finds in a frame of ``n`` objects; it fills the arrays in."""

    goes_on: Rows
    """``(n,)``: the row of ``Open`` that each object continues, or -1; each at most once."""
    mother: Rows
    """``(n,)``: the row of ``Open`` that divided into the object, or -1. The object that continues
    this row, if there is one, is a daughter too, and need not be named here."""


class Linker(Protocol):
    """Finds the objects of a frame among the tracks so far; knows nothing but what it is given."""

    def __call__(self, open: Open, frame: Frame, shared: Shared) -> Step:
        """Which object continues which track, and which come from a division."""

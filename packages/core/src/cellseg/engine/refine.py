"""What is done to the objects of a whole image: some are linked, some are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, LazyArray
from cellseg.engine.linking import Linking, link_planes
from cellseg.engine.plan import Plan
from cellseg.engine.stitch import PartsInMemory, Stitched, merge
from cellseg.engine.tile import Objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What is done to what a predictor found; by default nothing."""

    link: Linking | None = None
    """How objects of the planes of a volume become one, or None where they do not."""
    fill_holes: int = 0
    """Pixels of the largest hole that is filled (see ``holes.fill_holes``), and that is no longer
    than a tile's halo where an image is cut."""
    min_area: int = 0
    """Objects with fewer voxels are left out."""
    border_margin: int = 0
    """Objects with fewer pixels than this between their box and the border in y or x are left
    out."""
    keep_largest: int = 0
    """How many of the objects that remain are kept, the largest ones; 0 keeps all."""

    @property
    def selects(self) -> bool:
        """Whether objects may be left out."""
        return bool(self.min_area or self.border_margin or self.keep_largest)


def refine(
    found: Stitched,
    labels: LazyArray,
    plan: Plan,
    refinement: Refinement,
    *,
    planes: bool,
    pause: Callable[[], None],
) -> Stitched:
    """Link the objects of an image, then leave some out, and number what remains without gaps.

    Args:
        found: the objects of an image, or of one frame of a movie.
        labels: their ids, ``(z, y, x)``.
        plan: the tiles of the image.
        refinement: what to do.
        planes: whether each plane was segmented by itself.
        pause: called between tiles; raises to stop.
    """
    if refinement.link is not None and planes and plan.shape[0] > 1 and len(found.objects):
        count, group = link_planes(labels, plan, found.objects, refinement.link, pause)
        found = _renumbered(found, group + 1, merge(PartsInMemory([found.objects]), group, count))
        planes = False
    if refinement.selects:
        kept = _kept(found.objects, plan.shape, refinement, planes)
        number = np.cumsum(kept, dtype=np.int64)
        number[~kept] = 0
        found = _renumbered(found, number, found.objects.chosen(kept))
    return found


def _renumbered(found: Stitched, number: NDArray[np.int64], objects: Objects) -> Stitched:
    """With a new id for each id; 0 leaves it out."""
    table = np.concatenate([np.zeros(1, np.uint32), number.astype(np.uint32)])
    return replace(found, ids=table[found.ids], objects=objects)


def _kept(objects: Objects, shape: ZYX, refinement: Refinement, planes: bool) -> NDArray[np.bool_]:
    """Which objects stay."""
    low, high, margin = objects.low, objects.high, refinement.border_margin
    kept = objects.area >= refinement.min_area
    inner = np.array(shape[1:]) - margin
    kept &= (low[:, 1:] >= margin).all(1) & (high[:, 1:] <= inner).all(1)
    if refinement.keep_largest:
        plane = low[:, 0] if planes else np.zeros(len(objects), np.int32)
        # Where two are as large, the one that begins first stays, however the image was tiled.
        order = np.lexsort((*high.T[::-1], *low.T[::-1], -objects.area, plane))
        order = order[kept[order]]
        _, first, place = np.unique(plane[order], return_index=True, return_inverse=True)
        kept[order] = np.arange(len(order)) - first[place] < refinement.keep_largest
    return kept

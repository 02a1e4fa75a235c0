"""Linking by overlap alone: the plainest way, for cells that hardly move between frames."""

from __future__ import annotations

import numpy as np

from cellseg.linking.frames import Frame, Open, Shared, Step

_DAUGHTER = 0.5
"""Which part of an object must lie where the mother was, for it to be a daughter."""


class OverlapLinker:
    """Links objects of two frames that overlap best, if that holds both ways.

    An object that begins, and lies by half or more where a track was that goes on, is a daughter of
    that track.

    Args:
        min_overlap: IoU that a link needs.
        divisions: whether there are any.
    """

    def __init__(self, min_overlap: float, divisions: bool) -> None:
        self._min_overlap = min_overlap
        self._divisions = divisions

    def __call__(self, open: Open, frame: Frame, shared: Shared) -> Step:
        """Which object continues which track, and which come from a division."""
        goes_on = np.full(len(frame), -1)
        mother = np.full(len(frame), -1)
        order = np.lexsort((shared.row, shared.place, -shared.iou))
        row, place = shared.row[order], shared.place[order]
        _, best_of_row = np.unique(row, return_index=True)
        _, best_of_place = np.unique(place, return_index=True)
        best = np.intersect1d(best_of_row, best_of_place)
        best = best[shared.iou[order[best]] >= self._min_overlap]
        goes_on[place[best]] = row[best]
        if self._divisions:
            daughter = (shared.part >= _DAUGHTER) & (goes_on[shared.place] < 0)
            daughter &= np.isin(shared.row, goes_on)
            mother[shared.place[daughter]] = shared.row[daughter]
        return Step(goes_on, mother)

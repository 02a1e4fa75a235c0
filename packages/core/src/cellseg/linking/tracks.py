"""The tracks of a movie as they grow, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellseg.linking.frames import Frame, Open, Step
from cellseg.tracks import Lineage, Track


def no_tracks() -> Open:
    """Before the first frame."""
    rows = np.zeros(0, np.int64)
    return Open(rows, rows, np.zeros((0, 3)), np.zeros(0), rows, np.zeros((0, 3)), rows)


@dataclass(slots=True)
class Tracks:
    """All tracks so far. Beside one entry for each track, only those that may go on are held."""

    max_gap: int
    open: Open = field(default_factory=no_tracks)
    begin: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    frames: int = 0

    def add(self, frame: Frame, step: Step) -> NDArray[np.uint32]:
        """Take what a linker finds in the next frame; the track of each of its objects."""
        open, number = self.open, self.frames
        mother = _with_sisters(step)
        goes_on = np.where(mother < 0, step.goes_on, -1)
        track = np.where(goes_on >= 0, open.track[goes_on] if len(open) else 0, 0)
        for place in np.flatnonzero(track == 0).tolist():
            row = mother[place]
            track[place] = len(self.begin) + 1
            self.begin.append(number)
            self.end.append(number)
            self.parent.append(int(open.track[row]) if row >= 0 else 0)
        for one in track.tolist():
            self.end[one - 1] = number
        over = np.zeros(len(open), bool)
        over[goes_on[goes_on >= 0]] = True
        over[mother[mother >= 0]] = True
        waits = ~over & (open.age <= self.max_gap)
        moved = np.zeros_like(frame.position)
        follows = np.flatnonzero(goes_on >= 0)
        follows = follows[open.age[goes_on[follows]] == 1]
        moved[follows] = frame.position[follows] - open.position[goes_on[follows]]
        self.open = Open(
            np.concatenate([open.track[waits], track]),
            np.concatenate([open.age[waits] + 1, np.ones(len(frame), np.int64)]),
            np.concatenate([open.position[waits], frame.position]),
            np.concatenate([open.diameter[waits], frame.diameter]),
            np.concatenate([open.area[waits], frame.objects.area]),
            np.concatenate([np.zeros((waits.sum(), 3)), moved]),
            np.concatenate([np.full(waits.sum(), -1), np.arange(len(frame))]),
        )
        self.frames += 1
        return track.astype(np.uint32)

    def lineage(self, min_daughter_frames: int) -> tuple[Lineage, NDArray[np.uint32]]:
        """All tracks, after divisions with a daughter that is soon gone are undone.

        Returns:
            The tracks, numbered from 1 without gaps; and ``(n + 1,)``, the final id of each track
            by the id it had so far, 0 for 0.
        """
        total = len(self.begin)
        begin, end, parent = (
            np.array([0, *column]) for column in (self.begin, self.end, self.parent)
        )
        into = np.arange(total + 1)
        daughters: dict[int, list[int]] = {}
        for one, mother in enumerate(self.parent, 1):
            if mother:
                daughters.setdefault(mother, []).append(one)
        for mother in sorted(daughters, reverse=True):
            kept = [
                one
                for one in daughters[mother]
                if end[one] - begin[one] + 1 >= min_daughter_frames
                or end[one] == self.frames - 1
                or one in daughters
            ]
            lost = set(daughters[mother]) - set(kept)
            if len(kept) > 1:
                parent[list(lost)] = 0
                daughters[mother] = kept
                continue
            # One daughter at most is left: no division.
            goes_on = kept[0] if kept else max(lost, key=lambda one: (end[one], -one))
            parent[[one for one in daughters[mother] if one != goes_on]] = 0
            into[goes_on] = mother
            end[mother] = end[goes_on]
            daughters[mother] = daughters.pop(goes_on, [])
            for one in daughters[mother]:
                parent[one] = mother
            if not daughters[mother]:
                del daughters[mother]
        for one in range(1, total + 1):
            into[one] = into[into[one]]  # a mother has a smaller id than her daughters
        kept_ids = np.flatnonzero(into == np.arange(total + 1))
        number = np.zeros(total + 1, np.uint32)
        number[kept_ids] = np.arange(len(kept_ids))
        tracks = (
            Track(int(number[one]), int(begin[one]), int(end[one]), int(number[into[parent[one]]]))
            for one in kept_ids[1:].tolist()
        )
        return Lineage.of(tracks), number[into]


def _with_sisters(step: Step) -> NDArray[np.int64]:
    """The mothers of all objects, those included that continue what divided."""
    dividing = np.unique(step.mother[step.mother >= 0])
    return np.where(np.isin(step.goes_on, dividing), step.goes_on, step.mother)

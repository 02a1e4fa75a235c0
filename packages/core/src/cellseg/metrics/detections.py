"""The objects of a movie as a graph: vertices, the edges of tracks, and what overlaps what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.metrics.table import Ids, OverlapTable
from cellseg.tracks import Lineage, Track

Index: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Detections:
    """All objects of all frames of a movie, sorted by id, then by frame.

    An object's position in ``ids`` is its vertex in the graphs of Matula et al. 2015.
    """

    ids: Ids
    """The label of each object, which is the id of its track."""
    frames: Index
    """The frame of each object."""
    count: int
    """Frames of the movie."""
    vertices: tuple[Index, ...]
    """For each frame, the vertices of its objects in the order of the frame's ids."""

    @classmethod
    def of(cls, ids: Sequence[Ids]) -> Detections:
        """From the ids in each frame, each once."""
        lengths = [len(each) for each in ids]
        labels = np.concatenate([np.empty(0, np.uint64), *ids])
        frames = np.repeat(np.arange(len(ids)), lengths)
        order = np.lexsort((frames, labels))
        place = np.empty(order.size, np.int64)
        place[order] = np.arange(order.size)
        vertices = np.split(place, np.cumsum(lengths)[:-1]) if lengths else []
        return cls(labels[order], frames[order], len(ids), tuple(vertices))

    @property
    def tracks(self) -> Ids:
        """The ids of all tracks that have an object, sorted."""
        return self.ids[self.starts]

    @property
    def starts(self) -> Index:
        """The first vertex of each track in ``tracks``."""
        return np.flatnonzero(np.diff(self.ids, prepend=self.ids[:1] - 1)).astype(np.int64)

    def find(self, ids: Ids, frames: Index) -> Index:
        """The vertices of some objects; -1 where the frame does not show one."""
        if not self.ids.size:
            return np.full(ids.size, -1, np.int64)
        tracks = self.tracks
        keys = np.searchsorted(tracks, self.ids) * self.count + self.frames
        track = np.minimum(np.searchsorted(tracks, ids), tracks.size - 1)
        wanted = track * self.count + frames
        at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
        there = (tracks[track] == ids) & (keys[at] == wanted)
        return np.where(there & (frames >= 0) & (frames < self.count), at, -1)

    @property
    def links(self) -> Index:
        """The first vertex of each edge of a track; the second is the next vertex.

        Edges join objects of one id in two consecutive frames: a gap has none.
        """
        follows = (self.ids[1:] == self.ids[:-1]) & (np.diff(self.frames) == 1)
        return np.flatnonzero(follows).astype(np.int64)

    def parent_links(self, lineage: Lineage) -> tuple[Index, Index, list[Track]]:
        """The edges from mothers to daughters: ``(mothers, daughters, broken)``.

        An edge goes from the mother in her last frame to the daughter in her first; ``broken`` are
        the daughters where a frame does not show one of them.
        """
        below = [track for track in lineage.tracks if track.parent]
        above = [lineage.by_id.get(track.parent) for track in below]
        mothers = self.find(
            np.array([track.parent for track in below], np.uint64),
            np.array([-1 if track is None else track.end for track in above], np.int64),
        )
        daughters = self.find(
            np.array([track.id for track in below], np.uint64),
            np.array([track.begin for track in below], np.int64),
        )
        whole = (mothers >= 0) & (daughters >= 0)
        broken = [track for track, there in zip(below, whole, strict=True) if not there]
        return mothers[whole], daughters[whole], broken


@dataclass(frozen=True, eq=False)
class Detected:
    """Which objects of the truth were found, and as what: one entry for each that was."""

    truth: Index
    """Vertices of the truth; each at most once."""
    prediction: Index
    """The vertices of the prediction that cover more than half of each."""
    alone: NDArray[np.bool_]
    """Whether the predicted object covers more than half of no other true one."""

    @classmethod
    def of(
        cls, tables: Sequence[OverlapTable], truth: Detections, prediction: Detections
    ) -> Detected:
        """From the overlap table of each frame."""
        rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for table, true, predicted in zip(tables, truth.vertices, prediction.vertices, strict=True):
            found = covered(table)
            rows.append(true[table.rows[found]])
            columns.append(predicted[table.columns[found]])
        at = np.concatenate(columns)
        times = np.bincount(at, minlength=prediction.ids.size)
        return cls(np.concatenate(rows), at, times[at] == 1)


def covered(table: OverlapTable) -> NDArray[np.bool_]:
    """Which pairs are detections: the predicted object covers more than half of the true one."""
    return 2 * table.shared > table.truth_sizes[table.rows]

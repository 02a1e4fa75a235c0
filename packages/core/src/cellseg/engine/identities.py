"""Identities over time: which object of a frame is which of the frames before.

Each tile has a tracker of its own, with ids of its own. What an object of a frame is, the tiles
that see it say, in the order of how much of it lies in their cores: the first one that has seen it
before, or its mother, decides. So an object keeps its identity as it moves from tile to tile, for
the tile that it enters has seen it in its halo. Where a tile sees a division that another one
missed, all parts are daughters; where it sees one that others saw in frames before, nothing new has
happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.data import LazyArray
from cellseg.engine.plan import Plan
from cellseg.engine.records import Record
from cellseg.engine.stitch import MOST_IDS, Stitched, pair_runs
from cellseg.errors import DataError
from cellseg.tracks import Lineage, Track


@dataclass(frozen=True, slots=True)
class _Votes:
    """What tiles say of the objects of a frame: ``n`` pairs of an object and a tile's id, those of
    an object together, the weightiest first."""

    object: NDArray[np.int64]
    tile: NDArray[np.int64]
    id: NDArray[np.int64]
    parent: NDArray[np.int64]
    weight: NDArray[np.int64]
    """Voxels of the object in the core of the tile."""


class Identities:
    """The tracks of a movie, made frame by frame. Memory grows with tracks, not with frames.

    Args:
        plan: the tiles of each frame.
        least: the share of the smaller one that makes an object in a tile's halo one of the image.
    """

    def __init__(self, plan: Plan, least: float) -> None:
        self._plan = plan
        self._least = least
        self._known: list[dict[int, int]] = [{} for _ in range(len(plan))]
        """By tile: the track of each of its ids."""
        self._begin: list[int] = []
        self._end: list[int] = []
        self._parent: list[int] = []
        self._divided: set[int] = set()

    def step(
        self, frame: int, found: Stitched, labels: LazyArray, records: Sequence[Record]
    ) -> NDArray[np.uint32]:
        """Say which tracks the objects of the next frame belong to.

        Args:
            frame: its number; each is above the one before.
            found: its objects.
            labels: their ids, ``(z, y, x)``.
            records: of its tiles.

        Returns:
            ``(n,)``: the track of each object, from 1, in the order of their ids.

        Raises:
            DataError: there are more tracks than uint32 can number.
        """
        votes = self._votes(found, labels, records)
        track, mother = self._decided(len(found.objects), votes)
        for number in np.flatnonzero(track == 0):
            track[number] = self._new(frame, int(mother[number]))
        self._divided.update(mother[mother > 0].tolist())
        for number in track.tolist():
            self._end[number - 1] = frame
        names = track[votes.object].tolist()
        for tile, name, number in zip(votes.tile.tolist(), votes.id.tolist(), names, strict=True):
            self._known[tile][name] = number
        return track.astype(np.uint32)

    def lineage(self) -> Lineage:
        """All tracks so far."""
        rows = zip(self._begin, self._end, self._parent, strict=True)
        return Lineage(tuple(Track(i, b, e, p) for i, (b, e, p) in enumerate(rows, 1)))

    def _new(self, frame: int, mother: int) -> int:
        if len(self._begin) >= MOST_IDS:
            raise DataError("There are more tracks than a uint32 label image can number.")
        self._begin.append(frame)
        self._end.append(frame)
        self._parent.append(mother)
        return len(self._begin)

    def _decided(self, count: int, votes: _Votes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The track that each object continues, or 0, and the track that it is a daughter of."""
        track, mother = np.zeros(count, np.int64), np.zeros(count, np.int64)
        taken: dict[int, int] = {}
        late: set[int] = set()
        first = np.searchsorted(votes.object, np.arange(count + 1))
        heaviest = np.zeros(count, np.int64)
        np.maximum.at(heaviest, votes.object, votes.weight)
        for number in np.argsort(-heaviest, kind="stable").tolist():
            for i in range(first[number], first[number + 1]):
                known = self._known[votes.tile[i]]
                same = known.get(int(votes.id[i]), 0)
                if same and same not in taken and same not in self._divided:
                    taken[same] = number
                    track[number] = same
                    break
                before = 0 if same else known.get(int(votes.parent[i]), 0)
                if before and self._known_daughter(before, votes, i + 1, first[number + 1]):
                    late.add(before)
                elif before:
                    mother[number] = before
                    break
        for before in late - taken.keys():
            # The tile that sees it late calls what went on as one daughter the mother of both.
            alone = np.flatnonzero(mother == before)
            if len(alone) == 1:
                taken[before] = int(alone[0])
                track[alone], mother[alone] = before, 0
        for before in set(mother.tolist()) & taken.keys():
            # Another tile missed the division, and calls one of the daughters as the mother.
            number = taken[before]
            track[number], mother[number] = 0, before
        return track, mother

    def _known_daughter(self, mother: int, votes: _Votes, start: int, stop: int) -> bool:
        """Whether a tile of the votes from ``start`` to ``stop`` knows the object as a daughter of
        ``mother``, or as the sister that she herself is to others."""
        family = {mother, self._parent[mother - 1]} - {0}
        for i in range(start, stop):
            same = self._known[votes.tile[i]].get(int(votes.id[i]), 0)
            if same not in (0, mother) and self._parent[same - 1] in family:
                return True
        return False

    def _votes(self, found: Stitched, labels: LazyArray, records: Sequence[Record]) -> _Votes:
        rows: list[NDArray[np.int64]] = []
        for tile, record in enumerate(records):
            seen = record.sightings
            if not len(seen.ids):
                continue
            place, number, weight, shared = self._of_core(found, tile, record, seen.own)
            if seen.labels is not None:
                block = np.asarray(labels[self._plan.read_box(tile).slices])
                core = np.zeros(len(seen.ids), bool)
                core[seen.own] = True
                halo = self._of_halo(seen.labels, block, core)
                place = np.concatenate([place, halo[0]])
                number = np.concatenate([number, halo[1]])
                weight = np.concatenate([weight, np.zeros(len(halo[0]), np.int64)])
                shared = np.concatenate([shared, halo[2]])
            where = np.full(len(place), tile)
            rows.append(
                np.stack([number, where, seen.ids[place], seen.parents[place], weight, shared])
            )
        table = np.concatenate(rows, axis=1) if rows else np.zeros((6, 0), np.int64)
        # Of an object, the voxels in the core of a tile count together, whatever it was cut into.
        key, member = np.unique(table[0] * len(records) + table[1], return_inverse=True)
        total = np.bincount(member, table[4], len(key)).astype(np.int64)[member]
        order = np.lexsort((table[2], table[1], -table[5], -table[4], -total, table[0]))
        number, where, ids, parents, _, _ = table[:, order]
        return _Votes(number, where, ids, parents, total[order])

    def _of_core(
        self, found: Stitched, tile: int, record: Record, own: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], ...]:
        """Of objects in the core of a tile: places among its ids, objects of the image counted from
        0, and voxels; without those that were left out."""
        number = found.ids[found.offset[tile] : found.offset[tile + 1]].astype(np.int64)
        kept = number > 0
        area = record.column("area")[kept]
        return own[kept], number[kept] - 1, area, area

    def _of_halo(
        self,
        seen: NDArray[np.uint16] | NDArray[np.uint32],
        block: NDArray[np.uint32],
        core: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], ...]:
        """The same of objects that a tile sees in its halo alone: where they share enough with one
        of the image, with the one that they share most with."""
        mine, other, length = pair_runs(seen, block)
        size_mine = np.bincount(mine, length, len(core) + 1)
        size_other = np.bincount(other, length)
        both = (mine > 0) & (other > 0)
        both[both] = ~core[mine[both] - 1]
        key, place = np.unique(mine[both] * len(size_other) + other[both], return_inverse=True)
        shared = np.bincount(place, length[both], len(key)).astype(np.int64)
        mine, other = np.divmod(key, len(size_other))
        same = shared >= self._least * np.minimum(size_mine[mine], size_other[other])
        mine, other, shared = mine[same], other[same], shared[same]
        order = np.lexsort((other, -shared, mine))
        _, first = np.unique(mine[order], return_index=True)
        best = order[first]
        return mine[best] - 1, other[best] - 1, shared[best]

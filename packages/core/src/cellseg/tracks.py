"""Tracks: which object of one frame is which of the next, and which are daughters of which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True, order=True)
class Track:
    """One object over the frames of a movie; its id is its label in every frame that shows it.

    The terms are those of the Cell Tracking Challenge (Ulman et al., Nature Methods 2017,
    doi:10.1038/nmeth.4473), but for gaps: a track may be missing in frames between its first and
    its last.
    """

    id: int
    """Above 0."""
    begin: int
    """The first frame that shows it, counted from 0."""
    end: int
    """The last one, included."""
    parent: int = 0
    """The track that divided into this one and others; 0 where it came otherwise."""


@dataclass(frozen=True)
class Lineage:
    """All tracks of a movie."""

    tracks: tuple[Track, ...]
    """Sorted by id, each once."""

    @classmethod
    def of(cls, tracks: Iterable[Track]) -> Lineage:
        """Tracks in any order."""
        return cls(tuple(sorted(tracks)))

    @cached_property
    def by_id(self) -> Mapping[int, Track]:
        """Each track under its id."""
        return {track.id: track for track in self.tracks}

    @cached_property
    def daughters(self) -> Mapping[int, tuple[int, ...]]:
        """The ids of the daughters, by the id of the mother; of those that have any."""
        found: dict[int, list[int]] = {}
        for track in self.tracks:
            if track.parent:
                found.setdefault(track.parent, []).append(track.id)
        return {mother: tuple(ids) for mother, ids in found.items()}

    @cached_property
    def divisions(self) -> Mapping[int, tuple[int, ...]]:
        """As ``daughters``, of those mothers that have two or more."""
        return {mother: ids for mother, ids in self.daughters.items() if len(ids) > 1}

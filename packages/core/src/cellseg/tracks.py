"""Tracks: which object of one frame is which of the next, and which are daughters of which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

FaultCode: TypeAlias = Literal[
    "track-span",
    "track-parent",
    "track-order",
    "track-unlisted",
    "track-absent",
    "track-ends",
    "track-gaps",
    "single-daughter",
    "many-daughters",
]


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


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in tracks that is wrong, or that not every program expects."""

    code: FaultCode
    message: str
    ids: tuple[int, ...]
    """The tracks that it is about."""
    breaks: bool = True
    """Whether the rules of the Cell Tracking Challenge forbid it."""


def faults(lineage: Lineage, ids: Sequence[Collection[int]] | None = None) -> list[Fault]:
    """What is wrong with tracks, in themselves and against the masks that show them.

    Args:
        lineage: the tracks.
        ids: those that are in each frame, 0 left out; None where the masks are not looked at.

    Returns:
        Most serious first, one fault for all tracks that it is about: ``track-span`` (ends before
        it begins), ``track-parent`` (no such parent, or itself), ``track-order`` (its parent ends
        after it begins), ``track-unlisted`` (in masks, but no track), ``track-absent`` (in no
        mask), ``track-ends`` (masks show it earlier or later than it says, or not at its ends),
        ``track-gaps`` (missing in between); and, which the rules allow, ``single-daughter`` and
        ``many-daughters`` (three or more).
    """
    by_id = lineage.by_id
    found = [
        _fault(
            "track-span", "ends before it begins", [t for t in lineage.tracks if t.end < t.begin]
        ),
        _fault(
            "track-parent",
            "has a parent that is no other track",
            [t for t in lineage.tracks if t.parent and (t.parent not in by_id or t.parent == t.id)],
        ),
        _fault(
            "track-order",
            "begins before its parent has ended",
            [
                t
                for t in lineage.tracks
                if t.parent != t.id and t.parent in by_id and by_id[t.parent].end >= t.begin
            ],
        ),
    ]
    if ids is not None:
        found += _against_masks(lineage, ids)
    born = Lineage(tuple(track for track in lineage.tracks if track.parent != track.id)).daughters
    alone = [by_id[kids[0]] for kids in born.values() if len(kids) == 1]
    after = [t for t in alone if t.parent in by_id and by_id[t.parent].end + 1 == t.begin]
    many = [by_id[mother] for mother, kids in born.items() if len(kids) > 2 and mother in by_id]
    found.append(_fault("single-daughter", "is the only daughter of its parent", after, False))
    found.append(_fault("many-daughters", "has three daughters or more", many, False))
    return [fault for fault in found if fault is not None]


def _against_masks(lineage: Lineage, ids: Sequence[Collection[int]]) -> Iterable[Fault | None]:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    for frame, present in enumerate(ids):
        for number in map(int, present):
            first.setdefault(number, frame)
            last[number] = frame
            count[number] = count.get(number, 0) + 1
    known = [track for track in lineage.tracks if track.id in first]
    strangers = [Track(i, first[i], last[i]) for i in sorted(first) if i not in lineage.by_id]
    ends = [t for t in known if (t.begin, t.end) != (first[t.id], last[t.id])]
    gaps = [t for t in known if count[t.id] < last[t.id] - first[t.id] + 1]
    absent = [track for track in lineage.tracks if track.id not in first]
    yield _fault("track-unlisted", "is in the masks, but in no line of the table", strangers)
    yield _fault("track-absent", "is in the table, but in no mask", absent)
    yield _fault("track-ends", "begins or ends in other frames than the masks show", ends)
    yield _fault("track-gaps", "is missing in frames between its first and its last", gaps)


def _fault(
    code: FaultCode, what: str, tracks: Sequence[Track], breaks: bool = True
) -> Fault | None:
    if not tracks:
        return None
    ids = tuple(track.id for track in tracks)
    if len(ids) == 1:
        message = f"Track {ids[0]} {what}."
    else:
        shown = ", ".join(map(str, ids[:5]))
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        message = f"{len(ids)} tracks: each {what} ({shown}{more})."
    return Fault(code, message, ids, breaks)

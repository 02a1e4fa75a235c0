"""The rules for movies whose labels are tracks: the table of tracks against the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cellseg.checks.findings import Finding, Level, listed
from cellseg.checks.samples import Examined
from cellseg.classes import SHIFT
from cellseg.tracks import Fault, FaultCode, faults

_LEVELS: dict[FaultCode, Level] = {
    "track-span": "error",
    "track-parent": "error",
    "track-order": "error",
    "track-unlisted": "error",
    "track-absent": "warning",
    "track-ends": "warning",
    "track-gaps": "warning",
    "single-daughter": "warning",
    "many-daughters": "note",
}
_HINTS: dict[FaultCode, str] = {
    "track-span": "Swap the two frames, if they were mixed up.",
    "track-parent": "Add the parent to the table, or write 0.",
    "track-order": "A parent ends in a frame before its daughters begin.",
    "track-unlisted": "Add a line for each to the table, or remove them from the labels.",
    "track-absent": "Remove them from the table; or labels of some frames are incomplete.",
    "track-ends": "Correct the table, or the labels of these frames.",
    "track-gaps": "The rules of the challenge want two tracks, the first being the parent of the "
    "second.",
    "single-daughter": "It counts as the same object, or as one whose sister is missing; give it "
    "the id of its parent, or add the sister.",
    "many-daughters": "",
}

_OF_ALL_FRAMES: tuple[FaultCode, ...] = ("track-absent", "track-ends", "track-gaps")
"""What can be said only where all frames of a movie could be looked at."""


def about_movies(examined: Sequence[Examined]) -> list[Finding]:
    """What is wrong with the tracks of each movie, and with its frames."""
    movies: dict[tuple[str, int], list[Examined]] = {}
    for one in examined:
        if one.sample.tracks is not None:  # one lineage for all frames of a movie
            movies.setdefault((one.sample.group, id(one.sample.tracks)), []).append(one)
    findings: list[Finding] = []
    for (name, _), frames in movies.items():
        findings += _sizes(name, frames)
        findings += [_told(name, fault) for fault in _faults(frames)]
    return findings


def _sizes(name: str, frames: Sequence[Examined]) -> Iterator[Finding]:
    shapes = [tuple(one.sample.image.shape) for one in frames]
    odd = [one.sample.name for one, shape in zip(frames, shapes, strict=True) if shape != shapes[0]]
    if odd:
        yield Finding(
            "frames-differ",
            "error",
            f"{name}: {listed(odd)} differ in size or channels from {frames[0].sample.name}.",
            "All frames of a movie have one size: crop or pad them.",
        )


def _faults(frames: Sequence[Examined]) -> list[Fault]:
    tracks = frames[0].sample.tracks
    assert tracks is not None
    known = {}
    for one in frames:
        if one.labels is not None and one.sample.frame is not None:
            ids = one.labels.ids
            known[one.sample.frame] = ids & ((1 << SHIFT) - 1) if one.sample.classes else ids
    found = faults(tracks, [ids.tolist() for _, ids in sorted(known.items())])
    if len(known) == len(frames) and set(known) == set(range(len(known))):
        return found
    return [fault for fault in found if fault.code not in _OF_ALL_FRAMES]


def _told(name: str, fault: Fault) -> Finding:
    return Finding(fault.code, _LEVELS[fault.code], f"{name}: {fault.message}", _HINTS[fault.code])

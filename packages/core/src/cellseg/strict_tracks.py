"""Tracks as the Cell Tracking Challenge wants them: without gaps, and each parent ends in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError
from cellseg.tracks import Lineage, Track

Ids: TypeAlias = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class StrictTracks:
    """Tracks that are in the masks of every frame from their begin to their end, and no others."""

    lineage: Lineage
    ids: tuple[NDArray[np.uint32], ...]
    """Of each frame, the new id of each object, in the order in which the old ones were given."""


@dataclass(slots=True)
class _Run:
    """Frames in a row in which an id is seen."""

    id: int
    begin: int
    end: int
    parent: int = -1
    """Its index, -1 where there is none."""


def strict_tracks(
    ids: Sequence[Ids], lineage: Lineage, *, largest: int = 2**32 - 1, gaps: bool = False
) -> StrictTracks:
    """Cut and join tracks until the rules of the Cell Tracking Challenge hold.

    A track with a gap is cut in two, of which the first is the parent of the second. A track that
    goes on after it has divided is cut there, and its rest becomes one more daughter. A daughter
    that has no sisters and begins in the frame after its parent's last is the same object, and
    joined to it. Tracks begin and end where the masks show them, those that no mask shows are left
    out, and their daughters are those of their parent. Ids stay what they are, as far as they are
    not joined; new ones follow after the largest. Where they then exceed ``largest``, all are
    numbered anew from 1, by the frame in which they begin.

    Args:
        ids: of each frame those that are in it, each once, 0 left out.
        lineage: the tracks.
        largest: id that can be stored.
        gaps: join also over gaps, so that no track has an only daughter.

    Raises:
        DataError: an id is no track of the lineage, a track does not begin after its parent, or
            there are more tracks than ``largest``.
    """
    counts = [len(present) for present in ids]
    flat = np.concatenate([np.zeros(0, np.int64), *(np.asarray(one, np.int64) for one in ids)])
    frame = np.repeat(np.arange(len(ids)), counts)
    order = np.lexsort((frame, flat))
    number, when = flat[order], frame[order]
    if not len(flat):
        return StrictTracks(Lineage(()), tuple(np.zeros(0, np.uint32) for _ in ids))
    parents = _parents(lineage, np.unique(number).tolist())
    cuts = _cuts(number, when, parents)
    starts = np.ones(len(number), np.bool_)
    starts[1:] = (np.diff(number) != 0) | (np.diff(when) != 1)
    starts[cuts] = True
    runs, of_run = _runs(number, when, starts)
    _connect(runs, parents)
    root = _joined(runs, gaps)
    final = _numbered(runs, root, largest)
    tracks = [
        Track(final[i], run.begin, run.end, final[root[run.parent]] if run.parent >= 0 else 0)
        for i, run in enumerate(runs)
        if root[i] == i
    ]
    new = np.empty(len(flat), np.uint32)
    new[order] = np.array([final[root[i]] for i in range(len(runs))], np.uint32)[of_run]
    return StrictTracks(Lineage.of(tracks), tuple(np.split(new, np.cumsum(counts)[:-1])))


def _parents(lineage: Lineage, present: list[int]) -> dict[int, int]:
    """The nearest ancestor of each id that is in a mask, 0 where there is none."""
    known, seen = lineage.by_id, set(present)
    strangers = [number for number in present if number not in known]
    if strangers:
        raise DataError(
            f"Id {strangers[0]} is in the labels, but no track has it"
            + (f", nor {len(strangers) - 1} others." if strangers[1:] else "."),
            hint="The table of tracks is of other labels?",
        )
    found = {}
    for number in present:
        parent, passed = known[number].parent, {number}
        while parent and parent not in seen and parent in known and parent not in passed:
            passed.add(parent)
            parent = known[parent].parent
        found[number] = parent if parent in seen else 0
    return found


def _cuts(number: NDArray[np.int64], when: NDArray[np.int64], parents: dict[int, int]) -> list[int]:
    """The places of objects that their track begins anew with: the first ones of parents that are
    seen when a daughter begins, or later."""
    ids, first = np.unique(number, return_index=True)
    ends = np.append(first[1:], len(when)) - 1
    begins = dict(zip(ids.tolist(), when[first].tolist(), strict=True))
    last = dict(zip(ids.tolist(), when[ends].tolist(), strict=True))
    place = dict(zip(ids.tolist(), first.tolist(), strict=True))
    found = []
    for child, parent in parents.items():
        if not parent:
            continue
        if begins[parent] >= begins[child]:
            raise DataError(
                f"Track {child} begins in frame {begins[child]}, and its parent {parent} not "
                f"before that, but in frame {begins[parent]}."
            )
        if last[parent] >= begins[child]:
            at = place[parent]
            while when[at] < begins[child]:
                at += 1
            found.append(at)
    return found


def _runs(
    number: NDArray[np.int64], when: NDArray[np.int64], starts: NDArray[np.bool_]
) -> tuple[list[_Run], NDArray[np.int64]]:
    """The runs sorted by id and frame, and the run of each object."""
    at = np.flatnonzero(starts)
    ends = np.append(at[1:], len(number)) - 1
    columns = (number[at].tolist(), when[at].tolist(), when[ends].tolist())
    runs = [_Run(*values) for values in zip(*columns, strict=True)]
    return runs, np.cumsum(starts) - 1


def _connect(runs: list[_Run], parents: dict[int, int]) -> None:
    """Give each run its parent: the run before it, or the last one of its mother before it."""
    by_id: dict[int, list[int]] = {}
    for i, run in enumerate(runs):
        by_id.setdefault(run.id, []).append(i)
    for number, indices in by_id.items():
        for before, after in pairwise(indices):
            runs[after].parent = before
        if parents[number]:
            begin = runs[indices[0]].begin
            earlier = [i for i in by_id[parents[number]] if runs[i].end < begin]
            runs[indices[0]].parent = earlier[-1]


def _joined(runs: list[_Run], gaps: bool) -> list[int]:
    """The run that each one is joined to; it gets their end. Others keep themselves."""
    daughters = [0] * len(runs)
    for run in runs:
        if run.parent >= 0:
            daughters[run.parent] += 1
    root = list(range(len(runs)))
    for i in sorted(range(len(runs)), key=lambda i: runs[i].begin):
        run, parent = runs[i], runs[i].parent
        if parent < 0 or daughters[parent] > 1:
            continue
        if gaps or run.begin == runs[parent].end + 1:
            root[i] = root[parent]
    for i, run in enumerate(runs):
        joined = runs[root[i]]
        joined.end = max(joined.end, run.end)
    return root


def _numbered(runs: list[_Run], root: list[int], largest: int) -> dict[int, int]:
    """The id of each run that is not joined to another."""
    kept = sorted(set(root), key=lambda i: (runs[i].begin, runs[i].id))
    if len(kept) > largest:
        raise DataError(
            f"There are {len(kept)} tracks, and only {largest} fit.",
            hint="Write another format: --format tiff or --format ome-zarr.",
        )
    following = max((run.id for run in runs), default=0)
    final: dict[int, int] = {}
    used: set[int] = set()
    for i in kept:
        if runs[i].id in used:
            following += 1
            final[i] = following
        else:
            final[i] = runs[i].id
        used.add(runs[i].id)
    if max(final.values(), default=0) > largest:
        return {i: at for at, i in enumerate(kept, 1)}
    return final

"""The lineage picture: a line for each track over time, forked where cells divide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellseg.report.curves import Tick, round_step
from cellseg.report.drawing import distinct
from cellseg.tracks import Lineage, Track

Gap = tuple[int, int]
"""First and last frame in which a track is missing."""

WIDTH = 1100
MOST_ROWS = 160
"""Lines below each other; of more, the largest families are shown."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 16.0, 16.0, 12.0, 34.0
_TALLEST = 15.0  # pixels between lines, where there are few
_HEIGHT = 1600.0


@dataclass(frozen=True, slots=True)
class Branch:
    """One track in pixels of the picture."""

    text: str
    """What it is, in words."""
    label: str
    """Its id where there is room for it."""
    colour: str
    y: float
    pieces: tuple[tuple[float, float], ...]
    """Where it is seen: from and to, along x."""
    begin: float
    end: float
    fork: str
    """The ``d`` of an SVG path from the mother's end; empty without a mother."""
    appears: bool
    """Whether it begins after the first frame, without a mother."""
    ends: bool
    """Whether it ends before the last frame, without daughters."""


@dataclass(frozen=True, slots=True)
class LineagePicture:
    """Everything the template needs to draw it."""

    height: float
    bottom: float
    branches: tuple[Branch, ...]
    ticks: tuple[Tick, ...]
    x_label: str
    tracks: int
    """How many are drawn."""
    families: int
    """How many are drawn; tracks with a common ancestor are one."""
    all_families: int
    width: int = WIDTH


def lineage_picture(
    lineage: Lineage,
    frames: int,
    gaps: Mapping[int, Sequence[Gap]],
    minutes_per_frame: float | None = None,
) -> LineagePicture | None:
    """Lay the picture out; None where there are no tracks.

    Args:
        lineage: all tracks of the movie.
        frames: how many the movie has.
        gaps: of the tracks that have any, in their order.
        minutes_per_frame: gives an axis in hours; None one in frames.
    """
    families = _families(lineage)
    if not families:
        return None
    shown = _largest(families, lineage)
    rows = _rows(shown, lineage)
    count = int(max(rows.values())) + 1
    spacing = max(min(_TALLEST, _HEIGHT / count), 2.0)
    bottom = _TOP + count * spacing
    per_frame = (WIDTH - _LEFT - _RIGHT) / frames
    colours = dict(zip(rows, distinct(np.array([*rows])), strict=True))

    def x(frame: int) -> float:
        return round(_LEFT + frame * per_frame, 1)

    def y(track: int) -> float:
        return round(_TOP + (rows[track] + 0.5) * spacing, 1)

    def branch(track: Track) -> Branch:
        mother = lineage.by_id[track.parent] if track.parent in rows else None
        return Branch(
            text=_in_words(track, lineage, gaps.get(track.id, ())),
            label=str(track.id) if _fits(track, spacing, per_frame) else "",
            colour="#{:02x}{:02x}{:02x}".format(*colours[track.id]),
            y=y(track.id),
            pieces=tuple((x(a), x(b + 1)) for a, b in _seen(track, gaps.get(track.id, ()))),
            begin=x(track.begin),
            end=x(track.end + 1),
            fork=""
            if mother is None
            else f"M{x(mother.end + 1):g},{y(mother.id):g}H{x(track.begin):g}V{y(track.id):g}",
            appears=track.begin > 0 and mother is None,
            ends=track.end < frames - 1 and track.id not in lineage.daughters,
        )

    in_hours = minutes_per_frame is not None
    return LineagePicture(
        height=bottom + _BOTTOM,
        bottom=bottom,
        branches=tuple(branch(lineage.by_id[track]) for track in rows),
        ticks=_ticks(frames, (minutes_per_frame or 60.0) / 60, per_frame),
        x_label="hours" if in_hours else "frame",
        tracks=len(rows),
        families=len(shown),
        all_families=len(families),
    )


def _families(lineage: Lineage) -> list[list[int]]:
    """Ids of tracks with a common ancestor, mothers before their daughters."""
    found = []
    for root in lineage.tracks:
        if root.parent in lineage.by_id:
            continue
        family, left = [], [root.id]
        while left:
            family.append(left.pop())
            left += reversed(lineage.daughters.get(family[-1], ()))
        found.append(family)
    return found


def _largest(families: list[list[int]], lineage: Lineage) -> list[list[int]]:
    """As many of the largest as there is room for, at least one, in the order of their begin."""

    def rank(family: list[int]) -> tuple[int, int, int]:
        root = lineage.by_id[family[0]]
        return -len(family), root.begin - max(lineage.by_id[i].end for i in family), root.id

    chosen: list[list[int]] = []
    rows = 0
    for family in sorted(families, key=rank):
        rows += sum(track not in lineage.daughters for track in family)
        if chosen and rows > MOST_ROWS:
            break
        chosen.append(family)
    return sorted(chosen, key=lambda family: (lineage.by_id[family[0]].begin, family[0]))


def _rows(families: Sequence[list[int]], lineage: Lineage) -> dict[int, float]:
    """The line of each track: a mother is midway between her daughters."""
    rows: dict[int, float] = {}
    free = 0
    for family in families:
        for track in family:
            if track not in lineage.daughters:
                rows[track] = free
                free += 1
        for track in reversed(family):
            if track in lineage.daughters:
                below = [rows[daughter] for daughter in lineage.daughters[track]]
                rows[track] = (min(below) + max(below)) / 2
    return {track: rows[track] for family in families for track in family}


def _seen(track: Track, gaps: Sequence[Gap]) -> list[tuple[int, int]]:
    """First and last frames of the pieces between the gaps."""
    starts = [track.begin, *(last + 1 for _, last in gaps)]
    return list(zip(starts, [*(first - 1 for first, _ in gaps), track.end], strict=True))


def _in_words(track: Track, lineage: Lineage, gaps: Sequence[Gap]) -> str:
    words = f"Track {track.id}: frames {track.begin} to {track.end}"
    if track.parent:
        words += f", daughter of {track.parent}"
    if track.id in lineage.daughters:
        words += f", mother of {', '.join(map(str, lineage.daughters[track.id]))}"
    if gaps:
        missing = (f"{a}" if a == b else f"{a} to {b}" for a, b in gaps)
        words += f", missing in {', '.join(missing)}"
    return words


def _fits(track: Track, spacing: float, per_frame: float) -> bool:
    length = (track.end + 1 - track.begin) * per_frame
    return spacing >= 11 and length >= 7 * len(str(track.id)) + 4


def _ticks(frames: int, per_frame: float, pixels: float) -> tuple[Tick, ...]:
    """Marks at round numbers of hours, or of frames."""
    step = round_step(max(frames * per_frame / 12, 1e-9))
    if per_frame == 1:
        step = max(step, 1.0)
    count = int(frames * per_frame / step + 1e-9) + 1
    return tuple(
        Tick(round(_LEFT + i * step / per_frame * pixels, 1), f"{i * step:g}") for i in range(count)
    )

"""Tables of tracks in files: those of the Cell Tracking Challenge, and ours beside label images."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from cellseg.errors import DataError
from cellseg.limits import MOST_TABLE, read_bytes
from cellseg.tracks import Lineage, Track

TABLE = "_tracks.csv"
"""End of the name of the table that stands beside labels of tracks."""
COLUMNS = ("id", "begin", "end", "parent")


def table_beside(path: Path, name: str) -> Path:
    """The table of the tracks in a label file (or container) that is called ``name``."""
    return path.with_name(name + TABLE)


def read_ctc_table(path: Path) -> Lineage:
    """A ``man_track.txt`` or ``res_track.txt``: a line ``id begin end parent`` for each track.

    Nothing is said about whether the tracks make sense (see ``cellseg.tracks.faults``).

    Raises:
        DataError: it is missing, or a line is no track, or an id is there twice.
    """
    tracks = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        fields = line.split()
        if fields:
            tracks.append(_track(path, number, fields))
    return _lineage(path, tracks)


def read_tracks_csv(path: Path) -> Lineage:
    """The table that cellseg writes beside labels of tracks: ``id,begin,end,parent``.

    Raises:
        DataError: it is missing, or no such table, or an id is there twice.
    """
    try:
        rows = list(csv.reader(_text(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"{path}: is no table of tracks: {error}.") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise DataError(
            f"{path}: is no table of tracks.", hint=f"Its first line must be {','.join(COLUMNS)}."
        )
    return _lineage(path, [_track(path, at, row) for at, row in enumerate(rows[1:], 2) if row])


def ctc_table(lineage: Lineage) -> str:
    """The text of a ``res_track.txt``."""
    return "".join(f"{t.id} {t.begin} {t.end} {t.parent}\n" for t in lineage.tracks)


def csv_table(lineage: Lineage) -> str:
    """The text of a table of tracks as CSV."""
    lines = [",".join(COLUMNS)]
    lines += [f"{t.id},{t.begin},{t.end},{t.parent}" for t in lineage.tracks]
    return "\n".join(lines) + "\n"


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MOST_TABLE).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: there is no such file.", hint="Labels of tracks need their table."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _track(path: Path, number: int, fields: list[str]) -> Track:
    try:
        values = [int(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != len(COLUMNS) or values[0] < 1 or min(values) < 0:
        raise DataError(
            f"{path}: line {number} is no track: {' '.join(fields)[:80]!r}.",
            hint="Each line has four whole numbers: id (from 1), first frame, last frame (from 0), "
            "and the id of the parent or 0.",
        )
    return Track(*values)


def _lineage(path: Path, tracks: list[Track]) -> Lineage:
    lineage = Lineage.of(tracks)
    if len(lineage.by_id) < len(tracks):
        counts = Counter(track.id for track in tracks)
        twice = sorted(number for number, count in counts.items() if count > 1)
        raise DataError(
            f"{path}: the ids {', '.join(map(str, twice[:5]))} are there more than once.",
            hint="Each track is one line, with an id of its own.",
        )
    return lineage

"""The table of tracks that stands beside every output of tracked labels."""

from __future__ import annotations

from pathlib import Path

from cellseg.files import write_atomic
from cellseg.track_files import csv_table
from cellseg.tracks import Lineage


def write_tracks_csv(lineage: Lineage, path: Path) -> None:
    """Write the tracks as CSV: ``id,begin,end,parent``, a line for each, sorted by id.

    Frames count from 0 and ``end`` is the last frame of the track; ``parent`` is 0 where there is
    none.

    Raises:
        StorageError: the disk is full, or permission is missing.
    """
    write_atomic(path, csv_table(lineage))

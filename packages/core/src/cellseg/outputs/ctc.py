"""Results in the format of the Cell Tracking Challenge: a mask for each frame, and their tracks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError
from cellseg.outputs.result import Result, boxes, output_file
from cellseg.readers.ctc_folders import RESULT_TABLE
from cellseg.strict_tracks import strict_tracks
from cellseg.track_files import ctc_table

LARGEST_ID = 2**16 - 1


def write_ctc(result: Result, path: Path) -> None:
    """Write a folder with ``mask000.tif`` (uint16, zlib, ``(y, x)`` or ``(z, y, x)``) and so on for
    each frame, and ``res_track.txt``.

    The tracks are those of ``strict_tracks``: each is in the masks of all frames from its begin to
    its end, and ends before its daughters begin. Format: Maška et al., Nature Methods 2023,
    doi:10.1038/s41592-023-01879-y.

    Raises:
        DataError: the result has no tracks, more of them than uint16 can number, or tracks that
            contradict themselves or the labels.
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    import tifffile

    if result.tracks is None or result.ids is None:
        raise DataError(
            f"{result.name}: has no tracks, which the format of the Cell Tracking Challenge needs.",
            hint="Only movies have tracks: predict with --track, or link labels: cellseg track.",
        )
    strict = strict_tracks(result.ids, result.tracks, largest=LARGEST_ID)
    width = max(3, len(str(len(result.frames) - 1)))
    shape = result.shape if result.shape[0] > 1 else result.shape[1:]
    with output_file(path) as folder:
        folder.mkdir()
        for frame, (old, new) in enumerate(zip(result.ids, strict.ids, strict=True)):
            numbers = _Numbers(old, new)
            tifffile.imwrite(
                folder / f"mask{frame:0{width}}.tif",
                _planes(result, frame, numbers),
                shape=shape,
                dtype=np.uint16,
                photometric="minisblack",
                compression="zlib",
                compressionargs={"level": 1},
                metadata=None,
                bigtiff=2 * int(np.prod(shape, dtype=np.int64)) > 1 << 31,
            )
            if not numbers.seen.all():
                lost = numbers.old[~numbers.seen][0]
                raise DataError(f"{result.name}: frame {frame} has no voxel of track {lost}.")
        (folder / RESULT_TABLE).write_text(ctc_table(strict.lineage), encoding="ascii")


class _Numbers:
    """The new numbers of the ids of one frame, and which of these were met."""

    def __init__(self, old: NDArray[np.uint32], new: NDArray[np.uint32]) -> None:
        order = np.argsort(old, kind="stable")
        self.old = np.concatenate([np.zeros(1, np.uint32), np.asarray(old, np.uint32)[order]])
        self.new = np.concatenate([np.zeros(1, np.uint16), new[order].astype(np.uint16)])
        self.seen = self.old == 0

    def of(self, labels: NDArray[np.uint32]) -> NDArray[np.uint16] | None:
        """The labels with their new numbers; None where one is none of the ids."""
        flat = labels.reshape(-1)
        rank = np.searchsorted(self.old, flat)
        rank[rank == len(self.old)] = 0
        if (self.old[rank] != flat).any():
            return None
        self.seen |= np.bincount(rank, minlength=len(self.old)) > 0
        return self.new[rank].reshape(labels.shape)


def _planes(result: Result, frame: int, numbers: _Numbers) -> Iterator[NDArray[np.uint16]]:
    for box in boxes(result.shape, (1, *result.shape[1:])):
        result.pause()
        plane = numbers.of(np.asarray(result.frames[frame][box.slices])[0])
        if plane is None:
            raise DataError(f"{result.name}: frame {frame} has labels that are no tracks there.")
        yield plane

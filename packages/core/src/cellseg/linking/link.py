"""Links the frames of a movie one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Labels, Spacing
from cellseg.engine.tile import Objects
from cellseg.errors import DataError
from cellseg.linking.frames import Frame, Linker, Shared
from cellseg.linking.settings import LinkSettings
from cellseg.linking.tracks import Tracks
from cellseg.tracks import Lineage

_MIN_OVERLAP = 0.1


@dataclass(frozen=True)
class Links:
    """Which object of which frame belongs to which track."""

    ids: tuple[NDArray[np.uint32], ...]
    """Of each frame ``(n,)``: the ids of its objects as they come, ascending."""
    tracks: tuple[NDArray[np.uint32], ...]
    """Of each frame ``(n,)``: their tracks, in the order of ``ids``."""
    objects: tuple[Objects, ...]
    """Of each frame: their measurements, in the order of ``ids``."""
    lineage: Lineage
    """Ids from 1 without gaps, in the order in which the tracks begin."""


def linker(options: LinkSettings) -> Linker:
    """The linker that the settings name."""
    if options.method == "overlap":
        from cellseg.linking.overlap import OverlapLinker

        return OverlapLinker(options.min_overlap or _MIN_OVERLAP, options.divisions)
    from cellseg.linking.assignment import AssignmentLinker

    return AssignmentLinker(options.max_distance, options.divisions)


def link(
    frames: Iterable[Labels],
    options: LinkSettings,
    spacing: Spacing = (1.0, 1.0, 1.0),
    names: Sequence[str] = (),
) -> Links:
    """Link the objects of label images to tracks.

    Two frames are in memory at a time; what is kept of each object is its row of ``Links``.

    Args:
        frames: ``(z, y, x)`` each, of one shape, in the order of time; 0 is background.
        options: how to link.
        spacing: voxel size, ``(z, y, x)``; only the ratios count.
        names: what errors call the frames; by default they are numbered.

    Raises:
        DataError: frames differ in shape, or their ids are negative or do not fit in 32 bits.
        PluginError: the library that the settings name is not installed.
    """
    find = linker(options)
    tracks = Tracks(options.max_gap if options.method == "laptrack" else 0)
    ids, of_track, objects = [], [], []
    before: Frame | None = None
    for number, labels in enumerate(frames):
        name = names[number] if names else f"frame {number}"
        if before is not None and labels.shape != before.labels.shape:
            raise DataError(
                f"{name}: has the shape {labels.shape} (z, y, x), the frame before it "
                f"{before.labels.shape}."
            )
        frame = Frame.of(labels, spacing, name)
        step = find(tracks.open, frame, Shared.of(before, tracks.open, frame))
        of_track.append(tracks.add(frame, step))
        ids.append(frame.ids)
        objects.append(frame.objects)
        before = frame
    lineage, final = tracks.lineage(options.min_daughter_frames if options.divisions else 1)
    return Links(tuple(ids), tuple(final[one] for one in of_track), tuple(objects), lineage)

"""The page of a tracking: overlay movie, lineage picture, numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Image, LazyArray, Spacing
from cellseg.errors import DataError
from cellseg.report.curves import Series, chart
from cellseg.report.drawing import Picture, encoded, scale_for
from cellseg.report.lineage import Gap, lineage_picture
from cellseg.report.movie import Painter, animated, limits_of
from cellseg.report.overlay import plane_of, window_of
from cellseg.report.page import data_uri, versions, write_page
from cellseg.tracks import Lineage

MOST_FRAMES = 300
"""A movie of more frames shows every second, third, ... one."""
SIDE = 640
"""Length in pixels that the longer side of the movie has at most."""
_PIXELS = 40_000_000  # in all frames of the movie, so that the page stays a few MB
_BLOCK = 1 << 24  # voxels that are read at once to see what is there
_MOST_ROWS = 500
_LOOK_AT = 5  # frames that decide the contrast


def write_tracks_page(
    path: Path,
    name: str,
    images: Sequence[LazyArray] | None,
    labels: Sequence[LazyArray],
    lineage: Lineage,
    spacing: Spacing,
    minutes_per_frame: float | None = None,
) -> Path:
    """Write a page that shows what was tracked; each frame is read once, and dropped.

    The movie shows one plane of volumes, the middle of large frames, and at most 300 frames.

    Args:
        path: the HTML file, which is replaced.
        name: of the movie.
        images: ``(c, z, y, x)`` of each frame; None draws on black.
        labels: ``(z, y, x)`` of each frame: ids of tracks, 0 is background; at least one frame, all
            of one shape.
        lineage: all tracks, their frames counted from 0 as the frames here.
        spacing: voxel size in micrometres, ``(z, y, x)``; a width of 1 counts as unknown.
        minutes_per_frame: time between frames, where it is known.

    Raises:
        DataError: no frames; images and labels do not belong together, or labels and lineage.
        StorageError: the page cannot be written.
    """
    _check(images, labels)
    movie = _Movie(images, labels, lineage, spacing, minutes_per_frame)
    shown = animated(movie.pictures())
    picture = lineage_picture(lineage, len(labels), movie.seen.gaps, minutes_per_frame)
    counts = [(float(frame), float(count)) for frame, count in enumerate(movie.seen.counts)]
    series = Series("objects", counts)
    divisions = [
        (lineage.by_id[mother].end, mother, daughters)
        for mother, daughters in lineage.divisions.items()
        if mother in lineage.by_id
    ]
    values = {
        "name": name,
        "frames": len(labels),
        "facts": _facts(lineage, len(labels), movie.seen),
        "movie": data_uri(shown, "webp"),
        "still": data_uri(encoded(movie.still)) if movie.still is not None else "",
        "remark": movie.remark(),
        "width": movie.size[1],
        "picture": picture,
        "tracks": len(lineage.tracks),
        "chart": chart("Objects in each frame", [series], "frame", whole=True, wide=False),
        "divisions": sorted(divisions)[:_MOST_ROWS],
        "all_divisions": len(divisions),
        "versions": versions(),
    }
    return write_page("tracks.html.j2", path, values)


@dataclass(slots=True)
class _Seen:
    """What the frames show of the tracks."""

    counts: list[int] = field(default_factory=list)
    """Objects in each frame."""
    gaps: dict[int, list[Gap]] = field(default_factory=dict)
    _last: dict[int, int] = field(default_factory=dict)  # the newest frame that shows each track

    def see(self, frame: int, ids: Sequence[int], lineage: Lineage) -> None:
        for track in ids:
            if track not in lineage.by_id:
                raise DataError(f"Frame {frame} shows object {track}, which is no track.")
            last = self._last.get(track, frame - 1)
            if last < frame - 1:
                self.gaps.setdefault(track, []).append((last + 1, frame - 1))
            self._last[track] = frame
        self.counts.append(len(ids))


@dataclass(slots=True)
class _Movie:
    """Goes once over the frames, draws them, and keeps what is counted."""

    images: Sequence[LazyArray] | None
    labels: Sequence[LazyArray]
    lineage: Lineage
    spacing: Spacing
    minutes_per_frame: float | None
    seen: _Seen = field(default_factory=_Seen)
    still: Picture | None = None
    """A frame for those who want nothing to move: the last."""
    step: int = 1
    plane: int = 0
    window: tuple[slice, slice] = (slice(0, 0), slice(0, 0))
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.step = -(-len(self.labels) // MOST_FRAMES)
        self.plane = plane_of(self.labels[len(self.labels) // 2])
        self.window = window_of(self.labels[0].shape)
        height, width = (part.stop - part.start for part in self.window)
        frames = -(-len(self.labels) // self.step)
        room = (_PIXELS / frames / (height * width)) ** 0.5 * max(height, width)
        self.scale = scale_for((height, width), int(min(SIDE, max(room, SIDE / 2))))

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, ``(y, x)``."""
        height, width = (max(round((s.stop - s.start) * self.scale), 1) for s in self.window)
        return height, width

    def pictures(self) -> Iterator[Picture]:
        """Those of the frames that are shown."""
        middle = [i * (len(self.labels) - 1) // (_LOOK_AT - 1) for i in range(_LOOK_AT)]
        looks = [] if self.images is None else [self._image(i) for i in sorted(set(middle))]
        limits = limits_of(image for image in looks if image is not None)
        painter = Painter(self.lineage, self.scale, limits, self.spacing, self.minutes_per_frame)
        for frame, labels in enumerate(self.labels):
            self.seen.see(frame, _ids(labels), self.lineage)
            if frame % self.step == 0:
                plane = slice(self.plane, self.plane + 1)
                cut = labels[(plane, *self.window)][0]
                self.still = painter.paint(frame, self._image(frame), cut)
                yield self.still

    def _image(self, frame: int) -> Image | None:
        if self.images is None:
            return None
        image = self.images[frame]
        plane = slice(self.plane, self.plane + 1)
        return image[(slice(0, image.shape[0]), plane, *self.window)]

    def remark(self) -> str:
        """What the movie leaves out."""
        depth, *shape = self.labels[0].shape
        height, width = (part.stop - part.start for part in self.window)
        parts = []
        if self.step > 1:
            parts.append(f"One frame of {self.step} is shown.")
        if depth > 1:
            parts.append(f"Plane {self.plane} of {depth} is shown, counted from 0.")
        if [height, width] != shape:
            parts.append(f"The middle {height} x {width} of {shape[0]} x {shape[1]} is shown.")
        return " ".join(parts)


def _ids(labels: LazyArray) -> list[int]:
    """Those in a frame, read in blocks."""
    depth, height, width = labels.shape
    rows = max(_BLOCK // max(width, 1), 1)
    found: NDArray[Any] = np.zeros(0, labels.dtype)
    for z in range(depth):
        for top in range(0, height, rows):
            part = (slice(z, z + 1), slice(top, min(top + rows, height)), slice(0, width))
            found = np.union1d(found, np.unique(labels[part]))
    ids: list[int] = found[found > 0].tolist()
    return ids


def _facts(lineage: Lineage, frames: int, seen: _Seen) -> list[tuple[str, int, str]]:
    """Name, number and explanation of each."""
    born = sum(t.begin > 0 and t.parent not in lineage.by_id for t in lineage.tracks)
    died = sum(t.end < frames - 1 and t.id not in lineage.daughters for t in lineage.tracks)
    missing = sum(b - a + 1 for gaps in seen.gaps.values() for a, b in gaps)
    gaps = sum(map(len, seen.gaps.values()))
    absent = f"{missing} frame" + "s" * (missing != 1)
    return [
        ("Frames", frames, ""),
        ("Tracks", len(lineage.tracks), f"{seen.counts[0]} in the first frame"),
        ("Divisions", len(lineage.divisions), "into two or more"),
        ("Births", born, "after the first frame, without a mother"),
        ("Deaths", died, "before the last frame, without daughters"),
        ("Gaps", gaps, f"{absent} in which a track is missing" if gaps else ""),
    ]


def _check(images: Sequence[LazyArray] | None, labels: Sequence[LazyArray]) -> None:
    if not len(labels):
        raise DataError("A movie without frames cannot be shown.")
    if images is not None and len(images) != len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} labels do not belong together.")
    for frame, one in enumerate(labels):
        if one.shape != labels[0].shape or len(one.shape) != 3:
            raise DataError(
                f"The labels of frame {frame} are of shape {one.shape}, those of frame 0 of "
                f"{labels[0].shape}; all must be (z, y, x) and alike."
            )
        if images is not None and images[frame].shape[1:] != one.shape:
            raise DataError(
                f"Image and labels of frame {frame} are of shapes {images[frame].shape} and "
                f"{one.shape}; (c, z, y, x) and (z, y, x) belong together."
            )

"""Synthetic movies of cells with exact labels and tracks, for tests, demos and benchmarks.

They look like fluorescence microscopy of a growing culture. Cells crawl, turn, grow and touch;
they round up and brighten before they divide, and their daughters start side by side; some die;
some enter and leave over the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Sample
from cellseg.errors import ConfigError
from cellseg.files import make_folder, storage_errors
from cellseg.readers.ctc_folders import TRUTH_TABLE
from cellseg.synthetic import Seed
from cellseg.synthetic_drawing import Camera, draw, tidy
from cellseg.synthetic_population import Population, Shapes
from cellseg.track_files import ctc_table
from cellseg.tracks import Lineage, Track

_ROOM = 3.2
"""Mean areas of a cell that each has of the image at the start, where no count is given."""
_SMALLEST = 0.08  # of the mean area; less of a cell is not labelled


@dataclass(frozen=True, slots=True)
class Movie:
    """Frames, their labels, and what became of whom."""

    images: NDArray[np.uint16] | None
    """``(t, y, x)`` in counts of a camera; None where none were asked for."""
    labels: NDArray[np.uint32]
    """``(t, y, x)``: 0 for background, else the id of a track. Each cell is in one piece."""
    lineage: Lineage
    """Without gaps, and without single daughters."""

    def samples(self, name: str = "movie", *, normalise: bool = False) -> list[Sample]:
        """The frames as a reader gives them: images ``(1, 1, y, x)``, labels ``(1, y, x)``.

        Args:
            name: of the movie; the samples are called ``NAME/t000``, …
            normalise: float32 images, the percentiles 1 and 99.8 of each at 0 and 1.

        Raises:
            ConfigError: the movie has no images.
        """
        if self.images is None:
            raise ConfigError("This movie has no images.", hint="Leave draw_images on.")
        return [
            Sample(
                name=f"{name}/t{frame:03d}",
                image=(_normalised(image) if normalise else image)[None, None],
                labels=labels[None],
                source=name,
                frame=frame,
                tracks=self.lineage,
            )
            for frame, (image, labels) in enumerate(zip(self.images, self.labels, strict=True))
        ]


def make_movie(
    seed: Seed,
    frames: int = 20,
    shape: tuple[int, int] = (256, 256),
    count: int | None = None,
    *,
    diameter: float = 24.0,
    cycle: float = 24.0,
    speed: float = 2.0,
    death_rate: float = 0.003,
    draw_images: bool = True,
) -> Movie:
    """Draw one movie of fluorescent cells, with its ground truth.

    A cell that is out of sight for a frame or more, beyond the border or under others, comes back
    as another one, so no track has gaps. A division counts where the mother is in the frame before
    and both daughters are in the frame after it; where only one of them is, it stays the mother.

    Args:
        seed: the same seed gives the same movie; images do not change the labels.
        frames: how many.
        shape: ``(y, x)`` in pixels, at least 32 each.
        count: how many cells to start with, about; they multiply until they fill the image. 0
            gives empty frames; None suits the shape.
        diameter: mean over the cell cycle, in pixels.
        cycle: mean length of the cell cycle in frames, at least 2; ``math.inf`` for no divisions.
        speed: root mean square of the steps that cells make by themselves, in pixels a frame, at
            most half a diameter; they are pushed beside that.
        death_rate: probability of a cell to die, per frame.
        draw_images: False gives labels only, in a fraction of the time.

    Raises:
        ConfigError: a number is out of its range.
    """
    _check(frames, shape, count, diameter, cycle, speed, death_rate)
    if count is None:
        count = max(round(math.prod(shape) / (_ROOM * math.pi / 4 * diameter**2)), 1)
    rng, light_rng = (np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(2))
    cells = Population(
        shape=shape,
        diameter=diameter,
        cycle=cycle,
        speed=speed,
        death_rate=death_rate,
        rng=rng,
    )
    cells.settle(count / math.prod(shape))
    camera = Camera.random(shape, light_rng) if draw_images else None
    images = np.zeros((frames, *shape), np.uint16) if draw_images else None
    labels = np.zeros((frames, *shape), np.uint32)
    known = _Identities()
    smallest = max(int(_SMALLEST * math.pi / 4 * diameter**2), 4)
    for frame in range(frames):
        if frame:
            cells.step()
        shapes = cells.shapes()
        index, depth = draw(shapes, shape)
        index = tidy(index, smallest)
        labels[frame] = known.tracks(frame, shapes, index)[index]
        if camera is not None and images is not None:
            images[frame] = camera.photograph(shapes, index, depth, light_rng)
    return Movie(images, labels, known.lineage())


def write_ctc(folder: Path, movies: Sequence[Movie]) -> list[Path]:
    """Write movies as a training set of the Cell Tracking Challenge.

    Args:
        folder: gets ``01/t000.tif``, ``01_GT/TRA/man_track000.tif`` (uint16),
            ``01_GT/TRA/man_track.txt``, ``01_GT/SEG/man_seg000.tif``, ``02/``, …
        movies: with images.

    Returns:
        The folders of the images.

    Raises:
        ConfigError: a movie without images, or with more than 65535 tracks.
        StorageError: the folder cannot be written.
    """
    import tifffile

    written = []
    for number, movie in enumerate(movies, start=1):
        if movie.images is None:
            raise ConfigError("This movie has no images.", hint="Leave draw_images on.")
        if max(movie.lineage.by_id, default=0) > np.iinfo(np.uint16).max:
            raise ConfigError("A movie of more than 65535 tracks does not fit into 16 bits.")
        name = f"{number:02d}"
        tracking, segmentation = folder / f"{name}_GT" / "TRA", folder / f"{name}_GT" / "SEG"
        for made in (folder / name, tracking, segmentation):
            make_folder(made)
        with storage_errors(folder):
            for frame, (image, labels) in enumerate(zip(movie.images, movie.labels, strict=True)):
                masks = labels.astype(np.uint16)
                for target, pixels in (
                    (folder / name / f"t{frame:03d}.tif", image),
                    (tracking / f"man_track{frame:03d}.tif", masks),
                    (segmentation / f"man_seg{frame:03d}.tif", masks),
                ):
                    tifffile.imwrite(target, pixels, compression="zlib")
            (tracking / TRUTH_TABLE).write_text(ctc_table(movie.lineage), encoding="ascii")
        written.append(folder / name)
    return written


@dataclass(slots=True)
class _Identities:
    """Which track each cell in sight is of."""

    shown: dict[int, int] = field(default_factory=dict)  # track of each cell of the last frame
    begin: dict[int, int] = field(default_factory=dict)
    end: dict[int, int] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)

    def tracks(self, frame: int, shapes: Shapes, index: NDArray[np.int32]) -> NDArray[np.uint32]:
        """The track of each index in the drawing of a frame."""
        table = np.zeros(len(shapes.id) + 1, np.uint32)
        seen = [int(i) for i in np.flatnonzero(np.bincount(index.ravel())) if i]
        visible: dict[int, list[int]] = {}  # the daughters of each mother
        for i in seen:
            visible.setdefault(int(shapes.mother[i - 1]), []).append(i)
        now: dict[int, int] = {}
        for i in seen:
            cell, mother = int(shapes.id[i - 1]), self.shown.get(int(shapes.mother[i - 1]), 0)
            track = self.shown.get(cell, 0)
            if not track and mother and len(visible[int(shapes.mother[i - 1])]) == 1:
                track = mother
            if not track:
                track = len(self.begin) + 1
                self.begin[track], self.parents[track] = frame, mother
            self.end[track] = frame
            now[cell] = track
            table[i] = track
        self.shown = now
        return table

    def lineage(self) -> Lineage:
        return Lineage.of(
            Track(id=track, begin=begin, end=self.end[track], parent=self.parents[track])
            for track, begin in self.begin.items()
        )


def _normalised(image: NDArray[np.uint16]) -> NDArray[np.float32]:
    low, high = np.percentile(image, (1, 99.8))
    scaled: NDArray[np.float32] = ((image - low) / max(high - low, 1e-6)).astype(np.float32)
    return scaled


def _check(
    frames: int,
    shape: tuple[int, int],
    count: int | None,
    diameter: float,
    cycle: float,
    speed: float,
    death_rate: float,
) -> None:
    if frames < 1:
        raise ConfigError(f"A movie needs at least 1 frame, not {frames}.")
    if min(shape) < 32:
        raise ConfigError(f"Synthetic movies need at least 32 x 32 pixels, not {shape}.")
    if count is not None and count < 0:
        raise ConfigError(f"The number of cells must not be negative, as {count} is.")
    if not 4 <= diameter <= min(shape) / 2:
        raise ConfigError(
            f"The diameter of cells must be 4 to {min(shape) / 2:g} pixels (half of the shorter "
            f"side), not {diameter}."
        )
    if not cycle >= 2:
        raise ConfigError(f"The cell cycle must be at least 2 frames long, not {cycle}.")
    if not 0 <= speed <= diameter / 2:
        raise ConfigError(
            f"The speed must be 0 to {diameter / 2:g} pixels a frame (half a diameter), "
            f"not {speed}."
        )
    if not 0 <= death_rate <= 1:
        raise ConfigError(f"The death rate must be 0 to 1, not {death_rate}.")

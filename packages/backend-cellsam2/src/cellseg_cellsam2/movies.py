"""Movies of a data set, frame by frame, and where clips of them can begin."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cellseg.classes import SHIFT
from cellseg.data import Dataset, Sample
from cellseg.errors import ConfigError, DataError
from cellseg.tracks import Lineage

_STILL = Lineage(())


@dataclass(frozen=True)
class Movie:
    """Frames without a gap between them; a still image is a movie of one frame."""

    frames: tuple[Sample, ...]

    @property
    def first(self) -> int:
        """The number of its first frame."""
        return self.frames[0].frame or 0

    @property
    def lineage(self) -> Lineage:
        """All tracks; none where the ids are those of a single frame."""
        return self.frames[0].tracks or _STILL

    @cached_property
    def births(self) -> Mapping[int, tuple[int, ...]]:
        """By frame, counted from its first one: the mothers whose daughters begin there, one frame
        after the mother's last."""
        tracks = self.lineage.by_id
        found = defaultdict(list)
        for mother, daughters in self.lineage.divisions.items():
            if mother in tracks:
                frame = tracks[mother].end + 1
                if sum(tracks[daughter].begin == frame for daughter in daughters) > 1:
                    found[frame - self.first].append(mother)
        return {frame: tuple(mothers) for frame, mothers in found.items()}


@dataclass(frozen=True, slots=True)
class Start:
    """Where a clip can begin."""

    movie: Movie
    at: int
    """The first frame of the clip, counted from the first one of the movie."""

    @property
    def sample(self) -> Sample:
        """The first frame."""
        return self.movie.frames[self.at]

    def divisions(self, length: int) -> list[tuple[int, int]]:
        """Those within a clip of ``length`` frames: the last frame of the mother, counted as
        ``at``, and her id."""
        births = self.movie.births
        later = range(self.at + 1, self.at + length)
        return [(frame - 1, mother) for frame in later for mother in births.get(frame, ())]


def movies_of(samples: Dataset, length: int) -> list[Movie]:
    """The frames of each source in order, apart where some are missing or of another shape.

    Args:
        samples: with labels.
        length: frames of a clip; with 1, each frame is by itself.

    Raises:
        ConfigError: clips are longer than a frame, and there are still images or no tracks.
        DataError: two frames of a movie have one number, or ids of tracks are too large.
    """
    if length == 1:
        return [Movie((sample,)) for sample in samples]
    still = [sample.name for sample in samples if sample.frame is None]
    untracked = [sample.name for sample in samples if sample.tracks is None]
    if still or untracked:
        which = f"{still[0]} is a still image" if still else f"{untracked[0]} has no tracks"
        raise ConfigError(
            f"--num-frames {length} needs movies with tracks, but {which}.",
            hint="Learn segmentation alone with --num-frames 1, or give movies as the Cell Tracking"
            " Challenge has them: 01, 01_GT/TRA with man_track.txt.",
        )
    return [
        movie for frames in _by_source(samples).values() for movie in _without_gaps(frames, length)
    ]


def starts_of(movies: Iterable[Movie], length: int) -> list[Start]:
    """All places where a clip of ``length`` frames can begin."""
    return [Start(movie, at) for movie in movies for at in range(len(movie.frames) - length + 1)]


def _by_source(samples: Dataset) -> dict[str, list[Sample]]:
    sources: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        sources[sample.group].append(sample)
    for name, frames in sources.items():
        frames.sort(key=lambda sample: sample.frame or 0)
        for one, other in itertools.pairwise(frames):
            if one.frame == other.frame:
                raise DataError(
                    f"{name}: {one.name} and {other.name} are both frame {one.frame}.",
                    hint="Leave one of them out.",
                )
        ids = frames[0].tracks.by_id if frames[0].tracks else {}
        if not frames[0].classes and max(ids, default=0) >= 1 << SHIFT:
            raise DataError(
                f"{name}: has the track {max(ids)}; ids of tracks end at {(1 << SHIFT) - 1}.",
                hint="Number the tracks anew.",
            )
    return sources


def _without_gaps(frames: list[Sample], length: int) -> list[Movie]:
    runs: list[list[Sample]] = []
    for sample in frames:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and last.frame is not None
            and sample.frame == last.frame + 1
            and sample.image.shape == last.image.shape
        ):
            runs[-1].append(sample)
        else:
            runs.append([sample])
    return [Movie(tuple(run)) for run in runs if len(run) >= length]

"""Training clips: windows of a few frames, drawn around objects and divisions.

Clip ``i`` depends on the random seed and ``i`` alone, whichever process draws it and in whatever
order, so a resumed training sees the very clips that come next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX, Dataset, Sample
from cellseg.errors import DataError
from cellseg.keeping import kept, measured, size
from cellseg.objects import ObjectIndex
from cellseg.patches import PatchGrid, cut
from cellseg.splits import weighted
from cellseg.tracks import Lineage
from cellseg_cellsam2.movies import Start, movies_of, starts_of


@dataclass(frozen=True, slots=True)
class Clip:
    """A window of some frames."""

    images: NDArray[np.float32]
    """``(c, t, y, x)``."""
    labels: NDArray[np.uint32]
    """``(t, y, x)`` with the ids of tracks or, of a still image, of objects."""
    lineage: Lineage
    """All tracks of the movie; empty for a still image."""
    first: int
    """The number of its first frame in the movie."""
    name: str
    """Of the sample that it begins with."""


class ClipSampler:
    """Draws random clips, each starting frame as often as the weight of its sample says.

    The window lies anywhere around a random object of the first frame or, where that is empty, of
    the next one that is not; anywhere, where all are. So many clips as ``division_share`` says are
    drawn around a mother that divides within them instead. Of volumes a clip shows one plane, in
    which that object lies. Images smaller than the window are padded with their background.

    Args:
        samples: with labels; images normalised. Those of weight 0 are left out.
        length: frames of a clip.
        side: height and width of a clip, in pixels.
        division_share: 0 to 1.
        least: pixels that an object must have to be drawn.
        seed: another one gives other clips.
        cache: bytes of frames that may be kept decoded, as first come.

    Raises:
        ConfigError: as ``movies_of`` says.
        DataError: no movie is long enough, or a file cannot be read.
    """

    def __init__(
        self,
        samples: Dataset,
        *,
        length: int,
        side: int,
        division_share: float = 0.0,
        least: int = 1,
        seed: int = 0,
        cache: int = 512 << 20,
    ) -> None:
        self.length, self.side, self._seed = length, side, seed
        loaded = []
        for sample in weighted(samples):
            labelled(sample)
            if size(sample) <= cache:
                sample = kept(sample)
                cache -= size(sample)
            loaded.append(measured(sample))
        movies = movies_of(loaded, length)
        self.starts = starts_of(movies, length)
        """Where clips begin."""
        if not self.starts:
            raise DataError(
                f"No movie has {length} frames one after the other.",
                hint="Train on shorter clips: --num-frames.",
            )
        used = {sample.name for movie in movies for sample in movie.frames}
        self.skipped: tuple[str, ...] = tuple(one.name for one in loaded if one.name not in used)
        """Names of the frames that are in no clip."""
        self._objects = {
            sample.name: _large(sample, least) for movie in movies for sample in movie.frames
        }
        self._cumulated = _cumulated(start.sample.weight for start in self.starts)
        self._dividing = [start for start in self.starts if start.divisions(length)]
        self._share = division_share if self._dividing else 0.0
        self._cumulated_dividing = _cumulated(start.sample.weight for start in self._dividing)

    def __len__(self) -> int:
        """How many places there are to begin at."""
        return len(self.starts)

    @property
    def divisions(self) -> int:
        """How many of them show a division."""
        return len(self._dividing)

    def clip(self, index: int) -> Clip:
        """Clip ``index``, from 0 on without end; always the same one.

        Raises:
            DataError: the file cannot be read.
        """
        rng = np.random.default_rng([self._seed, index])
        divides = rng.random() < self._share
        starts = self._dividing if divides else self.starts
        chances = self._cumulated_dividing if divides else self._cumulated
        start = starts[min(int(chances.searchsorted(rng.random(), "right")), len(starts) - 1)]
        anchor = self._mother(start, rng) if divides else None
        return clip_at(start, self._corner(start, anchor or self._anchor(start, rng), rng), self)

    def _mother(self, start: Start, rng: np.random.Generator) -> tuple[ObjectIndex, int] | None:
        """A mother in her last frame; None where she is not to be seen."""
        divisions = start.divisions(self.length)
        at, mother = divisions[int(rng.integers(len(divisions)))]
        objects = self._objects[start.movie.frames[at].name]
        where = np.flatnonzero(objects.ids == mother)
        return (objects, int(where[0])) if len(where) else None

    def _anchor(self, start: Start, rng: np.random.Generator) -> tuple[ObjectIndex, int] | None:
        """An object of the first frame that has any; None where none has."""
        for at in range(start.at, start.at + self.length):
            objects = self._objects[start.movie.frames[at].name]
            if len(objects):
                return objects, int(rng.integers(len(objects)))
        return None

    def _corner(
        self, start: Start, anchor: tuple[ObjectIndex, int] | None, rng: np.random.Generator
    ) -> ZYX:
        """Where the window begins, all of the anchor in it if it fits."""
        corner = []
        shape = (1, self.side, self.side)
        for axis, (extent, length) in enumerate(
            zip(shape, start.sample.image.shape[1:], strict=True)
        ):
            room = length - extent
            least, most = (room // 2, room // 2) if room < 0 else (0, room)
            if anchor is not None:
                objects, number = anchor
                low, high = int(objects.low[number, axis]), int(objects.high[number, axis])
                first, last = sorted((low, high - extent))
                least, most = max(least, min(first, most)), min(most, max(last, least))
            corner.append(least + int(rng.random() * (most - least + 1)))
        return corner[0], corner[1], corner[2]


class ClipGrid(Sequence[Clip]):
    """Clips that cover movies without gaps, for validation; each is read when asked for.

    Args:
        samples: with labels; images normalised.
        length: frames of a clip; the last frames of a movie may be left out.
        side: height and width, in pixels.

    Raises:
        ConfigError: as ``movies_of`` says.
        DataError: no movie is long enough, or an image has no labels.
    """

    def __init__(self, samples: Dataset, *, length: int, side: int) -> None:
        self.length, self.side = length, side
        self._clips: list[tuple[Start, ZYX]] = []
        for sample in samples:
            labelled(sample)
        for movie in movies_of(samples, length):
            for at in range(0, len(movie.frames) - length + 1, length):
                start = Start(movie, at)
                grid = PatchGrid([start.sample], (1, side, side))
                self._clips += [(start, corner) for corner in grid.corners]
        if not self._clips:
            raise DataError(
                f"No movie to validate on has {length} frames one after the other.",
                hint="Use shorter clips (--num-frames), or other movies (--val).",
            )

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: Any) -> Any:
        """Clip ``index``."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, corner = self._clips[index]
        return clip_at(start, corner, self)


def clip_at(start: Start, corner: ZYX, of: ClipSampler | ClipGrid) -> Clip:
    """The clip that begins with ``start``, its window at ``corner``.

    Raises:
        DataError: the file cannot be read.
    """
    shape = (1, of.side, of.side)
    frames = start.movie.frames[start.at : start.at + of.length]
    patches = [cut(sample, corner, shape) for sample in frames]
    return Clip(
        images=np.concatenate([patch.image for patch in patches], axis=1),
        labels=np.concatenate([patch.labels for patch in patches]),
        lineage=start.movie.lineage,
        first=start.movie.first + start.at,
        name=start.sample.name,
    )


def longest_side(samples: Dataset) -> int:
    """Of all images, in pixels within the plane."""
    return max(max(sample.image.shape[2:]) for sample in samples)


def labelled(sample: Sample) -> None:
    """Refuse a sample without labels, or with some of another shape."""
    z, y, x = sample.image.shape[1:]
    PatchGrid([sample], (z, y, x))


def _large(sample: Sample, least: int) -> ObjectIndex:
    assert sample.labels is not None
    objects = ObjectIndex.of(sample.labels, sample.name)
    return objects.chosen(objects.sizes >= least)


def _cumulated(weights: Any) -> NDArray[np.float64]:
    values = np.fromiter(weights, np.float64)
    shares: NDArray[np.float64] = np.cumsum(values) / max(values.sum(), 1e-300)
    return shares

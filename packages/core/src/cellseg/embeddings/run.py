"""From images and label images to the vectors of their objects, one tile at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Features
from cellseg.embeddings.describe import Describer
from cellseg.embeddings.pooling import Moments, overlap
from cellseg.embeddings.units import Arrival, Begun, Ended, Objects, Piece, Unit, said
from cellseg.engine.plan import Box
from cellseg.errors import CellsegError


@dataclass(frozen=True, slots=True)
class Embedded:
    """The objects of a unit and their vectors, in the order of their ids."""

    ids: NDArray[np.uint32]
    area: NDArray[np.int64]
    """``(n,)``, voxels."""
    centroid: NDArray[np.float64]
    """``(n, 3)``, voxels, ``(z, y, x)``; the middle of the first voxel is 0."""
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    found: int
    """How many objects the label image has in all."""
    mean: NDArray[np.float32]
    """``(n, d)``."""
    deviation: NDArray[np.float32]
    """``(n, d)``, population; no rows where it is not asked for."""
    highest: NDArray[np.float32]
    """``(n, d)``; no rows where it is not asked for."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> Embedded:
        """Some of the objects."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "found"}
        return Embedded(found=self.found, **{n: a[start:stop] for n, a in arrays.items()})


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that could not be done."""

    unit: Unit
    reason: str
    data: bool
    """Whether its files are at fault, and not the model."""


@dataclass(slots=True)
class _Open:
    """A unit some of whose tiles have come."""

    objects: Objects
    moments: Moments | None = None
    places: NDArray[np.float64] | None = None
    """``(n, 3)``: sums of coordinates in the image."""


class Embedding:
    """Describes tiles, and pools what was seen over the objects in them.

    Args:
        describer: the embedder.
        spread: whether standard deviations and maxima are wanted too.
        done: gets each unit and its objects when all its tiles have come.
        failed: gets each unit that cannot be done.
        seen: gets each tile that is pooled.
    """

    def __init__(
        self,
        describer: Describer,
        spread: bool,
        *,
        done: Callable[[Unit, Embedded], None],
        failed: Callable[[Failure], None],
        seen: Callable[[Unit, int], None],
    ) -> None:
        self.given_up: set[int] = set()
        """Numbers of the units that failed."""
        self._describer = describer
        self._spread = spread
        self._done = done
        self._failed = failed
        self._seen = seen
        self._open: dict[int, _Open] = {}

    def take(self, group: Sequence[Arrival]) -> None:
        """Describe the tiles of a group at once, and pool them in order.

        Raises:
            CellsegError: going on is pointless: a broken embedder, a full disk.
        """
        pieces = [one for one in group if isinstance(one, Piece)]
        wanted = [one for one in pieces if one.unit.number not in self.given_up]
        features = self._describe(wanted)
        for arrival in group:
            if arrival.unit.number in self.given_up:
                continue
            if isinstance(arrival, Begun):
                self._open[arrival.unit.number] = _Open(arrival.objects)
            elif isinstance(arrival, Piece):
                self._pool(arrival, features[id(arrival)])
                self._seen(arrival.unit, arrival.number)
            elif isinstance(arrival, Ended):
                self._end(arrival.unit)
            else:
                self._fail(Failure(arrival.unit, arrival.reason, True))

    def _describe(self, pieces: Sequence[Piece]) -> dict[int, Features]:
        if not pieces:
            return {}
        try:
            found = self._describer([piece.tile for piece in pieces])
            return {id(piece): one for piece, one in zip(pieces, found, strict=True)}
        except CellsegError:
            raise
        except Exception as error:  # recorded as a failure, never as zeros
            if len(pieces) == 1:
                self._fail(Failure(pieces[0].unit, said(error), False))
                return {}
        # One of them is to blame; the others are fine by themselves.
        alone: dict[int, Features] = {}
        for piece in pieces:
            if piece.unit.number not in self.given_up:
                alone |= self._describe([piece])
        return alone

    def _pool(self, piece: Piece, found: Features) -> None:
        unit, state = piece.unit, self._open[piece.unit.number]
        core, outer = unit.plan.core_box(piece.number), unit.plan.read_box(piece.number)
        inner = _moved(core, outer)
        cells = self._describer.cells(found, outer.shape, inner)
        _, z, y, x = found.values.shape
        here = overlap(piece.rows, cells, (z, y, x))
        if state.moments is None or state.places is None:
            n = len(state.objects)
            state.moments = Moments(n, len(found.values), self._spread)
            state.places = np.zeros((n, 3))
        state.moments.add(here, self._describer.vectors(found, here.cells))
        voxels = here.counts.sum(axis=1)[:, None]
        state.places[here.objects] += here.places + voxels * np.array(core.start)

    def _end(self, unit: Unit) -> None:
        state = self._open.pop(unit.number)
        objects, moments, places = state.objects, state.moments, state.places
        if moments is None or places is None:  # there are no objects
            moments, places = Moments(0, 0, self._spread), np.zeros((0, 3))
        result = Embedded(
            ids=objects.ids,
            area=objects.area,
            centroid=places / objects.area[:, None],
            low=objects.low,
            high=objects.high,
            found=objects.found,
            mean=moments.mean.astype(np.float32),
            deviation=moments.deviation().astype(np.float32) if self._spread else _nothing(),
            highest=moments.highest,
        )
        self._done(unit, result)

    def _fail(self, failure: Failure) -> None:
        self.given_up.add(failure.unit.number)
        self._open.pop(failure.unit.number, None)
        self._failed(failure)


def _moved(inner: Box, outer: Box) -> Box:
    """A region in coordinates of the one around it."""
    z, y, x = inner.within(outer)
    return Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))


def _nothing() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)

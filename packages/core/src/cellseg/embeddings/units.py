"""What is read for embeddings: the objects of each image, then the tiles that they lie in."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cellseg.data import LazyArray, Sample, Tile
from cellseg.embeddings.pooling import rows_of
from cellseg.engine.plan import Box, Plan
from cellseg.errors import CellsegError, DataError
from cellseg.normalise import NormalisedImage, Normaliser
from cellseg.objects import ObjectIndex, as_ids

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit:
    """An image, or a frame of a movie, with the labels of its objects."""

    number: int
    image: str
    """Name of the image or movie."""
    frame: int | None
    """Index in the movie."""
    sample: Sample
    labels: LazyArray
    """``(z, y, x)`` of the sample's image."""
    plan: Plan

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.image if self.frame is None else f"{self.image}#{self.frame}"


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a unit that are to be described, by rising id."""

    ids: NDArray[np.uint32]
    """``(n,)``."""
    area: NDArray[np.int64]
    """``(n,)``, voxels."""
    low: NDArray[np.int64]
    """``(n, 3)``: first voxel of the bounding box."""
    high: NDArray[np.int64]
    """``(n, 3)``: voxel after the last."""
    found: int
    """How many there are in all."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, unit: Unit, most: int | None, seed: int) -> Objects:
        """All objects, or at most so many of them, drawn at random.

        What is drawn depends on the seed, the name of the image, the frame and the ids.

        Raises:
            DataError: the labels cannot be read, or are none.
        """
        index = ObjectIndex.of(unit.labels, unit.name)
        order = np.argsort(index.ids)
        if most is not None and most < len(order):
            draw = np.random.default_rng([seed, zlib.crc32(unit.image.encode()), unit.frame or 0])
            order = order[np.sort(draw.choice(len(order), most, replace=False))]
        return cls(
            index.ids[order],
            index.sizes[order],
            index.low[order],
            index.high[order],
            len(index),
        )

    def reach(self, box: Box) -> bool:
        """Whether the bounding box of any of them meets a region."""
        meet = (self.low < np.array(box.stop)) & (self.high > np.array(box.start))
        return bool(meet.all(axis=1).any())


@dataclass(frozen=True, slots=True)
class Begun:
    """The objects of a unit are known; its tiles follow."""

    unit: Unit
    objects: Objects


@dataclass(frozen=True, slots=True)
class Piece:
    """A tile of a unit that has some of its objects in the core."""

    unit: Unit
    number: int
    """Of the tile."""
    tile: Tile
    rows: NDArray[np.int32]
    """``(z, y, x)`` of the core: the place of each voxel's object among the unit's, or -1."""


@dataclass(frozen=True, slots=True)
class Ended:
    """All tiles of a unit have come."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class Broken:
    """A unit cannot be read any further."""

    unit: Unit
    reason: str


Arrival: TypeAlias = Begun | Piece | Ended | Broken


def read_units(
    units: Iterable[Unit],
    normaliser: Normaliser,
    most_objects: int | None,
    seed: int,
    given_up: Collection[int] = (),
) -> Iterator[Arrival]:
    """Read one unit after the other: ``Begun``, its tiles, ``Ended``; or ``Broken`` in between.

    Args:
        units: what to read.
        normaliser: of the model.
        most_objects: describe at most so many objects of each unit.
        seed: of the draw.
        given_up: numbers of units that nobody wants any more; looked at before each tile.
    """
    for unit in units:
        try:
            objects = Objects.of(unit, most_objects, seed)
            yield Begun(unit, objects)
            for piece in _pieces(unit, objects, normaliser):
                yield piece
                if unit.number in given_up:
                    break
            yield Ended(unit)
        except DataError as error:
            yield Broken(unit, str(error))
        except CellsegError:
            raise
        except Exception as error:  # a strange file must not stop the other images
            yield Broken(unit, f"cannot be read: {said(error)}")


def _pieces(unit: Unit, objects: Objects, normaliser: Normaliser) -> Iterator[Piece]:
    image: NormalisedImage | None = None
    for number in range(len(unit.plan)):
        core = unit.plan.core_box(number)
        if not objects.reach(core):
            continue
        labels = as_ids(np.asarray(unit.labels[core.slices]), unit.name)
        rows = rows_of(labels, objects.ids)
        if rows.max() < 0:
            continue
        tile, image = read_tile(unit, number, normaliser, image)
        yield Piece(unit, number, tile, rows)


def read_tile(
    unit: Unit, number: int, normaliser: Normaliser, known: NormalisedImage | None = None
) -> tuple[Tile, NormalisedImage]:
    """A normalised tile with its halo, and its image, with what was found out about it so far."""
    raw = unit.sample.image
    where = (slice(0, raw.shape[0]), *unit.plan.read_box(number).slices)
    if known is None:
        whole = np.asarray(raw[where]) if len(unit.plan) == 1 else raw
        statistics = normaliser.statistics(whole, unit.name)
        known = NormalisedImage(whole, normaliser, _statistics=statistics)
    return Tile(image=known[where], spacing=unit.sample.spacing), known


def ahead(items: Iterator[T], count: int = 2) -> Iterator[T]:
    """The same items, made in another thread while the last one is still in use."""
    end = object()
    with ThreadPoolExecutor(1, "cellseg-read") as thread:
        coming: deque[Future[T | object]] = deque(
            thread.submit(next, items, end) for _ in range(count)
        )
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


def grouped(arrivals: Iterable[Arrival], size: int) -> Iterator[Sequence[Arrival]]:
    """The same in order, with up to ``size`` tiles of one shape together."""
    group: list[Arrival] = []
    tiles = 0
    kind: object = None
    for arrival in arrivals:
        if isinstance(arrival, Piece):
            ours = (arrival.tile.image.shape, arrival.tile.spacing)
            if tiles and ours != kind:
                yield group
                group, tiles = [], 0
            kind = ours
            tiles += 1
        group.append(arrival)
        if tiles in (0, size):
            yield group
            group, tiles = [], 0
    if group:
        yield group


def said(error: BaseException) -> str:
    """An unexpected error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

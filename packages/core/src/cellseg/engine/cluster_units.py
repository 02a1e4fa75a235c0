"""Which units of a prediction come next: batches of tiles, or what is left of lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from cellseg.engine.follow import EVERY
from cellseg.engine.items import TileRef
from cellseg.engine.worker import Outcome


class Source(Protocol):
    """Gives tiles to those who ask for work."""

    lone: bool
    """Whether a worker should have no more than one of these at a time."""

    def next(self) -> list[TileRef] | None:
        """Tiles that may be done now; None where there are none, for now or at all."""

    def came(self, tiles: list[TileRef], outcome: Outcome) -> None:
        """What became of tiles that ``next`` gave."""


class Batches:
    """Batches of tiles, which may be done in any order."""

    lone = False

    def __init__(self, units: Iterator[list[TileRef]]) -> None:
        self._units = units

    def next(self) -> list[TileRef] | None:
        """The next batch."""
        return next(self._units, None)

    def came(self, tiles: list[TileRef], outcome: Outcome) -> None:
        """Nothing depends on it."""


class Lanes:
    """Lanes side by side, each a few tiles at a time, up to the first tile that fails."""

    lone = True

    def __init__(self, lanes: Sequence[Sequence[TileRef]]) -> None:
        self._left = deque(deque(chunks(lane)) for lane in lanes if lane)
        self._begun: dict[TileRef, deque[list[TileRef]]] = {}

    def next(self) -> list[TileRef] | None:
        """What comes next of a lane that nobody is at."""
        if not self._left:
            return None
        lane = self._left.popleft()
        tiles = lane.popleft()
        self._begun[tiles[0]] = lane
        return tiles

    def came(self, tiles: list[TileRef], outcome: Outcome) -> None:
        """Go on with the lane, before others are begun."""
        lane = self._begun.pop(tiles[0])
        if lane and not outcome.failures:
            self._left.appendleft(lane)


def chunks(lane: Sequence[TileRef]) -> Iterator[list[TileRef]]:
    """The tiles of a lane, ``EVERY`` frames at a time: after each of these, the state of the
    tracker is on disk, so that any process can go on.

    A lane begins at a frame after which there is a state, or at the first one.
    """
    for start in range(0, len(lane), EVERY):
        yield list(lane[start : start + EVERY])

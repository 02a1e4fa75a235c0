"""Following the objects of movies: a tracker for each place in the grid of tiles, frame by frame.

A tracker must see its frames in their order, so all tiles of one place are done one after the
other: a lane. Its state is kept on disk every few frames, only the latest one; after a kill, the
lane goes on from there, and what it had done since is done again, with the same result.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Tile, Tracked
from cellseg.engine.items import Item, TileRef
from cellseg.engine.records import is_whole, quickly
from cellseg.engine.state import WorkDir
from cellseg.errors import DeviceError, PluginError, StorageError
from cellseg.memory import out_of_memory
from cellseg.specs import Tracker, TrackerMaker

EVERY = 10
"""Frames after which the state of a tracker is kept."""


@dataclass(frozen=True, slots=True)
class _Following:
    """A tracker under way."""

    item: int
    place: int
    step: int
    """How many frames it has seen."""
    tracker: Tracker


class Follower:
    """Feeds frames to trackers; holds one tracker at a time.

    Args:
        maker: makes trackers.
        backend: its name, for messages.
        items: all images, in the order that every process sees.
        work: where states are kept.
    """

    def __init__(
        self, maker: TrackerMaker, backend: str, items: Sequence[Item], work: WorkDir
    ) -> None:
        self._maker = maker
        self._backend = backend
        self._items = items
        self._work = work
        self._now: _Following | None = None

    def step(self, ref: TileRef, tile: Tile) -> Tracked:
        """What is in a tile; those of the same place in the frames before have been done.

        Raises:
            PluginError: the tracker breaks its contract.
            DeviceError: the memory does not suffice.
        """
        index, number = ref
        item = self._items[index]
        frame, place = item.locate(number)
        step = item.steps.index(frame)
        now, self._now = self._now, None  # a tracker that fails is not asked again
        if now is None or (now.item, now.place, now.step) != (index, place, step):
            now = None  # its memory is free before the next one takes some
            now = _Following(index, place, step, self._started(index, place, step))
        try:
            found = now.tracker.step(tile)
        except Exception as error:
            if out_of_memory(error):
                raise self._too_large(tile) from error
            raise
        self._check(found, tile)
        self._now = _Following(index, place, step + 1, now.tracker)
        return found

    def keep(self, ref: TileRef) -> None:
        """Call when what was found in a tile is on disk: keeps the state where it is time to."""
        index, number = ref
        item = self._items[index]
        frame, place = item.locate(number)
        done = item.steps.index(frame) + 1
        path = state_path(self._work, index, place)
        if done == len(item.steps):
            self._now = None
            path.unlink(missing_ok=True)
        elif done % EVERY == 0 and self._now is not None:
            _save(path, done, self._state(self._now.tracker))

    def _started(self, index: int, place: int, step: int) -> Tracker:
        if not step:
            return self._maker(None)
        path = state_path(self._work, index, place)
        stored = _load(path)
        if stored is None or stored[0] != step:
            raise StorageError(
                f"{path}: holds no state of a tracker after {step} frames.",
                hint="Go on with --resume.",
            )
        return self._maker(stored[1])

    def _state(self, tracker: Tracker) -> dict[str, NDArray[Any]]:
        state = tracker.state()
        if not isinstance(state, Mapping):
            raise self._broken(f"returned a state of type {type(state).__name__}")
        for name, array in state.items():
            if not isinstance(array, np.ndarray) or array.dtype.hasobject:
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise self._broken(f"returned a state whose {name!r} is {kind}, no array")
        return dict(state)

    def _check(self, found: object, tile: Tile) -> None:
        if not isinstance(found, Tracked):
            raise self._broken(f"returned a {type(found).__name__}, not a Tracked")
        labels, shape = found.labels, tile.image.shape[1:]
        if not isinstance(labels, np.ndarray):
            raise self._broken(f"returned labels as {type(labels).__name__}, not numpy")
        if labels.shape != shape:
            raise self._broken(
                f"returned labels of shape {labels.shape} for a tile of shape {shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise self._broken(f"returned labels of type {labels.dtype}, not integers")
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 1 << 63:
            raise self._broken("returned labels that are negative, or beyond int64")
        if not found.parents:
            return
        ids = set(np.unique(labels).tolist())
        for daughter, mother in found.parents.items():
            if daughter not in ids or not daughter:
                raise self._broken(f"says that {daughter} has a mother, but does not show it")
            if mother in ids or mother < 1:
                raise self._broken(f"calls {mother} the mother of {daughter} and still shows it")

    def _broken(self, what: str) -> PluginError:
        return PluginError(f"The tracker of the backend {self._backend!r} {what}.")

    def _too_large(self, tile: Tile) -> DeviceError:
        size = " x ".join(str(n) for n in tile.image.shape[1:])
        return DeviceError(
            f"Out of memory while tracking a tile of {size} voxels.",
            hint="Go on with --resume and another --device, or start anew with --overwrite and a "
            "smaller --tile-size.",
        )


def lane(item: Item, place: int, done: set[int], work: WorkDir) -> list[TileRef]:
    """The tiles of a place in the grid that are to be done, in their order.

    They begin after the latest state of the tracker that is of use, so that some that are done may
    be among them; empty where all are.

    Args:
        item: a movie that is tracked.
        place: number of the tile in a frame.
        done: the numbers of the tiles of the movie that are done.
        work: where the state is.
    """
    tiles = item.at(place)
    missing = next((step for step, tile in enumerate(tiles) if tile not in done), None)
    if missing is None:
        return []
    stored = _load(state_path(work, item.index, place))
    start = stored[0] if stored is not None and stored[0] <= missing else 0
    return [(item.index, tile) for tile in tiles[start:]]


def followed_already(item: Item, tiles: Sequence[TileRef], work: WorkDir) -> bool:
    """Whether all of some consecutive tiles of a lane, and the state after them, are on disk: a
    process has done them that could not say so any more.

    Args:
        item: a movie that is tracked.
        tiles: as ``lane`` has them; up to where a state is kept, or to the end.
        work: where records and states are.
    """
    frame, place = item.locate(tiles[-1][1])
    after = item.steps.index(frame) + 1
    stored = _load(state_path(work, item.index, place))
    if (stored[0] if stored is not None else len(item.steps)) != after:
        return False
    return all(is_whole(work.record(*ref)) for ref in tiles)


def state_path(work: WorkDir, item: int, place: int) -> Path:
    """The file of the state of a tracker."""
    return work.record(item, place).with_suffix(".state")


def _save(path: Path, step: int, state: Mapping[str, NDArray[Any]]) -> None:
    """Write the state of a tracker; a kill leaves the one before, or this one."""
    head = json.dumps({"step": step, "names": list(state)}).encode()
    with quickly(path) as file:
        np.savez(file, np.frombuffer(head, np.uint8), *state.values())


def _load(path: Path) -> tuple[int, dict[str, NDArray[Any]]] | None:
    """After how many frames a state was kept, and what it is; None where there is no whole one."""
    try:
        with np.load(path) as file:
            head = json.loads(file["arr_0"].tobytes())
            state = {name: file[f"arr_{i}"] for i, name in enumerate(head["names"], 1)}
            return int(head["step"]), state
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # there is none, or it was cut short by a power cut: the lane is done again

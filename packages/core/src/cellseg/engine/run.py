"""Runs a prediction: which tiles are left, in which process, and what is written when."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from cellseg import files
from cellseg.engine.cluster import Machines, cluster
from cellseg.engine.failures import LISTED, named, of_tiles
from cellseg.engine.follow import lane
from cellseg.engine.items import Item, Recipe, TileRef, batches
from cellseg.engine.state import WorkDir
from cellseg.engine.worker import Failure, Loaded, Outcome, Worker
from cellseg.errors import DataError, InterruptedRunError, PartialError
from cellseg.events import Emit, Failed, Note, Progress
from cellseg.locations import is_remote
from cellseg.outputs.result import Result

_TOO_BIG = (
    "the memory does not suffice to put its tiles together; they are kept: resume with fewer "
    "--workers, or on a machine with more memory"
)
_FAILED = "failed.json"
_TOLD = 3
"""Reasons that are told of one image while the work goes on."""


class Runner(Protocol):
    """Where tiles are done: in this process, or in others."""

    def tiles(self, units: Iterator[list[TileRef]], /) -> Iterator[Outcome]:
        """Do batches of tiles; the outcomes come as they are ready."""

    def lanes(
        self, lanes: Sequence[Sequence[TileRef]], stopped: Callable[[], bool], /
    ) -> Iterator[Outcome]:
        """Do tiles of movies that are tracked, each lane up to the first that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How the tiles are spread over processes."""

    batch_size: int = 1
    machines: Machines = field(default_factory=Machines)
    shard: tuple[int, int] = (1, 1)
    """Which share of all tiles is ours: the first of one, the second of three."""
    retries: int = 1
    retry_failed: bool = True
    """Whether tiles that failed in an earlier run are tried again."""


class Prediction:
    """A prediction under way.

    Args:
        recipe: how to segment.
        items: all images, the same in every process.
        share: how the tiles are spread.
        emit: gets a ``Progress`` for each tile, a ``Failed`` for each that could not be done.
        interrupted: asked after each tile; True means stop.
        written: gets each image that is written in this process, and its result.
        unreadable: images that are none of the items, and why, by name or path.
    """

    def __init__(
        self,
        recipe: Recipe,
        items: Sequence[Item],
        share: Share,
        emit: Emit,
        interrupted: Callable[[], bool],
        written: Callable[[Item, Result], None],
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        self._recipe = recipe
        self._items = items
        self._share = share
        self._emit = emit
        self._interrupted = interrupted
        self._work = WorkDir(recipe.work)
        self._worker = Worker(recipe, items, self._pause, written)
        self._objects: dict[int, int] = {}
        self._unreadable = dict(unreadable or {})
        self._failures: dict[TileRef, Failure] = {}
        self._unstitched: dict[str, str] = {}
        self._told: dict[int, set[str]] = {}
        self._left: dict[int, set[int]] = {}
        self._step = 0
        self._total = 0

    def load(self) -> None:
        """Load the predictor now, where this process is to use it."""
        if self._share.machines.here:
            self._worker.load()

    @property
    def tracks(self) -> dict[int, tuple[int, int]]:
        """The number of tracks, and of divisions, of each movie that was tracked and is written."""
        finished = self._work.finished()
        return {
            i: (int(v["tracks"]), int(v["divisions"])) for i, v in finished.items() if "tracks" in v
        }

    def run(self) -> dict[int, int]:
        """Do what is left; gives the number of objects of each image that is written.

        Raises:
            PartialError: some images could not be read, or tiles failed; these images are not
                written, all others are.
            DataError: nothing could be done at all, because no image could be read.
            InterruptedRunError: stopped; all finished tiles are kept.
        """
        for name, reason in self._unreadable.items():
            self._emit(Failed(name, reason))
        todo, lanes = self._plan_work()
        with self._runner(bool(todo or lanes)) as runner:
            for attempt in range(self._share.retries + 1):
                if attempt:
                    self._emit(Note(f"Trying {len(todo) + len(lanes)} failed tile(s) once more."))
                last = attempt == self._share.retries
                todo = self._pass(todo, runner, last)
                lanes = self._follow(lanes, runner, last)
                if not todo and not lanes:
                    break
        self._finish_all()
        if self._failures or self._unreadable or self._unstitched:
            raise self._failed()
        (self._work.path / _FAILED).unlink(missing_ok=True)
        return dict(self._objects)

    def _plan_work(self) -> tuple[list[TileRef], list[TileRef]]:
        """The tiles that are left, and of the movies that are tracked one of each lane."""
        finished = self._work.finished()
        self._objects = {i: int(v["objects"]) for i, v in finished.items()}
        part, parts = self._share.shard
        todo: list[TileRef] = []
        lanes: list[TileRef] = []
        number = 0
        for item in self._items:
            done = self._work.done_tiles(item.index) if item.index not in finished else set()
            failed: set[int] = set()
            if not self._share.retry_failed:
                failed = self._work.failed_tiles(item.index) - done
            # What goes to one process: a tile or, where frames are followed, all at one place.
            whole = [item.at(place) for place in item.places] if item.tracked else None
            units = [[tile] for tile in item.chosen] if whole is None else whole
            ours = units[(part - 1 - number) % parts :: parts]
            mine = {tile for unit in ours for tile in unit}
            if whole is not None:  # what comes after a tile that is missing is done again
                done = {tile for unit in ours for tile in takewhile(done.__contains__, unit)}
            number += len(units)
            self._total += len(mine)
            if item.index in finished:
                self._step += len(mine)
                continue
            self._step += len(mine & done)
            self._left[item.index] = mine - done - failed
            if whole is None:
                todo += [(item.index, tile) for tile in sorted(mine - done - failed)]
            else:
                lanes += [
                    (item.index, unit[0])
                    for unit in ours
                    if not failed.intersection(unit) and not done.issuperset(unit)
                ]
        return todo, lanes

    def _runner(self, needed: bool) -> AbstractContextManager[Runner]:
        if needed and not self._share.machines.here:
            return cluster(self._recipe, self._items, self._share.machines, self._interrupted)
        return nullcontext(_Here(self._worker, self._interrupted))

    def _pass(self, todo: list[TileRef], runner: Runner, last: bool) -> list[TileRef]:
        """Do every tile once; gives those that failed."""
        again: list[TileRef] = []
        units = batches(self._items, todo, self._share.batch_size)
        for outcome in runner.tiles(self._until_interrupted(units)):
            again += self._take(outcome, last)
        if self._interrupted():
            raise _stopped()
        return sorted(again)

    def _follow(self, firsts: list[TileRef], runner: Runner, last: bool) -> list[TileRef]:
        """Do what is left of lanes, each given by one of its tiles; gives those that failed."""
        again: list[TileRef] = []
        lanes = []
        if not firsts:
            return again
        for index, tile in firsts:
            item = self._items[index]
            place = item.locate(tile)[1]
            done = set(item.at(place)) - self._left[index]
            lanes.append(lane(item, place, done, self._work))
        for outcome in runner.lanes(lanes, self._interrupted):
            again += self._take(outcome, last)
        if self._interrupted():
            raise _stopped()
        return again

    def _take(self, outcome: Outcome, last: bool) -> list[TileRef]:
        """Note what became of some tiles; gives those that failed."""
        for note in outcome.notes:
            self._emit(Note(note))
        self._objects |= outcome.objects
        for ref in outcome.done:
            self._done(ref)
        for failure in outcome.failures:
            if last or failure.final:
                self._fail(failure)
        for index in {ref[0] for ref in outcome.done}:
            if not self._left[index] and index not in self._objects:
                self._finish(self._items[index])
        return [failure.tile for failure in outcome.failures if not failure.final]

    def _until_interrupted(self, units: Iterator[list[TileRef]]) -> Iterator[list[TileRef]]:
        for unit in units:
            if self._interrupted():
                return
            yield unit

    def _done(self, ref: TileRef) -> None:
        index, tile = ref
        if tile not in self._left[index]:  # of a tracker that goes on from an earlier frame
            return
        self._left[index].discard(tile)
        if self._failures.pop(ref, None) or self._share.retry_failed:
            self._work.forgive(index, tile)
        self._step += 1
        self._emit(Progress(self._step, self._total))

    def _fail(self, failure: Failure) -> None:
        index, tile = failure.tile
        self._failures[failure.tile] = failure
        self._work.fail(index, tile, failure.reason)
        told = self._told.setdefault(index, set())
        if failure.reason not in told and len(told) < _TOLD:  # not a hundred tiles one by one
            told.add(failure.reason)
            item = self._items[index]
            self._emit(Failed(item.name if failure.data else item.described(tile), failure.reason))

    def _finish(self, item: Item) -> None:
        """Write an image whose tiles are all done, unless another process is at it."""
        if not self._work.has_all(item.index, item.chosen):
            return
        with self._work.lock(f"items/{item.index:06d}/stitch") as alone:
            # Another process may have written it, and removed the tiles, in between.
            if alone and self._work.has_all(item.index, item.chosen):
                try:
                    self._objects[item.index] = self._worker.finalise(item)
                except MemoryError:  # its tiles are kept; the other images go on
                    if item.name not in self._unstitched:
                        self._emit(Failed(item.name, _TOO_BIG))
                    self._unstitched[item.name] = _TOO_BIG
                else:
                    self._unstitched.pop(item.name, None)

    def _finish_all(self) -> None:
        """Write what an earlier run, or the slowest of several, left to be stitched."""
        for item in self._items:
            if item.index not in self._objects and not item.single:
                self._finish(item)
        # What others have just written may not be listed yet on a network drive.
        found = {i: int(v["objects"]) for i, v in self._work.finished().items()}
        self._objects = dict(sorted((self._objects | found).items()))

    def _pause(self) -> None:
        if self._interrupted():
            raise _stopped()

    def _failed(self) -> DataError | PartialError:
        reasons = self._reasons()
        done, data = len(self._objects), all(f.data for f in self._failures.values())
        data &= not self._unstitched
        if data and not done and not self._step:
            return DataError(named(reasons))
        file = self._work.path / _FAILED
        files.write_atomic(file, json.dumps(reasons, indent=2) + "\n")
        mended = "Mend them, or take them away; then do" if data else "Do"
        more = f" All are listed in {file}" if len(reasons) > LISTED else ""
        return PartialError(
            f"{len(reasons)} image(s) failed and are not written, {done} are: {named(reasons)}",
            reasons,
            hint=f"{mended} just what is missing with --resume.{more}",
        )

    def _reasons(self) -> dict[str, str]:
        """Why each image failed, by its name or path."""
        found: dict[int, list[TileRef]] = {}
        for ref in sorted(self._failures):
            found.setdefault(ref[0], []).append(ref)
        reasons = self._unreadable | self._unstitched
        for index, refs in found.items():
            item, count = self._items[index], len(self._items[index].chosen)
            text = of_tiles([self._failures[ref].reason for ref in refs], count)
            if len(refs) == 1 < count:
                text = f"{item.described(refs[0][1])}: {self._failures[refs[0]].reason}"
            reasons[item.name] = text
        return reasons


class _Here:
    """A ``Runner`` in this process: the next tiles are read while these are segmented."""

    def __init__(self, worker: Worker, interrupted: Callable[[], bool]) -> None:
        self._worker = worker
        self._interrupted = interrupted

    def tiles(self, units: Iterator[list[TileRef]], /) -> Iterator[Outcome]:
        """Do batches of tiles; the outcomes come in their order."""
        with ThreadPoolExecutor(1, "cellseg-read") as thread:
            waiting: Future[Loaded] | None = None
            for unit in units:
                coming = thread.submit(self._worker.read, unit)
                if waiting is not None:
                    yield self._worker.segment(waiting.result())
                waiting = coming
            if waiting is not None and not self._interrupted():
                yield self._worker.segment(waiting.result())

    def lanes(
        self, lanes: Sequence[Sequence[TileRef]], stopped: Callable[[], bool], /
    ) -> Iterator[Outcome]:
        """Do lanes one after the other, each up to the first tile that fails."""
        with ThreadPoolExecutor(1, "cellseg-read") as thread:
            for lane in lanes:
                coming: Future[Loaded] | None = None
                for number, ref in enumerate(lane):
                    if stopped():
                        return
                    loaded = (coming or thread.submit(self._worker.read, [ref])).result()
                    coming = None
                    if number + 1 < len(lane):
                        coming = thread.submit(self._worker.read, [lane[number + 1]])
                    outcome = self._worker.segment(loaded)
                    yield outcome
                    if outcome.failures:
                        break


def _stopped() -> InterruptedRunError:
    return InterruptedRunError("Stopped; all finished tiles are kept.", hint="Go on with --resume.")


def remove_leftovers(items: Sequence[Item]) -> None:
    """Remove what a killed process left half-written; nobody else may be writing."""
    wanted: dict[Path, set[str]] = {}
    for item in items:
        for file in item.files:
            if is_remote(file):  # where writing begins with removing what is left
                continue
            wanted.setdefault(file.parent, set()).add(file.name)
    for folder, names in wanted.items():
        files.remove_leftovers(folder, names)

"""Runs a prediction: which tiles are left, in which process, and what is written when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cellseg import files
from cellseg.engine.items import Item, Recipe, TileRef, batches
from cellseg.engine.pool import Pool
from cellseg.engine.state import WorkDir
from cellseg.engine.worker import Failure, Loaded, Outcome, Worker
from cellseg.errors import DataError, InterruptedRunError, PartialError
from cellseg.events import Emit, Failed, Note, Progress

_LISTED = 10
Runner: TypeAlias = Callable[[Iterator[list[TileRef]]], Iterator[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How the tiles are spread over processes."""

    batch_size: int = 1
    workers: int = 1
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
    """

    def __init__(
        self,
        recipe: Recipe,
        items: Sequence[Item],
        share: Share,
        emit: Emit,
        interrupted: Callable[[], bool],
    ) -> None:
        self._recipe = recipe
        self._items = items
        self._share = share
        self._emit = emit
        self._interrupted = interrupted
        self._work = WorkDir(recipe.work)
        self._worker = Worker(recipe, items, self._pause)
        self._objects: dict[int, int] = {}
        self._failures: dict[TileRef, Failure] = {}
        self._left: dict[int, set[int]] = {}
        self._step = 0
        self._total = 0

    def load(self) -> None:
        """Load the predictor now, where this process is to use it."""
        if self._share.workers == 1:
            self._worker.load()

    def run(self) -> dict[int, int]:
        """Do what is left; gives the number of objects of each image that is written.

        Raises:
            PartialError: some tiles failed; their images are not written, all others are.
            DataError: nothing could be done at all, because no image could be read.
            InterruptedRunError: stopped; all finished tiles are kept.
        """
        todo = self._plan_work()
        with self._runner() as runner:
            for attempt in range(self._share.retries + 1):
                if attempt and todo:
                    self._emit(Note(f"Trying {len(todo)} failed tile(s) once more."))
                last = attempt == self._share.retries
                todo = self._pass(todo, runner, last)
                if not todo:
                    break
        self._finish_all()
        if self._failures:
            raise self._failed()
        return dict(self._objects)

    def _plan_work(self) -> list[TileRef]:
        finished = self._work.finished()
        self._objects = {i: int(v["objects"]) for i, v in finished.items()}
        part, parts = self._share.shard
        todo: list[TileRef] = []
        number = 0
        for item in self._items:
            done = self._work.done_tiles(item.index) if item.index not in finished else set()
            failed: set[int] = set()
            if not self._share.retry_failed:
                failed = self._work.failed_tiles(item.index) - done
            chosen = item.chosen
            mine = set(chosen[(part - 1 - number) % parts :: parts])
            number += len(chosen)
            self._total += len(mine)
            if item.index in finished:
                self._step += len(mine)
                continue
            self._step += len(mine & done)
            left = mine - done - failed
            self._left[item.index] = set(left)
            todo += [(item.index, tile) for tile in sorted(left)]
        return todo

    def _runner(self) -> AbstractContextManager[Runner]:
        if self._share.workers > 1:
            return Pool(self._recipe, self._items, self._share.workers)
        return nullcontext(self._here)

    def _here(self, units: Iterator[list[TileRef]]) -> Iterator[Outcome]:
        """In this process; the next tiles are read while these are segmented."""
        with ThreadPoolExecutor(1, "cellseg-read") as thread:
            waiting: Future[Loaded] | None = None
            for unit in units:
                coming = thread.submit(self._worker.read, unit)
                if waiting is not None:
                    yield self._worker.segment(waiting.result())
                waiting = coming
            if waiting is not None and not self._interrupted():
                yield self._worker.segment(waiting.result())

    def _pass(self, todo: list[TileRef], runner: Runner, last: bool) -> list[TileRef]:
        """Do every tile once; gives those that failed."""
        again: list[TileRef] = []
        units = batches(self._items, todo, self._share.batch_size)
        for outcome in runner(self._until_interrupted(units)):
            for note in outcome.notes:
                self._emit(Note(note))
            self._objects |= outcome.objects
            for ref in outcome.done:
                self._done(ref)
            for failure in outcome.failures:
                again.append(failure.tile)
                if last:
                    self._fail(failure)
            for index in {ref[0] for ref in outcome.done}:
                if not self._left[index] and index not in self._objects:
                    self._finish(self._items[index])
        if self._interrupted():
            raise _stopped()
        return again

    def _until_interrupted(self, units: Iterator[list[TileRef]]) -> Iterator[list[TileRef]]:
        for unit in units:
            if self._interrupted():
                return
            yield unit

    def _done(self, ref: TileRef) -> None:
        index, tile = ref
        self._left[index].discard(tile)
        if self._failures.pop(ref, None) or self._share.retry_failed:
            self._work.forgive(index, tile)
        self._step += 1
        self._emit(Progress(self._step, self._total))

    def _fail(self, failure: Failure) -> None:
        index, tile = failure.tile
        self._failures[failure.tile] = failure
        self._work.fail(index, tile, failure.reason)
        self._emit(Failed(self._items[index].described(tile), failure.reason))

    def _finish(self, item: Item) -> None:
        """Write an image whose tiles are all done, unless another process is at it."""
        count = len(item.chosen)
        if self._work.recorded(item.index) < count:
            return
        with self._work.lock(f"items/{item.index:06d}/stitch") as alone:
            # Another process may have written it, and removed the tiles, in between.
            if alone and self._work.recorded(item.index) == count:
                self._objects[item.index] = self._worker.finalise(item)

    def _finish_all(self) -> None:
        """Write what an earlier run, or the slowest of several, left to be stitched."""
        for item in self._items:
            if item.index not in self._objects and item.tiles > 1:
                self._finish(item)
        self._objects = {i: int(v["objects"]) for i, v in self._work.finished().items()}

    def _pause(self) -> None:
        if self._interrupted():
            raise _stopped()

    def _failed(self) -> DataError | PartialError:
        named = [
            f"{self._items[index].described(tile)}: {failure.reason}"
            for (index, tile), failure in sorted(self._failures.items())
        ]
        listed = "; ".join(named[:_LISTED])
        if len(named) > _LISTED:
            listed += f"; and {len(named) - _LISTED} more"
        if not self._objects and all(f.data for f in self._failures.values()):
            if len(self._failures) == self._total:
                return DataError(listed)
        images = len({index for index, _ in self._failures})
        return PartialError(
            f"{len(named)} tile(s) of {images} image(s) failed, which are not written: {listed}",
            hint="Try the failed tiles again with --resume.",
        )


def _stopped() -> InterruptedRunError:
    return InterruptedRunError("Stopped; all finished tiles are kept.", hint="Go on with --resume.")


def remove_leftovers(items: Sequence[Item]) -> None:
    """Remove what a killed process left half-written; nobody else may be writing."""
    wanted: dict[Path, set[str]] = {}
    for item in items:
        for output in item.outputs:
            wanted.setdefault(output.path.parent, set()).add(output.path.name)
    for folder, names in wanted.items():
        files.remove_leftovers(folder, names)

"""Several processes that segment tiles, each with the predictor loaded once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from cellseg.engine.items import Item, Recipe, TileRef, make_items
from cellseg.engine.worker import Outcome, Worker
from cellseg.errors import DeviceError, PluginError

_worker: Worker | None = None


class Pool(AbstractContextManager[Callable[[Iterator[list[TileRef]]], Iterator[Outcome]]]):
    """A pool of processes; as a context it gives a function from batches to outcomes.

    Outcomes come in the order of the batches. The processes are started afresh ("spawn"), so
    each opens the images and loads the predictor by itself.

    Raises:
        PluginError: the backend or the reader cannot be sent to another process.
    """

    def __init__(self, recipe: Recipe, items: Sequence[Item], workers: int) -> None:
        # Not their frames: files that are open cannot be sent.
        chosen = [(item.name, item.planes, item.times, item.outputs) for item in items]
        try:
            sent = pickle.dumps((recipe, chosen))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PluginError(
                f"The backend {recipe.predictor.name!r} or the reader {recipe.reader.name!r} "
                f"cannot be sent to another process: {error}",
                hint="Their functions must stand at the top of a module; or use --workers 1.",
            ) from error
        self._ahead = 2 * workers
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start, (sent,)
        )

    def __enter__(self) -> Callable[[Iterator[list[TileRef]]], Iterator[Outcome]]:
        """The function that runs batches."""
        return self._run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the batches that are running, forget the others."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, units: Iterator[list[TileRef]]) -> Iterator[Outcome]:
        waiting: deque[Future[Outcome]] = deque()
        try:
            for unit in units:
                waiting.append(self._executor.submit(_do, unit))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DeviceError(
                "A worker process died, most likely because the memory is used up.",
                hint="Go on with --resume and fewer --workers, or a smaller --tile-size.",
            ) from error


def _start(sent: bytes) -> None:
    """Runs first in each process."""
    global _worker
    # Ctrl-C goes to all processes of a terminal; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    recipe, chosen = pickle.loads(sent)
    samples = recipe.reader.open(recipe.images, recipe.reader_options, False)
    made = make_items(samples, recipe.tiling, recipe.volumetric)
    found = {item.name: item for item in made}
    items = [
        replace(found[name], index=index, planes=planes, times=times, outputs=outputs)
        for index, (name, planes, times, outputs) in enumerate(chosen)
    ]
    _worker = Worker(recipe, items)


def end_with_parent() -> None:
    """Wait in a thread for the end of the parent: a killed one cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(unit: list[TileRef]) -> Outcome:
    assert _worker is not None
    return _worker.run(unit)

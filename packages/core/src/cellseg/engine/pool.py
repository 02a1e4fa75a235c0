"""Several processes that segment tiles, each with the predictor loaded once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType

from cellseg.engine.follow import EVERY
from cellseg.engine.items import Item, Recipe, TileRef, make_items
from cellseg.engine.worker import Outcome, Worker
from cellseg.errors import DeviceError, PluginError

_worker: Worker | None = None


class Pool(AbstractContextManager["Pool"]):
    """A pool of processes; a ``run.Runner``. Use it as a context.

    The processes are started afresh ("spawn"), so each opens the images and loads the predictor by
    itself.

    Raises:
        PluginError: the backend or the reader cannot be sent to another process.
    """

    def __init__(self, recipe: Recipe, items: Sequence[Item], workers: int) -> None:
        # Not their frames: files that are open cannot be sent.
        chosen = [
            (item.name, item.planes, item.times, item.tracked, item.outputs) for item in items
        ]
        try:
            sent = pickle.dumps((recipe, chosen))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PluginError(
                f"The backend {recipe.predictor.name!r} or the reader {recipe.reader.name!r} "
                f"cannot be sent to another process: {error}",
                hint="Their functions must stand at the top of a module; or use --workers 1.",
            ) from error
        self._workers = workers
        self._ahead = 2 * workers
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start, (sent,)
        )

    def __enter__(self) -> Pool:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the batches that are running, forget the others."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def tiles(self, units: Iterator[list[TileRef]]) -> Iterator[Outcome]:
        """Do batches; their outcomes come in the order of the batches."""
        waiting: deque[Future[Outcome]] = deque()
        with _mended():
            for unit in units:
                waiting.append(self._executor.submit(_do, unit))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def lanes(
        self, lanes: Sequence[Sequence[TileRef]], stopped: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """Do lanes side by side, each a few tiles at a time; outcomes come as they are ready.

        A lane ends with the first tile that fails.
        """
        left = deque(deque(chunks(lane)) for lane in lanes)
        running: dict[Future[Outcome], deque[list[TileRef]]] = {}
        with _mended():
            while not stopped():
                while left and len(running) < self._workers:
                    chosen = left.popleft()
                    running[self._executor.submit(_do, chosen.popleft())] = chosen
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    chosen, outcome = running.pop(future), future.result()
                    if chosen and not outcome.failures:
                        left.appendleft(chosen)
                    yield outcome
            for future in running:  # what is under way is done, and kept
                yield future.result()


@contextmanager
def _mended() -> Iterator[None]:
    """Say in words that a process has died."""
    try:
        yield
    except BrokenProcessPool as error:
        raise DeviceError(
            "A worker process died, most likely because the memory is used up.",
            hint="Go on with --resume and fewer --workers, or a smaller --tile-size.",
        ) from error


def chunks(lane: Sequence[TileRef]) -> Iterator[list[TileRef]]:
    """The tiles of a lane, ``EVERY`` frames at a time: after each of these, the state of the
    tracker is on disk, so that any process can go on.

    A lane begins at a frame after which there is a state, or at the first one.
    """
    for start in range(0, len(lane), EVERY):
        yield list(lane[start : start + EVERY])


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
        replace(
            found[name],
            index=index,
            planes=planes,
            times=times,
            tracked=tracked,
            outputs=outputs,
        )
        for index, (name, planes, times, tracked, outputs) in enumerate(chosen)
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

"""Keeps the workers of a cluster busy, and does again what is lost with one of them."""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from cellseg.engine.cluster_units import Source
from cellseg.engine.cluster_worker import KILLS, Deadly, Unit, do
from cellseg.engine.items import Item, TileRef
from cellseg.engine.records import is_whole
from cellseg.engine.state import WorkDir
from cellseg.engine.worker import Failure, Outcome
from cellseg.errors import CellsegError, DeviceError, PluginError

_AHEAD = 2
"""Tasks of a worker: what it is at, and what comes next."""
_LASTS = 0.1
"""Seconds that a task is to last at least: telling a worker of it takes some milliseconds."""
_MOST = 32
"""Units of a task at most."""
_LOOK = 1.0
"""Seconds between two looks at the workers."""
_RESTART = 60.0
"""Seconds that processes of this computer may take to come back."""
_ANSWER = 10.0
"""Seconds that a scheduler may take to answer."""
_HOPELESS = (3 * KILLS, 8 * KILLS)
"""Deaths after which going on is pointless: if nothing was ever done, and in a row."""


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers, and what they share with this process."""

    client: Any
    """Of the cluster."""
    address: str
    """Of its scheduler, for messages."""
    local: bool
    """Whether they are processes of this computer, which are restarted when they die."""
    prediction: str
    """What they know the prediction by."""
    items: Sequence[Item]
    """All images."""
    work: WorkDir
    folder: Path
    """Where they leave traces of what they are at."""
    numbers: itertools.count[int]
    """Of units: no two are the same."""


class Flow(threading.Thread):
    """Hands out units until all are done, or ``close`` is called.

    It has a thread of its own, so that workers have work also while images are stitched. What
    becomes of the units comes through ``got``; in the end None, or an error.

    Args:
        crew: the workers.
        source: the tiles.
        stopped: whether to begin no more.
    """

    def __init__(self, crew: Crew, source: Source, stopped: Callable[[], bool]) -> None:
        super().__init__(name="cellseg-cluster", daemon=True)
        self.got: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._crew = crew
        self._source = source
        self._stopped = stopped
        self._closed = False
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, tuple[Any, list[Unit]]] = {}
        self._again: deque[Unit] = deque()
        self._watch = _Watch(crew)
        self._hope = _Hope()
        self._pace = _Pace()

    def close(self) -> None:
        """Forget what nobody has begun; what is under way may go on, but is not waited for."""
        self._closed = True
        self._ready.put(None)
        self.join(_ANSWER)

    def run(self) -> None:
        """Runs in its own thread."""
        try:
            self._work()
            self.got.put(None)
        except CellsegError as error:
            self.got.put(error)
        except BaseException as error:
            lost = self._crew.client.status != "running"
            self.got.put(self._watch.lost() if lost else error)
        finally:
            with suppress(Exception):  # the scheduler may be what is gone
                self._forget(list(self._running))

    def _work(self) -> None:
        recalled = False
        while not self._closed:
            stopped = self._stopped()
            for note in self._watch.look():
                self.got.put(Outcome(notes=[note]))
            if not stopped:
                self._fill()
            elif not recalled or not self._watch.workers:  # who was at them may be gone
                recalled = True
                self._recall()
            if not self._running and (stopped or not self._again):
                return
            self._collect()

    def _fill(self) -> None:
        """Give the workers so much that none waits for work."""
        room = max(self._watch.workers, 1) * (1 if self._source.lone else _AHEAD)
        while len(self._running) < room:
            size = 1 if self._source.lone else self._pace.units()
            units = list(islice(self._units(), size))
            if not units:
                return
            self._submit(units)

    def _units(self) -> Iterator[Unit]:
        """What comes next: what was lost goes first."""
        while True:
            if self._again:
                yield self._again.popleft()
            elif (tiles := self._source.next()) is not None:
                yield Unit(f"{next(self._crew.numbers):08d}", tiles)
            else:
                return

    def _submit(self, units: list[Unit]) -> None:
        key = f"cellseg-{self._crew.prediction}-{next(self._crew.numbers)}"
        future = self._crew.client.submit(do, self._crew.prediction, units, key=key, pure=False)
        self._running[key] = (future, units)
        future.add_done_callback(self._ready.put)

    def _collect(self) -> None:
        """Wait for units that are done, and see what became of them."""
        with suppress(queue.Empty):
            timeout = _LOOK
            while not self._closed:
                future = self._ready.get(timeout=timeout)
                if future is not None and future.key in self._running:
                    self._came(future)
                timeout = 0

    def _came(self, future: Any) -> None:
        self._watch.heard()
        found = None
        if future.status == "finished":
            try:
                found = future.result(timeout=_ANSWER)
            except Exception as error:
                if future.status not in ("error", "cancelled"):
                    if not isinstance(error, OSError):  # which a timeout is, too
                        raise
                    future.add_done_callback(self._ready.put)  # it comes later, or is done again
                    return
        _, units = self._running.pop(future.key)
        if found is not None:
            outcomes, seconds = found
            self._pace.count(len(units), seconds)
            for unit, outcome in zip(units, outcomes, strict=True):
                if isinstance(outcome, Deadly):
                    self._deadly(unit, outcome.deaths)
                else:
                    self._done(unit, outcome)
        elif future.status == "error":
            self._failed(units, future.exception(timeout=_ANSWER))
        elif self._crew.client.status == "running":  # its result was lost with its worker
            self._again.extendleft(reversed(units))
        else:
            raise self._watch.lost()

    def _failed(self, units: Sequence[Unit], error: BaseException) -> None:
        if type(error).__name__ == "KilledWorker":
            for unit in reversed(units):
                deaths = self._deaths(unit)
                if deaths < KILLS:  # it was only waiting when its worker died
                    self._again.appendleft(unit)
                else:
                    self._deadly(unit, deaths)
        elif isinstance(lacking := _of_scheduler(error), ImportError):
            raise PluginError(
                f"The scheduler at {self._crew.address}, or a worker of it, cannot load cellseg: "
                f"{lacking}",
                hint="Install the same version of cellseg on all machines.",
            ) from error
        else:
            raise error

    def _done(self, unit: Unit, outcome: Outcome) -> None:
        if outcome.done:
            self._hope.rise()
        self._source.came(unit.tiles, outcome)
        self.got.put(outcome)

    def _deaths(self, unit: Unit) -> int:
        """How many processes died in the middle of a unit."""
        trace = self._crew.folder / unit.name
        return trace.stat().st_size if trace.exists() else 0

    def _deadly(self, unit: Unit, deaths: int) -> None:
        """Try in another way what processes died of, or give it up."""
        (self._crew.folder / unit.name).unlink(missing_ok=True)
        self._hope.sink(deaths)
        item = self._crew.items[unit.tiles[0][0]]
        if item.tracked:
            self._give_up(unit, deaths)
        elif len(unit.tiles) > 1:
            self._again.extendleft(self._alone(ref) for ref in reversed(unit.tiles))
        elif unit.died:
            self._give_up(unit, unit.died + deaths)
        else:
            name = item.described(unit.tiles[0][1])
            note = f"{name}: {deaths} worker processes died of it. It is tried once more in halves."
            self.got.put(Outcome(notes=[note]))
            self._again.appendleft(replace(self._alone(unit.tiles[0]), died=deaths))

    def _alone(self, ref: TileRef) -> Unit:
        return Unit(f"{next(self._crew.numbers):08d}", [ref])

    def _give_up(self, unit: Unit, deaths: int) -> None:
        work, tiles = self._crew.work, unit.tiles
        done: list[TileRef] = []
        if self._crew.items[tiles[0][0]].tracked:  # what was done before it has its place
            done = list(takewhile(lambda ref: is_whole(work.record(*ref)), tiles[:-1]))
        reason = (
            f"a worker process died of it {deaths} times, most likely because the memory is used up"
        )
        outcome = Outcome(done, [Failure(tiles[len(done)], reason, False, final=True)])
        self._source.came(tiles, outcome)
        self.got.put(outcome)

    def _recall(self) -> None:
        """Take back what nobody has begun; without workers, that is all."""
        workers = self._watch.workers  # so many tasks are under way, or as good as
        later = islice(self._running.items(), workers, None)
        self._forget(
            [key for key, (_, units) in later if not (workers and any(map(self._deaths, units)))]
        )

    def _forget(self, keys: Sequence[str]) -> None:
        futures = [self._running.pop(key)[0] for key in keys]
        if futures:
            self._crew.client.cancel(futures)


def _of_scheduler(error: BaseException) -> BaseException:
    """What kept the scheduler from reading a task, if that is the error; else the error itself."""
    unread = error.__cause__ if "deserialization of the task graph" in str(error) else None
    return unread or error


class _Pace:
    """How many units make a task."""

    def __init__(self) -> None:
        self._each = _LASTS

    def count(self, units: int, seconds: float) -> None:
        """A task is done."""
        each = seconds / units
        # Slower ones count at once: a long task is worse than many short ones.
        self._each = each if each > self._each else (self._each + each) / 2

    def units(self) -> int:
        """For the next task."""
        return min(_MOST, max(1, round(_LASTS / max(self._each, 1e-6))))


class _Hope:
    """Whether processes die of all that they are given."""

    def __init__(self) -> None:
        self._deaths = 0
        self._any_done = False

    def rise(self) -> None:
        """A unit is done."""
        self._deaths, self._any_done = 0, True

    def sink(self, deaths: int) -> None:
        """Processes died of a unit.

        Raises:
            DeviceError: of too many.
        """
        self._deaths += deaths
        if self._deaths >= _HOPELESS[self._any_done]:
            raise DeviceError(
                f"{self._deaths} worker processes died one after the other, most likely because "
                "the memory is used up.",
                hint="Go on with --resume and fewer --workers, or start anew with --overwrite and "
                "a smaller --tile-size.",
            )


class _Watch:
    """Looks after the workers now and then."""

    def __init__(self, crew: Crew) -> None:
        self.workers = 0
        """How many there were at the last look."""
        self._crew = crew
        self._looked = -math.inf
        self._none_since: float | None = None
        self._told = False

    def look(self) -> list[str]:
        """Count the workers, if it is time to; gives what the user should know.

        Raises:
            DeviceError: there are none, and none will come.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return []
        self._looked = now
        if self._crew.client.status != "running":
            raise self.lost()
        try:
            self.workers = len(self._crew.client.nthreads())
        except (OSError, TimeoutError) as error:
            raise self.lost() from error
        if self.workers:
            self._none_since, self._told = None, False
            return []
        self._none_since = self._none_since or now
        if self._crew.local and now - self._none_since > _RESTART:
            raise DeviceError(
                "All worker processes ended, and none comes back.",
                hint="Finished tiles are kept: go on with --resume.",
            )
        if self._told or self._crew.local:
            return []
        self._told = True
        return [f"{self._crew.address} has no workers now; waiting until some join."]

    def heard(self) -> None:
        """A task came back, so there are workers, even if they die before each look."""
        self._none_since = None

    def lost(self) -> DeviceError:
        """The error for a scheduler that is gone."""
        return DeviceError(
            f"The scheduler at {self._crew.address} is gone.",
            hint="Finished tiles are kept: go on with --resume.",
        )

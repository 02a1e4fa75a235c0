"""What runs on a worker of a cluster: it joins a prediction once, and then does its units.

A process may serve several predictions, also at the same time; it does one unit after the other.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from cellseg.engine.follow import followed_already
from cellseg.engine.gpus import own_device
from cellseg.engine.items import Item, Recipe, TileRef, reopened
from cellseg.engine.state import WorkDir
from cellseg.engine.worker import Outcome, Worker
from cellseg.errors import ConfigError, DataError, DeviceError, PluginError
from cellseg.files import storage_errors
from cellseg.locations import is_remote

KILLS = 2
"""Processes that a unit may take with it before it is tried in another way."""
_PATIENCE = 5.0
"""Seconds to wait for a file that another computer has just written."""
_busy = threading.Lock()
_sent: dict[str, Sent] = {}
_joined: dict[str, Joined] = {}


@dataclass(frozen=True, slots=True)
class Unit:
    """Tiles that are done at once."""

    name: str
    """What no other one of the prediction is called."""
    tiles: list[TileRef]
    """Of one shape; or consecutive ones of a place, in a movie that is tracked."""
    died: int = 0
    """How many processes died of it, a single tile: it is to be segmented in halves."""


@dataclass(frozen=True, slots=True)
class Deadly:
    """A unit that is not tried again as it is."""

    deaths: int
    """How many processes died of it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What each worker needs to know of a prediction."""

    name: str
    """Of the prediction: no other one is called so."""
    versions: Mapping[str, str]
    folder: Path
    """Of the workers, in the work directory; with a file that holds the name."""
    environment: Mapping[str, str]
    recipe: bytes
    """The pickled recipe and items, without what reads their files."""


@cache
def versions() -> Mapping[str, str]:
    """What must be the same everywhere."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "cellseg-core": version("cellseg-core"),
    }


def keep(sent: Sent) -> None:
    """Remember a prediction that this process may be asked to help with."""
    _sent[sent.name] = sent


def forget(name: str) -> None:
    """A prediction has ended: free its predictor."""
    _sent.pop(name, None)
    if _joined.pop(name, None) is not None:
        import gc
        import sys

        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def dask_setup(worker: object) -> None:
    """Runs first in the worker processes of this computer, which end with their parent."""
    # Ctrl-C goes to all processes of a terminal; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def do(prediction: str, units: Sequence[Unit]) -> tuple[list[Outcome | Deadly], float]:
    """Do units of a prediction that this process was told of; gives also the seconds it took.

    Raises:
        CellsegError: going on is pointless.
    """
    seconds = 0.0
    found = []
    for unit in units:
        with _busy:
            joined = _joined.get(prediction)
            if joined is None:
                if prediction not in _sent:
                    raise DeviceError(
                        f"{_here()} knows nothing of this prediction: its scheduler was restarted.",
                        hint="Finished tiles are kept: go on with --resume.",
                    )
                joined = Joined(_sent[prediction])
                if prediction in _sent:  # else it has ended meanwhile
                    _joined[prediction] = joined
            began = time.monotonic()
            found.append(joined.do(unit))
            seconds += time.monotonic() - began
    return found, seconds


class Joined:
    """A prediction that this process helps with.

    Raises:
        ConfigError: this worker is of another version.
        DataError: it sees other files than the one who asks.
        PluginError: the backend or the reader is not installed here.
    """

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        _refuse_other_versions(sent)
        _refuse_other_files(sent.folder / sent.name, sent.name)
        with self._environment():
            self._recipe, self._items = _opened(sent)
        self._work = WorkDir(self._recipe.work)
        self._worker = Worker(self._recipe, self._items)

    def do(self, unit: Unit) -> Outcome | Deadly:
        """Do a unit, unless too many processes died of it."""
        if self._is_followed(unit):
            return Outcome(done=list(unit.tiles))
        trace = self._sent.folder / unit.name
        # It stays behind if this process dies.
        with storage_errors(trace), trace.open("ab") as file:
            file.write(b".")
            deaths = file.tell() - 1
        try:
            if deaths >= (1 if unit.died else KILLS):
                return Deadly(deaths)
            with self._environment():
                return self._done(unit, deaths)
        finally:
            trace.unlink(missing_ok=True)

    def _done(self, unit: Unit, deaths: int) -> Outcome | Deadly:
        if not unit.died:
            return self._worker.run(unit.tiles)
        return self._worker.halve(unit.tiles[0]) or Deadly(deaths)

    def _is_followed(self, unit: Unit) -> bool:
        """Whether a process that died before it could say so has done these frames."""
        item = self._items[unit.tiles[0][0]]
        return item.tracked and followed_already(item, unit.tiles, self._work)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Here the variables are as those of the process that asks."""
        before = {name: os.environ.get(name) for name in self._sent.environment}
        os.environ.update(self._sent.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _refuse_other_versions(sent: Sent) -> None:
    for name, wanted in sent.versions.items():
        here = versions().get(name)
        if here != wanted:
            raise ConfigError(
                f"{_here()} has {name} {here}, and this process {wanted}.",
                hint="Install the same versions on all machines.",
            )


def _refuse_other_files(token: Path, text: str) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            if token.read_text(encoding="ascii") == text:
                return
        except OSError:
            pass
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    raise DataError(
        f"{_here()} does not see the folder {token.parents[1]}.",
        hint="The results must go to a file system that all machines share, at the same path.",
    )


def _opened(sent: Sent) -> tuple[Recipe, list[Item]]:
    """How and what to segment, with a device of this process, and files that are open."""
    try:
        recipe, items = pickle.loads(sent.recipe)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{_here()} lacks the backend or the reader: {error}",
            hint="Install the same packages on all machines.",
        ) from error
    if not is_remote(recipe.images) and not recipe.images.exists():
        raise DataError(
            f"{_here()} does not see the images at {recipe.images}.",
            hint="They must be on a file system that all machines share, at the same path.",
        )
    job = replace(recipe.job, device=own_device(recipe.job.device))
    return replace(recipe, job=job), reopened(recipe, items)


def _here() -> str:
    """What messages call this worker."""
    from distributed import get_worker

    try:
        address = f" at {get_worker().address}"
    except ValueError:  # not on a worker
        address = ""
    return f"The worker{address} (process {os.getpid()} of {socket.gethostname()})"

"""The same work on many things, in several processes."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from cellseg.errors import DeviceError, PluginError
from cellseg.machine import end_with_parent

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def spread(
    function: Callable[[Thing], Result], things: Sequence[Thing], workers: int
) -> Iterator[Result]:
    """Call ``function`` with each thing; the results come in the order of the things.

    The processes are started afresh ("spawn"). When the caller asks for no more results, or a call
    raises, the calls that run are waited for and the others forgotten.

    Args:
        function: stands at the top of a module.
        things: can be sent to another process.
        workers: how many processes.

    Raises:
        PluginError: a thing cannot be sent.
        DeviceError: a process died.
    """
    try:
        pickle.dumps(things)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PluginError(
            f"The images of this reader cannot be sent to another process: {error}",
            hint="Use --workers 1.",
        ) from error
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)
    try:
        yield from (future.result() for future in [executor.submit(function, t) for t in things])
    except BrokenProcessPool as error:
        raise DeviceError(
            "A worker process died, most likely because the memory is used up.",
            hint="Use fewer --workers.",
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Runs first in each process."""
    import cv2

    # Ctrl-C goes to all processes of a terminal; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)

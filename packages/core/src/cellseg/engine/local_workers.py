"""Worker processes on this computer, which are restarted when they die."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cellseg.errors import DeviceError, PluginError
from cellseg.machine import processors

_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
_PRELOADED = "cellseg.engine.local_preload"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CLOSE = 10.0
"""Seconds that the end may take; processes that are still at something are killed before."""
_HERE = "127.0.0.1"
_SETTINGS: dict[str, object] = {
    "distributed.worker.multiprocessing-method": _METHOD,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    "distributed.scheduler.http.routes": [],
    # A native call may keep a worker from answering for long; who dies is noticed anyway.
    "distributed.scheduler.worker-ttl": None,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.nanny.pre-spawn-environ": {},
}


def warm_up() -> None:
    """Begin to import what worker processes need, while this one does something else."""
    if _METHOD == "forkserver":
        from multiprocessing import forkserver, set_forkserver_preload

        set_forkserver_preload([_PRELOADED])
        forkserver.ensure_running()


@contextmanager
def local_workers(count: int) -> Iterator[Any]:
    """Start processes that segment, and end them afterwards.

    What they say to each other is encrypted with a key that is made now: on a computer that several
    people use, anybody could command them otherwise.

    Args:
        count: how many.

    Yields:
        A client of their cluster.

    Raises:
        DeviceError: they do not start.
        PluginError: the package that encrypts is missing.
    """
    warm_up()
    import dask
    import distributed

    library: Any = distributed
    # What is imported before processes are forked is said above.
    library.utils._forkserver_preload_set = True
    with ExitStack() as stack:
        stack.callback(_restore, "PYTHONHASHSEED", os.environ.get("PYTHONHASHSEED"))
        preload = {"distributed.worker.preload": _preload()}
        stack.enter_context(dask.config.set({**_SETTINGS, **preload}))
        folder = tempfile.TemporaryDirectory(prefix="cellseg-workers-", ignore_cleanup_errors=True)
        scratch = stack.enter_context(folder)
        try:
            security = library.Security.temporary()
        except ImportError as error:
            raise PluginError(
                f"Several processes need the package {error.name or 'cryptography'}, which is not "
                "installed.",
                hint="uv pip install cryptography",
            ) from error
        try:
            cluster = library.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                memory_limit=0,
                host=_HERE,
                security=security,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": f"{_HERE}:0"},
                local_directory=scratch,
                silence_logs=quiet_level(),
                env={**os.environ, **_threads(count)},
            )
        except (OSError, RuntimeError) as error:
            raise DeviceError(f"Worker processes do not start: {error}") from error
        stack.callback(cluster.close, _CLOSE)
        yield stack.enter_context(library.Client(cluster, set_as_default=False))


def _preload() -> list[str]:
    """Modules, or lines of Python, that run first in each process."""
    first = warnings.filters[0] if warnings.filters else None
    silent = first is not None and first[0] == "ignore" and first[2] is Warning
    lines = ["import warnings; warnings.simplefilter('ignore')"] if silent else []
    return ["cellseg.engine.cluster_worker", *lines]


def quiet_level() -> int:
    """From which level on messages of Dask are shown: all with --verbose, or none."""
    return 0 if logging.getLogger().isEnabledFor(logging.INFO) else logging.CRITICAL


def _threads(count: int) -> dict[str, str]:
    """Variables that give each of several processes its share of the cores, unless the user has
    set them."""
    return {n: os.environ.get(n, str(max(1, processors() // count))) for n in _THREADS}


def _restore(name: str, value: str | None) -> None:
    """Undo what Dask does to a variable of this process."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value

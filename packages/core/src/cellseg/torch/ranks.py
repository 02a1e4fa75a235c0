"""Several processes on one computer that train together.

The process that asked for the training is rank 0: events, files and the trained module stay
where they are wanted. The others are started afresh ("spawn": safe with CUDA and with threads),
so what they get is pickled.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment  # noqa: TID253

from cellseg.errors import CellsegError, ConfigError, DeviceError

_JOIN_SECONDS = 60


class Ranks(ClusterEnvironment):  # type: ignore[misc]
    """Tells Lightning which of the processes this one is; they are already running."""

    def __init__(self, rank: int, world: int, port: int) -> None:
        super().__init__()
        self._rank, self._world, self._port = rank, world, port

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning must not start any."""
        return True

    @property
    def main_address(self) -> str:
        """Where rank 0 listens."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Where rank 0 listens."""
        return self._port

    @staticmethod
    def detect() -> bool:
        """Never chosen by Lightning itself."""
        return False

    def world_size(self) -> int:
        """How many processes there are."""
        return self._world

    def set_world_size(self, size: int) -> None:
        """Fixed from the start."""

    def global_rank(self) -> int:
        """This process's number."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Fixed from the start."""

    def local_rank(self) -> int:
        """All are on one computer."""
        return self._rank

    def node_rank(self) -> int:
        """All are on one computer."""
        return 0


def free_port() -> int:
    """A port that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def others(world: int, work: Callable[..., None], *args: Any) -> Iterator[None]:
    """Run ``work(rank, *args)`` in the processes of rank 1 and up while the body is rank 0.

    Raises:
        ConfigError: ``args`` cannot be sent to another process.
        CellsegError: what another process raised, if the body failed because of it.
    """
    if world == 1:
        yield
        return
    context = multiprocessing.get_context("spawn")
    try:
        payload = pickle.dumps((work, args))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--devices {world}: this data cannot be sent to other processes: {error}",
            hint="Train with --devices 1.",
        ) from error
    ends, processes = [], []
    for rank in range(1, world):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_child, args=(rank, payload, theirs), name=f"cellseg-rank-{rank}", daemon=False
        )
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    # Connecting waits for all: so first see that each has understood what to do.
    for end, process in zip(ends, processes, strict=True):
        _await(end, processes, process.name)
    finished = False
    saved = {name: os.environ.get(name) for name in _ENVIRONMENT}
    try:
        yield
        finished = True
    except BaseException as error:
        _raise_childs_error(ends, error)
        raise
    finally:
        for process in processes:
            process.join(_JOIN_SECONDS if finished else 1)
            if process.is_alive():
                process.kill()
                process.join()
        _restore(saved)


# What Lightning sets when it connects the processes.
_ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK")


def _restore(saved: dict[str, str | None]) -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _child(rank: int, payload: bytes, end: Connection) -> None:
    import signal

    # Rank 0 hears Ctrl-C and tells the others when they may stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        work, args = pickle.loads(payload)
        end.send(None)
        work(rank, *args)
    except CellsegError as error:
        end.send(error)
    except BaseException as error:
        end.send(DeviceError(f"Training process {rank} failed: {type(error).__name__}: {error}"))
        raise
    finally:
        end.close()


def _await(end: Connection, processes: Sequence[BaseProcess], name: str) -> None:
    try:
        error = end.recv()
    except EOFError:
        error = DeviceError(f"{name} died before the training began.")
    if error is not None:
        for process in processes:
            process.kill()
        raise error


def _raise_childs_error(ends: list[Connection], error: BaseException) -> None:
    """A rank that fails takes the connection of the others down: its error is the cause."""
    if isinstance(error, (CellsegError, KeyboardInterrupt)):
        return
    for end in ends:
        try:
            if end.poll(2):
                raise end.recv() from error
        except EOFError:
            continue

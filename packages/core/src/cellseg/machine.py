"""Which process of which computer this is, and whether another one still runs."""

from __future__ import annotations

import multiprocessing
import os
import socket
import uuid
from functools import cache
from pathlib import Path


def processors() -> int:
    """How many this process may use, which in a container or a job are fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def machine() -> str:
    """A name for all processes that can see each other: not only this host's, which containers and
    computers that were cloned share with others."""
    parts = [socket.gethostname()]
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        parts += [boot.strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:  # not Linux
        parts += [str(uuid.getnode())]
    return " ".join(parts)


def me() -> dict[str, object]:
    """What tells this process from all others."""
    return {"machine": machine(), "pid": os.getpid(), "born": _born(os.getpid())}


def is_dead(process: object) -> bool:
    """Whether a process, as ``me`` described it, is of this machine and runs no more."""
    if not isinstance(process, dict) or process.get("machine") != machine():
        return False
    if os.name == "nt":  # where the question would end the process
        return False
    pid = int(process["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return bool(_born(pid) != process.get("born"))


def end_with_parent() -> None:
    """Wait in a thread for the end of the parent: a killed one cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _born(pid: int) -> str:
    """When a process started, in ticks since the computer did; empty where nothing says so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

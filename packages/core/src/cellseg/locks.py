"""One process at a time in a folder: who comes second is told who is there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cellseg.errors import StorageError
from cellseg.events import Emit, Note
from cellseg.files import locked, make_folder
from cellseg.machine import is_dead, machine

LOCK = ".lock"
"""What the file is called that is in a folder while a process works there."""
ELSEWHERE = "Wait until it ends, or stop it; or write elsewhere with --output."
WAIT = "Wait until it ends, or stop it."
_MOST = 3
"""Processes that a message names at most."""
_PAUSE = 0.05
"""Seconds between two looks."""
_TRIES = 100
"""Times that a folder is made which others remove."""


@contextmanager
def sole(
    place: Path,
    lock: Path,
    *,
    shared: bool = False,
    hint: str = ELSEWHERE,
    patience: float = 0.0,
    emit: Emit = lambda event: None,
) -> Iterator[None]:
    """Be the only process that works at a place, for as long as this lasts.

    Folders that are missing on the way to ``lock`` are made; those that are empty at the end of a
    failure are removed again.

    Args:
        place: what is worked at, for messages.
        lock: the file that stands for it.
        shared: others may work there too, if they share it.
        hint: what somebody can do who comes second.
        patience: seconds to wait for somebody who is there for a moment.
        emit: gets a ``Note`` where the file system has no locks, and so nobody is kept out.

    Raises:
        StorageError: another process works there; the message says which. Or the lock cannot be
            written.
    """

    def unsupported() -> None:
        emit(
            Note(
                f"{place}: this file system has no locks. Take care that no other process writes "
                "there."
            )
        )

    made: list[Path] = []
    try:
        with ExitStack() as stack:
            end = time.monotonic() + patience
            while not stack.enter_context(_locked(lock, shared, unsupported, made)):
                if time.monotonic() >= end:
                    raise _busy(place, lock, hint)
                time.sleep(_PAUSE)
            yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it is not empty, or gone
                folder.rmdir()
        raise


def beside(path: Path) -> Path:
    """The lock of a file, or of a folder that appears when it is whole."""
    return path.with_name(f"{LOCK}-{path.name}")


def refuse_busy(place: Path, lock: Path, hint: str = ELSEWHERE) -> None:
    """Say early what ``sole`` would say; nothing is made for that.

    Raises:
        StorageError: another process works there.
    """
    if lock.exists():
        with suppress(FileNotFoundError), locked(lock) as free:
            if not free:
                raise _busy(place, lock, hint)


def holders(lock: Path) -> list[dict[str, Any]]:
    """The processes that hold a lock, as far as they are known not to be dead."""
    found = []
    with suppress(FileNotFoundError):
        for line in lock.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # it is being written
                found.append(json.loads(line))
    return [one for one in found if not is_dead(one)]


@contextmanager
def _locked(lock: Path, shared: bool, unsupported: Any, made: list[Path]) -> Iterator[bool]:
    with ExitStack() as stack:
        for left in reversed(range(_TRIES)):
            missing = [path for path in lock.parents if not path.exists()]
            try:
                make_folder(lock.parent)
                made += missing
                got = stack.enter_context(locked(lock, shared=shared, unsupported=unsupported))
                break
            except FileNotFoundError as error:
                # Another process may remove the folder, which it made and found no use for.
                if not left:
                    raise StorageError(
                        f"{lock.parent}: cannot be made: {error.strerror}."
                    ) from error
        yield got


def _busy(place: Path, lock: Path, hint: str) -> StorageError:
    named = [_said(one) for one in holders(lock)]
    listed = ", ".join(named[:_MOST]) + (f" and {len(named) - _MOST} more" if named[_MOST:] else "")
    who = f"{listed} {'works' if len(named) == 1 else 'work'}" if named else "another process works"
    return StorageError(
        f"{place}: {who} there.",
        hint=hint,
    )


def _said(process: dict[str, Any]) -> str:
    host = str(process.get("machine", "")).partition(" ")[0]
    where = "" if process.get("machine") == machine() else f" on {host}"
    since = datetime.fromisoformat(str(process["since"])).astimezone()
    return f"process {process.get('pid')}{where} (since {since:%Y-%m-%d %H:%M:%S})"

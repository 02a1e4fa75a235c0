"""How a command fails: one line and a hint on stderr, and an exit code.

0 done, 1 a bug (traceback), 2 usage, 3 configuration, 4 data, 5 backend missing or broken,
6 weights, 7 device, memory or disk, 8 training diverged, 9 done but some items failed,
130 interrupted. With ``--json`` the error is also printed as a JSON object on stdout, so that there
always is one: a result or ``{"error": ...}``. Mistakes of usage come before that is known.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from cellseg.errors import (
    CellsegError,
    DeviceError,
    InterruptedRunError,
    PartialError,
    StorageError,
)
from cellseg.files import storage_errors
from cellseg.memory import out_of_memory
from cellseg.texts import printable

_BAD_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_BUG = (
    "This is a bug in cellseg. Please report it with the lines above, the command, and what "
    "`cellseg doctor` prints."
)


def report(error: BaseException, line: Sequence[str]) -> int:
    """Print ``error`` as the command ``line`` wants it, and return the exit code."""
    if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE:
        # Whoever read our output has enough; keep the interpreter quiet as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    known = _known(error)
    if known is None:
        traceback.print_exception(error)
        typer.secho(_BUG, fg="red", err=True)
        return CellsegError.exit_code
    if _verbose(line) and not isinstance(known, InterruptedRunError):
        traceback.print_exception(error)
    typer.secho(printable(f"Error: {known}"), fg="red", err=True)
    if known.hint:
        typer.echo(printable(known.hint), err=True)
    if "--json" in line:
        typer.echo(json.dumps({"error": as_dict(known)}, indent=2))
    return known.exit_code


def as_dict(error: CellsegError) -> dict[str, object]:
    """An error for ``--json``; the list of what failed is complete."""
    values: dict[str, object] = {
        "type": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, PartialError):
        values["failed"] = error.failed
    return values


def _known(error: BaseException) -> CellsegError | None:
    """``error`` as one that cellseg raises on purpose, or None for a bug."""
    if isinstance(error, CellsegError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError("Interrupted.")
    if out_of_memory(error):
        return DeviceError(
            f"The memory does not suffice. {error}".strip(),
            hint="Use smaller tiles, patches or batches, or fewer workers.",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return _of_a_path(error)
    return None


def _of_a_path(error: OSError) -> CellsegError | None:
    """What is wrong with a path that the user gave; None where that is not the reason."""
    if error.errno in _BAD_PATHS:
        return StorageError(f"{error.filename}: {error.strerror}.")
    try:
        with storage_errors(error.filename):
            raise error
    except CellsegError as storage:
        return storage
    except OSError:
        return None


def _verbose(line: Sequence[str]) -> bool:
    return any(word in ("--verbose", "-v", "-vv") for word in line)

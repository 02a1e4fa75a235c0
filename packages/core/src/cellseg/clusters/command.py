"""A command of cellseg as a job: what runs on the node. Light.

A job may be stopped at any moment, by its time limit or with its node, and started again by the
cluster. What it knows of itself is in a small file beside its logs:

    begun   what was there of the command's results before it first ran
    code    how the command ended
    last    the last lines that it wrote
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from cellseg.files import write_atomic
from cellseg.tuning.library import masked

INTERRUPTED = 130
_TAIL = 20
_POLL = 0.1


class CommandFailedError(RuntimeError):
    """The command of a job ended with an error; the message has its last lines."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Restart:
    """How a command goes on after it was stopped."""

    sign: Path
    """A file that the command writes when it begins: without it there is nothing to go on with."""
    command: tuple[str, ...]
    """The command to give instead."""


@dataclass(frozen=True)
class Job:
    """A command of cellseg, as submitit runs it.

    It goes to the node in a pickle, so it holds plain values only, and nothing of the environment
    but ``variables``.
    """

    program: tuple[str, ...]
    """What to start cellseg with."""
    command: tuple[str, ...]
    """The words after ``cellseg``."""
    folder: Path
    """The working folder."""
    state: Path
    """The file for what the job knows of itself."""
    restart: Restart | None = None
    variables: Mapping[str, str] | None = None
    """Environment variables to set."""
    grace: float = 60
    """Seconds that the command gets to save its state."""
    requeue: bool = True
    """Whether the job is queued again at its time limit."""

    def __call__(self) -> int:
        """Run the command, or go on with it; gives its exit code, which is 0.

        Raises:
            CommandFailedError: it failed, or was stopped.
        """
        known = self.known()
        if known.get("code") == 0:  # it ended while the job was being stopped
            return 0
        command = again(self.command, self.restart, known)
        if "begun" not in known:
            begun = None if self.restart is None else _trace(self.restart.sign)
            self._note(begun=begun)
        print(f"Running: cellseg {shown(command)}", file=sys.stderr, flush=True)
        with _running(self, command) as child, _forwarding(child):
            child.wait()
        self._note(code=child.code, last=list(child.last))
        if child.code:
            raise self._failed(child)
        return 0

    def checkpoint(self) -> Any:
        """Called by submitit shortly before the time limit: the command saves its state, then the
        job is queued again, which does nothing more where the command is done.

        Raises:
            CommandFailedError: the command has failed by itself, or is not to be queued again.
        """
        from submitit.helpers import DelayedSubmission

        child = _CHILDREN.get(self.state)
        if child is not None:
            child.end(self.grace)
            self._note(code=child.code, last=list(child.last))
            stopped = child.code in (INTERRUPTED, -signal.SIGTERM, -signal.SIGKILL)
            if child.code and not (stopped and self.requeue):
                raise self._failed(child)
        return DelayedSubmission(self)

    def known(self) -> dict[str, Any]:
        """What the job knows of itself."""
        try:
            return dict(json.loads(self.state.read_bytes()))
        except FileNotFoundError:
            return {}

    def _note(self, **values: object) -> None:
        write_atomic(self.state, json.dumps(self.known() | values) + "\n")

    def _failed(self, child: _Child) -> CommandFailedError:
        how = f"exit code {child.code}" if child.code >= 0 else f"signal {-child.code}"
        lines = "\n".join(child.last)
        return CommandFailedError(
            child.code, f"cellseg {self.command[0]} ended with {how}:\n{lines}"
        )


def shown(command: Sequence[str]) -> str:
    """A command as it would be typed, without the passwords of addresses."""
    return shlex.join(masked(word) for word in command)


def again(
    command: tuple[str, ...], restart: Restart | None, known: Mapping[str, Any]
) -> tuple[str, ...]:
    """The command to give now: to begin with, or to go on.

    Args:
        command: what was submitted.
        restart: how it goes on; None where it begins anew each time.
        known: what the job noted when it first ran; empty if it has not.

    Returns:
        The command to go on if this job began before, and its results have been begun since.
    """
    if restart is None or "begun" not in known:
        return command
    now = _trace(restart.sign)
    return restart.command if now is not None and now != known["begun"] else command


def _trace(file: Path) -> list[int] | None:
    """What tells a file from an earlier or later one of its name; None if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns, found.st_size]


class _Child:
    """The process of the command.

    Threads wait for it. Who asks whether it has ended takes no lock, because a signal handler may
    ask in the middle of that.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._code: int | None = None
        self.last: deque[str] = deque(maxlen=_TAIL)
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._copy, args=(process.stderr,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, daemon=True).start()

    @property
    def code(self) -> int:
        """The exit code, once it has ended; negative after a signal."""
        assert self._code is not None
        return self._code

    def wait(self) -> None:
        """Wait until it ends."""
        while self._code is None:
            time.sleep(_POLL)
        self._reader.join(timeout=5)  # a process that it left may keep the pipe open

    def tell(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._code is None:
            self._process.send_signal(number)

    def end(self, grace: float) -> None:
        """Let it save its state; after ``grace`` seconds it is killed."""
        self.tell(signal.SIGTERM)
        end = time.monotonic() + grace
        while self._code is None and time.monotonic() < end:
            time.sleep(_POLL)
        self.tell(signal.SIGKILL)
        self.wait()

    def _wait(self) -> None:
        self._code = self._process.wait()

    def _copy(self, stream: IO[bytes]) -> None:
        for line in stream:
            os.write(2, line)
            self.last.append(line.decode(errors="replace").rstrip())


_CHILDREN: dict[Path, _Child] = {}
"""The running command of each job of this process, for ``checkpoint``."""


@contextmanager
def _running(job: Job, command: tuple[str, ...]) -> Iterator[_Child]:
    """The process of a command; it does not outlive this."""
    process = subprocess.Popen(
        [*job.program, *command],
        cwd=job.folder,
        env={**os.environ, **(job.variables or {})},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_deaf,
    )
    child = _CHILDREN[job.state] = _Child(process)
    try:
        yield child
    finally:
        child.end(job.grace)
        del _CHILDREN[job.state]


def _deaf() -> None:
    """The cluster's signal may reach all processes of a job; only the job itself knows of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@contextmanager
def _forwarding(child: _Child) -> Iterator[None]:
    """Within, SIGTERM goes to the command, which saves its state and ends."""

    def forward(number: int, frame: FrameType | None) -> None:
        child.tell(number)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

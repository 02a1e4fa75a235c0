"""Ctrl-C, SIGTERM and SIGHUP: a command that can save its state does, and then stops.

The first Ctrl-C or SIGTERM asks for that, the second stops at once. SIGHUP, which says that the
terminal is gone, asks as well; where it is ignored, as under ``nohup``, it stays so. Commands
without a state to save are interrupted, and leave nothing half-written.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeAlias

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HANG_UP = getattr(signal, "SIGHUP", None)  # there is none on Windows
_SHOW_CURSOR = b"\x1b[?25h"
_MESSAGE = b"\nStopping after this step, with the state saved. Once more stops at once.\n"

_Handler: TypeAlias = Callable[[int, FrameType | None], None]


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within, a signal does not raise: it makes the function that this gives return True."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if number == _HANG_UP:  # others may come with it; they are not a second thought
            return
        for each in _SIGNALS:
            # The kernel's own action: a handler would wait for the end of a long native call.
            signal.signal(each, signal.SIG_DFL)
        # A signal may arrive within a print; write() is safe even then. A progress bar hides the
        # cursor, and would not get to show it again.
        with suppress(OSError):
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + _MESSAGE)

    with _handled(ask, _SIGNALS):
        yield lambda: asked


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP interrupt as Ctrl-C does: what is half-written is removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    with _handled(interrupt, (signal.SIGTERM,)):
        yield


@contextmanager
def _handled(handler: _Handler, signals: tuple[int, ...]) -> Iterator[None]:
    """Handle signals, and SIGHUP unless it is ignored."""
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def hung_up(number: int, frame: FrameType | None) -> None:
        # To print to a terminal that is gone is an error, which would come before all is saved.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in terminals:
            os.dup2(nowhere, descriptor)
        handler(number, frame)

    before = {number: signal.signal(number, handler) for number in signals}
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
        before[_HANG_UP] = signal.signal(_HANG_UP, hung_up)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)

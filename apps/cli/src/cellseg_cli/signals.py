"""Ctrl-C and SIGTERM: the first asks for a stop with the state saved, the second stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"
_MESSAGE = b"\nStopping after this step, with the state saved. Once more stops at once.\n"


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within, a signal does not raise: it makes the function that this gives return True."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for each in _SIGNALS:
            # The kernel's own action: a handler would wait for the end of a long native call.
            signal.signal(each, signal.SIG_DFL)
        # A signal may arrive within a print; write() is safe even then. A progress bar hides the
        # cursor, and would not get to show it again.
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + _MESSAGE)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

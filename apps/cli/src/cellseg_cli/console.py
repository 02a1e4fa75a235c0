"""What the user sees: results on stdout; progress, notes and failures on stderr."""

from __future__ import annotations

import json as jsonlib
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from cellseg.engine.failures import line
from cellseg.events import Checkpointed, Emit, Event, Failed, Note, Progress, Resumed, Validated
from cellseg.texts import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 10.0
_MOST_METRICS = 2
"""Beside a bar there is no room for more."""


class _Display(Protocol):
    def progress(self, event: Progress) -> None:
        """Show how far the work is."""

    def line(self, text: str) -> None:
        """Print one line, without disturbing what shows the progress."""


class Console:
    """Prints for one command.

    Args:
        json: results are JSON, alone on stdout.
        quiet: no progress and no notes; failures are still printed.
        verbose: 1 shows each step and the warnings of libraries, 2 also all that they log.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        _set_up_logging(verbose)

    def result(self, data: object, lines: Iterable[str]) -> None:
        """Print what came out: ``data`` with ``--json``, else ``lines``."""
        if self.json:
            typer.echo(jsonlib.dumps(_plain(data), indent=2, allow_nan=False))
            return
        for text in lines:
            typer.echo(printable(text))

    def note(self, text: str) -> None:
        """Tell the user something by the way."""
        if not self.quiet:
            _to_stderr(printable(text))

    def warn(self, text: str) -> None:
        """Tell the user something that ``--quiet`` does not silence."""
        typer.secho(printable(text), fg="yellow", err=True)

    @contextmanager
    def following(self, what: str, unit: str) -> Iterator[Emit]:
        """Show the events of some work: a bar on a terminal, else a line now and then.

        Args:
            what: the name of the work, such as ``Training``.
            unit: what a step is, such as ``step`` or ``tile``.
        """
        display: _Display
        if self.quiet:
            yield lambda event: self._show(event, None)
        elif sys.stderr.isatty() and not self.verbose:
            with _bar() as bar:
                display = _Bar(bar, what, unit)
                yield lambda event: self._show(event, display)
        else:
            display = _Lines(what, unit, 0.0 if self.verbose else SECONDS_BETWEEN_LINES)
            yield lambda event: self._show(event, display)

    def _show(self, event: Event, display: _Display | None) -> None:
        if isinstance(event, Failed):
            text = typer.style(f"Failed: {printable(line(event.item, event.reason))}", fg="red")
            (display.line if display else _to_stderr)(text)
        elif display is None:
            return
        elif isinstance(event, Progress):
            display.progress(event)
        elif isinstance(event, Note):
            display.line(printable(event.text))
        elif isinstance(event, Validated):
            display.line(printable(_validated(event)))
        elif isinstance(event, Resumed):
            display.line(f"Going on after step {event.step}.")
        elif isinstance(event, Checkpointed) and self.verbose:
            display.line(f"Checkpoint after step {event.step}.")


class _Lines:
    """Progress as plain lines: the first step, the last, and one every so many seconds."""

    def __init__(self, what: str, unit: str, seconds: float) -> None:
        self._what, self._unit, self._seconds = what, unit, seconds
        self._last = -seconds
        self._start: tuple[int, float] | None = None

    def progress(self, event: Progress) -> None:
        now = time.monotonic()
        first = self._start is None
        if self._start is None:
            self._start = (event.step, now)
        if not first and event.step != event.total and now - self._last < self._seconds:
            return
        self._last = now
        done, elapsed = event.step - self._start[0], now - self._start[1]
        parts = [f"{self._what}: {_counted(event, self._unit)}"]
        if done and elapsed:
            parts.append(_rate(done / elapsed, self._unit))
            if event.total and event.step < event.total:
                parts.append(_duration((event.total - event.step) * elapsed / done) + " left")
        if event.metrics:
            parts.append(_metrics(event.metrics.items()))
        self.line(", ".join(parts))

    def line(self, text: str) -> None:
        _to_stderr(text)


class _Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, bar: Bar, what: str, unit: str) -> None:
        self._bar, self._unit = bar, unit
        self._task = bar.add_task(what, total=None, rate="", metrics="")
        self._first: int | None = None

    def progress(self, event: Progress) -> None:
        if self._first is None:  # a resumed run must not count what was done before as fast
            self._first = event.step - 1
            self._bar.reset(self._task, completed=self._first, total=event.total)
        self._bar.update(
            self._task,
            completed=event.step,
            total=event.total,
            metrics=_metrics(list(event.metrics.items())[:_MOST_METRICS]),
        )
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=_rate(speed, self._unit))

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


def columns(rows: Sequence[Sequence[object]], numbers_from: int | None = None) -> list[str]:
    """Rows as aligned lines; the first row is the heading.

    Args:
        rows: cells, printed with ``str``.
        numbers_from: the column from which cells are aligned to the right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = len(widths) if numbers_from is None else numbers_from
    lines = []
    for row in cells:
        padded = (
            cell.ljust(width) if i < right else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return lines


def _plain(value: object) -> object:
    """``value`` as JSON has it: no NaN, no infinity, no paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) or hasattr(value, "__vfspath__") else value


def _bar() -> Bar:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
        console=RichConsole(stderr=True),
        transient=True,
    )


def _counted(event: Progress, unit: str) -> str:
    of = f"/{event.total}" if event.total else ""
    epoch = f"epoch {event.epoch}, " if event.epoch else ""
    return f"{epoch}{unit} {event.step}{of}"


def _validated(event: Validated) -> str:
    where = f"epoch {event.epoch}" if event.epoch else f"step {event.step}"
    best = " (best so far)" if event.best else ""
    return f"Validation after {where}: {_metrics(event.metrics.items())}{best}"


def _metrics(metrics: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in metrics)


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 1:
        return f"{per_second:.3g} {unit}s/s"
    return f"{1 / per_second:.3g} s/{unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)


def _set_up_logging(verbose: int) -> None:
    """What libraries warn about is for those who ask with ``-v``."""
    if verbose == 0:
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return
    logging.basicConfig(
        level=logging.DEBUG if verbose > 1 else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    logging.captureWarnings(True)

"""What every benchmark prints: a table, and a RESULT line for each target."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

_missed: list[str] = []


def median_seconds(function: Callable[[], object], runs: int = 5) -> float:
    """Median wall time of ``runs`` calls, after one that warms up."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as columns; the first row is the heading."""
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for number, row in enumerate(cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))
    print(flush=True)


def result(name: str, value: float, target: str, met: bool) -> None:
    """Print one RESULT line; ``target`` says what was wanted, as in ``>=0.80``."""
    if not met:
        _missed.append(name)
    print(f"RESULT {name}={value:.4g} target={target} {'met' if met else 'short'}", flush=True)


def finish() -> None:
    """Exit with 0 if every target was met."""
    sys.exit(1 if _missed else 0)

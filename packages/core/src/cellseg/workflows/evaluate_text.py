"""How scores are written for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cellseg.metrics import Scores


def plain(scores: Scores) -> dict[str, float | None]:
    """Scores for JSON and CSV: one that cannot be measured is None."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def mean_of(scores: Sequence[Scores], names: Iterable[str]) -> Scores:
    """The mean of each score over those that have it; NaN where none has."""
    means = {}
    for name in names:
        values = [one[name] for one in scores if not math.isnan(one[name])]
        means[name] = math.fsum(values) / len(values) if values else math.nan
    return means


def text_of(value: float) -> str:
    """A score with three digits; a dash where it cannot be measured."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def aligned(heading: list[str], rows: list[list[str]], across: bool = False) -> list[str]:
    """Aligned columns; without ``across``, each row is set as a column."""
    cells = [heading, *rows]
    if not across:
        cells = [list(column) for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]

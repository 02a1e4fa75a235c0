"""Texts for people, and texts from strangers on their way to a terminal or a table. Light."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TextIO

_KEPT = {"\n", "\t"}
_BIDIRECTIONAL = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FORMULA = re.compile(r"[=@\t]|[+-].*[(|!]", re.DOTALL)
"""How a cell begins that a spreadsheet may compute."""


def printable(text: str) -> str:
    """A text without what a terminal obeys: control characters and changes of the direction of
    reading become ``\\x1b`` or ``\\u202e``; lines stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in _KEPT
        or not (unicodedata.category(character) in ("Cc", "Cs") or _BIDIRECTIONAL.match(character))
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The hint for a name that nobody knows: the nearest of those that are known, or else
    ``otherwise``."""
    close = get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else otherwise


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 tile``, ``2 tiles``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class CsvWriter:
    """Writes rows of CSV in which no spreadsheet finds a formula.

    A text that begins like one gets an apostrophe before it, as spreadsheets themselves mark texts;
    control characters are written as ``printable`` has them.
    """

    def __init__(self, file: TextIO) -> None:
        self._rows = csv.writer(file, lineterminator="\n")

    def writerow(self, row: Iterable[object]) -> None:
        """Write one row."""
        self._rows.writerow([_cell(value) for value in row])

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write several rows."""
        for row in rows:
            self.writerow(row)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) else text

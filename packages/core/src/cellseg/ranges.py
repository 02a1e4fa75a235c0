"""Ranges of numbers as users write them: "1-3, 5-8", counted from 1. Light."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cellseg.errors import ConfigError

CURRENT = "current"
"""What stands for the places that the user points at, by examples or prompts."""
_PART = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", re.ASCII)
_HINT = 'Ranges count from 1, as in "1-3, 5-8", "4", "all" or "current".'


@dataclass(frozen=True, slots=True)
class Ranges:
    """Numbers from 1, as first and last ones of ranges: sorted, apart, and at least one."""

    option: str
    """The flag that they were given to, for messages."""
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, option: str, places: Iterable[int]) -> Ranges:
        """The ranges that hold exactly some places, which count from 0."""
        return cls(option, _joined((place + 1, place + 1) for place in places))

    def __str__(self) -> str:
        """As users write them."""
        return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.spans)

    def among(self, count: int, what: str) -> tuple[int, ...]:
        """Their numbers, counted from 0.

        Args:
            count: how many there are to choose from.
            what: what has them, and what they are, for the message: "a has 3 planes".

        Raises:
            ConfigError: a range goes beyond the last one.
        """
        if self.spans[-1][1] > count:
            raise ConfigError(
                f"{self.option} {str(self)!r}: {what}.",
                hint=f"Give numbers from 1 to {count}, or all." if count > 1 else "Leave it out.",
            )
        return tuple(n for first, last in self.spans for n in range(first - 1, last))


def read_ranges(text: str, option: str) -> Ranges | None:
    """Read what a user gives to an option, other than ``current``.

    Args:
        text: numbers and ranges of them, with commas in between, in any order; or "all".
        option: the flag, for messages.

    Returns:
        The ranges, or None for "all".

    Raises:
        ConfigError: the text is empty or unreadable, a range is reversed, or a number is 0.
    """
    if text.strip().lower() == "all":
        return None
    spans = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            said = f"{part.strip()!r} is no range" if part.strip() else "a range is missing"
            raise ConfigError(f"{option} {text!r}: {said}.", hint=_HINT)
        first, last = int(found[1]), int(found[2] or found[1])
        if first < 1:
            raise ConfigError(f"{option} {text!r}: the first one is 1, not 0.", hint=_HINT)
        if last < first:
            raise ConfigError(
                f"{option} {text!r}: {part.strip()!r} ends before it begins.",
                hint=f"Did you mean {last}-{first}?" if last else _HINT,
            )
        spans.append((first, last))
    return Ranges(option, _joined(spans))


def is_current(text: str) -> bool:
    """Whether an option is given the places that the user points at."""
    return text.strip().lower() == CURRENT


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sorted, those that meet or overlap being one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)

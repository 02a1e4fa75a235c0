"""Which images ``cellseg embed`` takes: those whose names fit, and a draw from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cellseg.engine.items import Item
from cellseg.errors import DataError
from cellseg.options import flag
from cellseg.workflows.embed_settings import EmbedSettings

_LISTED = 5


@dataclass(frozen=True, slots=True)
class Selection:
    """The images that are taken, in their order, and the others with the reason."""

    items: list[Item]
    left_out: list[tuple[Item, str]]


def select(items: Sequence[Item], settings: EmbedSettings) -> Selection:
    """Choose by the patterns first, then draw.

    Raises:
        DataError: a pattern fits no image, or none is left.
    """
    reasons: dict[int, str] = {}
    included = _fitting(items, "include", settings.include)
    excluded = _fitting(items, "exclude", settings.exclude)
    for item in items:
        if settings.include and item.index not in included:
            reasons[item.index] = "--include"
        elif item.index in excluded:
            reasons[item.index] = f"--exclude {excluded[item.index]}"
    left = [item.index for item in items if item.index not in reasons]
    if not left:
        raise DataError(
            f"--include and --exclude leave none of {len(items)} image(s).",
            hint=_known(items),
        )
    if settings.most_images is not None and len(left) > settings.most_images:
        import numpy as np

        draw = np.random.default_rng(settings.seed)
        drawn = draw.choice(left, settings.most_images, replace=False).tolist()
        reasons |= {i: f"--most-images {settings.most_images}" for i in left if i not in drawn}
    return Selection(
        [item for item in items if item.index not in reasons],
        [(item, reasons[item.index]) for item in items if item.index in reasons],
    )


def _fitting(items: Sequence[Item], name: str, patterns: Sequence[str]) -> dict[int, str]:
    """The images that fit a pattern, each with the first that it fits."""
    found: dict[int, str] = {}
    for pattern in patterns:
        fitting = [item.index for item in items if fnmatchcase(item.name, pattern)]
        if not fitting:
            raise DataError(f"{flag(name)} {pattern}: fits no image.", hint=_known(items))
        found = dict.fromkeys(fitting, pattern) | found
    return found


def _known(items: Sequence[Item]) -> str:
    names = ", ".join(item.name for item in items[:_LISTED])
    return f"They are called: {names}{', ...' if len(items) > _LISTED else '.'}"

"""What could not be done, told in few lines however much it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LISTED = 10
"""How many a message names; ``PartialError.failed`` has all."""


def named(problems: Mapping[str, str]) -> str:
    """Images and what is wrong with them, in one line.

    Args:
        problems: by the names or paths of images. One that begins with the name or the path of its
            image stands for itself.
    """
    lines = [line(name, text).rstrip(".") for name, text in problems.items()]
    lines = list(dict.fromkeys(lines))
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + more + "."


def line(name: str, text: str) -> str:
    """An image and what is wrong with it; a text that names the image says it by itself."""
    said = re.match(rf"(\S.*?[\\/])?{re.escape(name)}(\.\w+)*[:\[#/\\]", text)
    return text if said else f"{name}: {text}"


def of_tiles(reasons: Sequence[str], tiles: int) -> str:
    """Why an image failed of which some tiles did.

    Args:
        reasons: one for each tile that failed.
        tiles: how many the image has.
    """
    first, *others = dict.fromkeys(reasons)
    if tiles == 1:
        return first
    count = f"{len(reasons)} of {tiles} tiles" if len(reasons) < tiles else f"all {tiles} tiles"
    more = f" (and {len(others)} other reason(s))" if others else ""
    return f"{first.rstrip('.')}, in {count}{more}."

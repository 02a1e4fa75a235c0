"""Arrays on disk as every reader finds them, before their axes are put in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cellseg.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN = "?"
"""Letter of an axis that the file does not name."""
NONE = "1"
"""Letter of an axis of length 1 that stands for nothing."""
MICROMETRES = {
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "\\u00b5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "angstrom": 1e-4,
    "å": 1e-4,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "inch": 25400.0,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
}


def micrometres(value: float, unit: str | None) -> float | None:
    """A length in µm; None for a unit that is no length (pixel) or a value that is no size.

    Without a unit the value is taken as micrometres, the habit of the field.
    """
    factor = MICROMETRES.get(unit.strip().lower()) if unit else 1.0
    if factor is None or not 0 < value < float("inf"):
        return None
    return value * factor


class Pixels(Protocol):
    """Pixels of one file or array, in the order they are stored; picklable, opened when read."""

    @property
    def where(self) -> str:
        """File, and the array in it, as errors name it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each stored axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, in the byte order of this machine."""

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """The block under ``key`` (one slice an axis, step 1, within the shape).

        Raises:
            DataError: the file is damaged or gone.
        """


@dataclass(frozen=True, slots=True)
class Channel:
    """How a file calls one of its channels."""

    name: str = ""
    wavelength: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """Pixels, and what their file says about them."""

    pixels: Pixels
    axes: str
    """One letter for each stored axis: T C Z Y X S, or ``UNKNOWN``."""
    spacing: Mapping[str, float] = field(default_factory=dict)
    """Size in µm of a step along Z, Y and X, where known."""
    channels: tuple[Channel, ...] = ()
    alpha: bool = False
    """Whether the last sample of each pixel is transparency, which is no channel."""
    colours: bool = False
    """Whether the samples are red, green and blue."""

    @property
    def where(self) -> str:
        """File, and the array in it, as errors name it."""
        return self.pixels.where


def known_axes(stored: Stored) -> str:
    """The axes as the file has them.

    Raises:
        DataError: the file does not say, and its shape leaves a choice.
    """
    shape = stored.pixels.shape
    letters = [
        NONE if length == 1 and letter not in "YX" else letter
        for letter, length in zip(stored.axes, shape, strict=True)
    ]
    unknown = [i for i, letter in enumerate(letters) if letter == UNKNOWN]
    kept = [i for i, letter in enumerate(letters) if letter != NONE]
    if unknown and unknown == kept and len(kept) == 2:
        letters[kept[0]], letters[kept[1]] = "Y", "X"
        unknown = []
    axes = "".join(letters)
    if unknown:
        size = " x ".join(map(str, shape))
        raise DataError(
            f"{stored.where}: its axes are ambiguous: the file does not say what the {size} pixels "
            "are along.",
            hint=f"Say it with --axes, such as --axes {_proposals(letters)}.",
        )
    named = axes.replace(NONE, "")
    if not {"Y", "X"} <= set(named) or len(set(named)) < len(named):
        raise DataError(
            f"{stored.where}: cannot use an image with the axes {axes}.",
            hint="Say what they are with --axes, such as --axes TCZYX.",
        )
    return axes


def given_axes(stored: Stored, axes: str) -> str:
    """The axes that the user states, one letter for each stored axis.

    Axes of length 1 may be left out, or stand anywhere where the file names its axes.

    Raises:
        DataError: there are more or fewer than the file has, or in another order.
    """
    shape = stored.pixels.shape
    if len(axes) == len(shape):
        return axes
    if len(axes) == sum(n != 1 for n in shape):
        letters = iter(axes)
        return "".join(NONE if n == 1 else next(letters) for n in shape)
    long = [letter for letter, n in zip(stored.axes, shape, strict=True) if n != 1]
    if [a for a in axes if a in long] == long and set(axes) <= set(stored.axes):
        return "".join(a if a in axes else NONE for a in stored.axes)
    raise DataError(
        f"{stored.where}: --axes {axes} does not fit the file, which has {len(shape)} axes: "
        f"{' x '.join(map(str, shape))} ({stored.axes}).",
        hint="Give one letter for each axis, in the order they are stored.",
    )


def _proposals(letters: list[str]) -> str:
    count = sum(letter == UNKNOWN for letter in letters)
    rest = "".join(letter for letter in letters if letter not in (UNKNOWN, NONE))
    choices = ["ZYX", "TYX", "CYX"] if not rest else ["Z", "T", "C"]
    if count == 1 and rest:
        choices = [
            "".join(first if x == UNKNOWN else x for x in letters if x != NONE)
            for first in choices
            if first not in rest
        ]
    elif count != 3:
        choices = {4: ["CZYX", "TZYX", "TCYX"], 5: ["TCZYX"]}.get(count, ["TCZYX"])
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]

"""What is searched: options, each with some values or a range of numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator

from cellseg.errors import ConfigError

Point: TypeAlias = dict[str, Any]
"""One value for each option, as JSON has them."""
MOST_POINTS = 100_000
"""More points than these are not listed."""


class Parameter(BaseModel):
    """One option that is searched: ``choices``, or a range from ``low`` to ``high``, inclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    choices: tuple[Any, ...] = ()
    """Values as JSON has them, each once."""
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """Whether the logarithms are drawn evenly: for rates and weights."""
    step: int | float | None = None
    """The distance of the values from each other; None for all."""
    whole: bool = False
    """Whether the values of the range are integers."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Parameter:
        if self.choices:
            return self
        if self.low is None or self.high is None:
            raise ValueError(f"{self.name}: no values, and no range")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"{self.name}: a range ends somewhere")
        if self.low >= self.high:
            raise ValueError(f"{self.name}: {self.low} is not below {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.name}: a logarithmic range begins above 0, not at {self.low}")
        if self.log and self.step is not None:
            raise ValueError(f"{self.name}: log and a step exclude each other")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"{self.name}: the step {self.step} does not fit in the range")
        return self

    @property
    def size(self) -> int | None:
        """How many values there are; None where there is no end to them."""
        if self.choices:
            return len(self.choices)
        assert self.low is not None and self.high is not None
        step = self.step or (1 if self.whole else None)
        if step is None:
            return None
        return int((_exact(self.high) - _exact(self.low)) // _exact(step)) + 1

    def value(self, index: int) -> Any:
        """One of the values, counted from 0; not for those without end."""
        if self.choices:
            return self.choices[index]
        found = _exact(self.low) + index * _exact(self.step or 1)
        return int(found) if self.whole else float(found)

    def drawn(self, draws: random.Random) -> Any:
        """One value at random."""
        if self.size is not None and not self.log:
            return self.value(int(draws.random() * self.size))
        assert self.low is not None and self.high is not None
        if not self.log:
            return self.low + draws.random() * (self.high - self.low)
        room = 0.5 if self.whole else 0.0
        low, high = math.log(self.low - room), math.log(self.high + room)
        found = math.exp(low + draws.random() * (high - low))
        found = min(max(found, self.low), self.high)
        return round(found) if self.whole else found

    def key(self, value: Any) -> Any:
        """A value as Optuna stores it: lists and the like as JSON."""
        return value if isinstance(value, str | int | float | None) else json.dumps(value)

    def of_key(self, key: Any) -> Any:
        """The value that is stored so."""
        return next((one for one in self.choices if self.key(one) == key), key)

    def __str__(self) -> str:
        if self.choices:
            return ", ".join("none" if v is None else _said(v) for v in self.choices)
        ending = " (log)" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{_said(self.low)} to {_said(self.high)}{ending}"


class Space(BaseModel):
    """All that is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: tuple[Parameter, ...]

    @model_validator(mode="after")
    def _has_parameters(self) -> Space:
        if not self.parameters:
            raise ValueError("nothing is searched")
        return self

    @classmethod
    def of(cls, wanted: Mapping[str, object]) -> Space:
        """A space of lists of values, or of ``{"low": 1, "high": 8, "log": true}``, by name.

        Raises:
            ConfigError: a range is none, or values come twice.
        """
        return cls(parameters=tuple(parameter(name, given) for name, given in wanted.items()))

    @cached_property
    def size(self) -> int | None:
        """How many points there are; None where there is no end to them."""
        sizes = [one.size for one in self.parameters]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def grid(self) -> Iterator[Point]:
        """All points; the last option changes fastest.

        Raises:
            ConfigError: there is no end to them, or there are too many.
        """
        for one in self.parameters:
            if one.size is None:
                raise ConfigError(
                    f"--search {one.name}: a grid needs values to try, and {one} has no end.",
                    hint=f"List them, or give a step: {one.name}={one.low:g}..{one.high:g}:0.1",
                )
            if one.log:
                raise ConfigError(
                    f"--search {one.name}: log does nothing in a grid, which tries all values.",
                    hint="List the values to try.",
                )
        if (self.size or 0) > MOST_POINTS:
            raise ConfigError(
                f"This grid has {self.size} points; {MOST_POINTS} is the most.",
                hint="Use fewer values, or --sampler random.",
            )
        return self.all_points()

    def all_points(self) -> Iterator[Point]:
        """All points of a space that has an end."""
        sizes = [range(one.size or 0) for one in self.parameters]
        for indices in product(*sizes):
            pairs = zip(self.parameters, indices, strict=True)
            yield {one.name: one.value(index) for one, index in pairs}

    def drawn(
        self, count: int, seed: int, allowed: Callable[[Point], bool] = lambda point: True
    ) -> list[Point]:
        """Distinct points at random, the same for the same seed; fewer where there are fewer."""
        draws = random.Random(f"cellseg tune {seed}")
        found: dict[str, Point] = {}
        refused: set[str] = set()
        for _ in range(100 * count + 1000):
            if len(found) == count:
                break
            point = {one.name: one.drawn(draws) for one in self.parameters}
            name = identity(point)
            if name in found or name in refused:
                continue
            if allowed(point):
                found[name] = point
            else:
                refused.add(name)
        if len(found) < count and self.size is not None and self.size <= MOST_POINTS:
            left = [
                p for p in self.all_points() if identity(p) not in found | dict.fromkeys(refused)
            ]
            draws.shuffle(left)
            for point in left:
                if len(found) == count:
                    break
                if allowed(point):
                    found[identity(point)] = point
        return list(found.values())

    def stored(self, point: Mapping[str, Any]) -> Point:
        """A point as Optuna stores it."""
        return {one.name: one.key(point[one.name]) for one in self.parameters}

    def restored(self, stored: Mapping[str, Any]) -> Point:
        """The point that is stored so; options that are missing stay so."""
        return {
            one.name: one.of_key(stored[one.name]) for one in self.parameters if one.name in stored
        }


def parameter(name: str, given: object) -> Parameter:
    """An option with a list of values, or with ``low``, ``high`` and perhaps ``log`` or ``step``.

    Raises:
        ConfigError: it makes no sense.
    """
    if isinstance(given, Parameter):
        return given
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in ("low", "high", "log", "step")]
        if unknown or not {"low", "high"} <= set(given):
            raise ConfigError(
                f"{name}: a range has low and high, and may have log or step"
                + (f", but not {unknown[0]!r}." if unknown else "."),
                hint="Such as {low: 1e-5, high: 1e-3, log: true}.",
            )
        numbers = [given["low"], given["high"], given.get("step")]
        whole = all(isinstance(number, int) for number in numbers if number is not None)
        return made(name=name, whole=whole, **{str(key): value for key, value in given.items()})
    if isinstance(given, list | tuple):
        return made(name=name, choices=tuple(plain(value) for value in given))
    return made(name=name, choices=(plain(given),))


def made(**fields: Any) -> Parameter:
    """A parameter, with errors that users understand.

    Raises:
        ConfigError: it makes no sense.
    """
    from pydantic import ValidationError

    try:
        built = Parameter(**fields)
    except ValidationError as error:
        reasons = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"--search {fields.get('name')}: {reasons}.") from None
    keys = [json.dumps(value) for value in built.choices]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(f"--search {built.name}: {json.loads(twice)!r} comes twice.")
    return built


def identity(point: Mapping[str, Any]) -> str:
    """The same text for the same point."""
    return json.dumps(dict(point), sort_keys=True, default=str)


def plain(value: object) -> Any:
    """A value as JSON has it: tuples are lists, paths are text.

    Raises:
        ConfigError: JSON has nothing like it.
    """
    try:
        return json.loads(json.dumps(value, default=_text))
    except TypeError as error:
        raise ConfigError(f"{value!r} cannot be searched: {error}") from None


def _text(value: object) -> str:
    import os

    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError("values are numbers, text, switches, paths and lists of these")


def _exact(number: int | float | None) -> Decimal:
    return Decimal(str(number))


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

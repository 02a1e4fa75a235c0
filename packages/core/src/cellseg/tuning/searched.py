"""From what users write to options that are searched, each value checked by its option's type.

learning_rate=1e-5..1e-3:log     a range; :log draws its logarithms evenly
batch_size=1..8                  integers where the option is one
dropout=0..0.5:0.1               in steps
mode=full,decoder                values
patch_size=256,256;512,512       values that are lists themselves
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from cellseg.errors import ConfigError
from cellseg.options import Options, given_twice, parse, read_config
from cellseg.texts import did_you_mean
from cellseg.tuning.space import Parameter, Space, made

PREDICT = "predict."
"""What the names of options of prediction begin with."""
_RANGE = re.compile(r"(?P<low>[^.].*?|\.\d.*?)\.\.(?P<high>[^:]+)(?::(?P<how>.+))?")
_MOST_CORNERS = 256
_SEQUENCES = (tuple, list, set, frozenset, Sequence)


@dataclass(frozen=True)
class Group:
    """Some options that can be searched, and what is fixed of them."""

    model: type[Options]
    fixed: Mapping[str, object] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of its options, and of those of other groups."""
    prefix: str = ""
    unsearchable: Mapping[str, str] = field(default_factory=dict)
    """Options that cannot be searched, and why."""


def read_search(text: str) -> tuple[str, str]:
    """The name and the values in ``name=values``.

    Raises:
        ConfigError: it has no name, or no values.
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not values.strip():
        raise ConfigError(
            f"--search {text!r}: no option and values.",
            hint="Such as --search learning_rate=1e-5..1e-3:log or --search batch_size=1,2,4",
        )
    return name.strip().removeprefix("--").replace("-", "_"), values.strip()


def read_space(texts: Sequence[str], file: Path | None) -> dict[str, object]:
    """What is to be searched, from the flags and from a YAML file.

    Raises:
        ConfigError: an option is searched twice, nothing is, or the file cannot be read.
    """
    wanted: dict[str, object] = dict(read_config(file)) if file is not None else {}
    for name, values in map(read_search, texts):
        if name in wanted:
            raise ConfigError(f"--search {name}: is searched twice.", hint="Give it once.")
        wanted[name] = values
    if not wanted:
        raise ConfigError(
            "Nothing is searched.",
            hint="Such as --search learning_rate=1e-5..1e-3:log; or a file: --space space.yaml",
        )
    return wanted


def typed_space(wanted: Mapping[str, object], groups: Sequence[Group]) -> Space:
    """The space that users mean, by the types of the options.

    Args:
        wanted: text as on the command line, lists of values, or ``{"low": 1, "high": 8}``, by name.
        groups: what can be searched.

    Raises:
        ConfigError: an option is unknown, fixed as well, or cannot be searched; a value is not
            allowed; a range makes no sense.
    """
    placed: dict[int, list[Parameter]] = {index: [] for index in range(len(groups))}
    used: dict[str, str] = {}
    for given, values in wanted.items():
        index, name = _place(given, groups)
        group = groups[index]
        full = group.prefix + name
        if full in used:
            raise given_twice(used[full], given)
        used[full] = given
        if name in group.unsearchable:
            raise ConfigError(f"--search {given}: {group.unsearchable[name]}")
        if name in group.fixed:
            raise ConfigError(
                f"--search {given}: it is also given a value, {group.fixed[name]!r}.",
                hint="Search it, or give it: not both.",
            )
        placed[index].append(_typed(full, values, group.model.model_fields[name].annotation))
    checked = {
        one.name: one for index, mine in placed.items() for one in _checked(mine, groups[index])
    }
    return Space(parameters=tuple(checked[name] for name in used))


def refusal(options: Mapping[str, Any], groups: Sequence[Group]) -> str:
    """Why a combination is not allowed; empty where it is."""
    for group in groups:
        mine = {n.removeprefix(group.prefix): v for n, v in options.items() if owns(group, n)}
        if not mine:
            continue
        try:
            parse(group.model, group.model.over(dict(group.fixed), mine))
        except ConfigError as error:
            return str(error)
    return ""


def owns(group: Group, name: str) -> bool:
    """Whether an option, as it is searched, is one of a group's."""
    if name.startswith(PREDICT) != (group.prefix == PREDICT):
        return False
    return name.removeprefix(group.prefix) in group.model.model_fields


def _place(given: str, groups: Sequence[Group]) -> tuple[int, str]:
    """Which group has the option of that name, or of that other name, and its own name."""
    ours = [
        (i, g) for i, g in enumerate(groups) if (g.prefix == PREDICT) == given.startswith(PREDICT)
    ]
    bare = given.removeprefix(PREDICT)
    aliases = {alias: option for _, group in ours for alias, option in group.aliases.items()}
    for name in (bare, aliases.get(bare)):
        for index, group in ours:
            if name in group.model.model_fields:
                return index, str(name)
    known = [g.prefix + name for g in groups for name in (*g.model.model_fields, *g.aliases)]
    raise ConfigError(
        f"--search {given}: unknown option.",
        hint=did_you_mean(given, known, "cellseg tune --backend NAME --help has all."),
    )


def _typed(name: str, values: object, annotation: Any) -> Parameter:
    """A parameter of the type of the option; its values are not checked yet."""
    inner, optional = _without_none(annotation)
    number = _number(inner)
    listed = (get_origin(inner) or inner) in _SEQUENCES
    if isinstance(values, str):
        found = _RANGE.fullmatch(values)
        if found and (number or _is_number(found["low"])):
            values = _read_range(name, found)
        elif listed:
            values = [[item.strip() for item in one.split(",")] for one in values.split(";")]
        else:
            values = [one.strip() for one in values.split(",")]
    if isinstance(values, Parameter):
        values = (
            values.model_dump(include={"low", "high", "log", "step"})
            if not values.choices
            else list(values.choices)
        )
    if isinstance(values, Mapping):
        if number is None:
            raise ConfigError(f"--search {name}: takes no range.", hint="List the values to try.")
        return _range(name, values, number)
    given = list(values) if isinstance(values, list | tuple) else [values]
    if optional:
        given = [None if isinstance(v, str) and v.lower() in ("none", "null") else v for v in given]
    if not given:
        raise ConfigError(f"--search {name}: no values.")
    return Parameter(name=name, choices=tuple(given))


def _read_range(name: str, found: re.Match[str]) -> dict[str, object]:
    how = found["how"] or ""
    values: dict[str, object] = {"low": found["low"], "high": found["high"]}
    if how == "log":
        values["log"] = True
    elif _is_number(how.removeprefix("step=")):
        values["step"] = how.removeprefix("step=")
    elif how:
        raise ConfigError(
            f"--search {name}={found[0]}: {how!r} is neither log nor a step.",
            hint=f"Such as {name}=1e-5..1e-3:log or {name}=0..1:0.1",
        )
    return values


def _range(name: str, values: Mapping[Any, Any], number: type[int] | type[float]) -> Parameter:
    unknown = [key for key in values if key not in ("low", "high", "log", "step")]
    if unknown or "low" not in values or "high" not in values:
        wrong = f", not {unknown[0]!r}" if unknown else ""
        raise ConfigError(
            f"--search {name}: a range has low and high, and may have log or step{wrong}.",
            hint="Such as {low: 1e-5, high: 1e-3, log: true}.",
        )
    read: dict[str, Any] = {"log": bool(values.get("log", False))}
    for key in ("low", "high", "step"):
        if values.get(key) is None:
            continue
        try:
            read[key] = float(values[key])
        except (TypeError, ValueError):
            raise ConfigError(f"--search {name}: {values[key]!r} is no number.") from None
        if number is int:
            if read[key] != int(read[key]):
                raise ConfigError(f"--search {name}: {values[key]} is not a whole number.")
            read[key] = int(read[key])
    return made(name=name, whole=number is int, **read)


def _checked(mine: Sequence[Parameter], group: Group) -> Iterator[Parameter]:
    """The parameters with their values as the options have them.

    A value that is allowed with no value of the others is an error; so what depends on what can be
    searched together.
    """
    bare = {one.name: one.name.removeprefix(group.prefix) for one in mine}
    for one in mine:
        others = [other for other in mine if other is not one]
        found = [_valid(bare[one.name], value, others, group, bare) for value in _ends(one)]
        if not one.choices:
            yield one
            continue
        yield made(name=one.name, choices=tuple(found))


def _valid(
    name: str,
    value: object,
    others: Sequence[Parameter],
    group: Group,
    bare: Mapping[str, str],
) -> Any:
    """A value as its option has it, if it is allowed with some values of the others."""
    corners = product(*(_ends(other) for other in others))
    for corner in islice(corners, _MOST_CORNERS):
        rest = {bare[other.name]: end for other, end in zip(others, corner, strict=True)}
        try:
            chosen = parse(group.model, group.model.over(dict(group.fixed), {**rest, name: value}))
        except ConfigError:
            continue
        return chosen.model_dump(mode="json")[name]
    whole = group.model.over(dict(group.fixed), {name: value})
    chosen = parse(group.model, whole, f"--search {group.prefix}{name}")
    return chosen.model_dump(mode="json")[name]


def _ends(one: Parameter) -> tuple[Any, ...]:
    return one.choices or (one.low, one.high)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    parts = get_args(annotation)
    rest = [part for part in parts if part is not type(None)]
    inner = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007
    return inner, len(rest) < len(parts)


def _number(inner: Any) -> type[int] | type[float] | None:
    """Whether an option takes numbers, and of which kind."""
    union = get_origin(inner) in (Union, types.UnionType)
    parts = get_args(inner) if union else (inner,)
    parts = tuple(get_args(p)[0] if get_origin(p) is Annotated else p for p in parts)
    return float if float in parts else int if int in parts else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

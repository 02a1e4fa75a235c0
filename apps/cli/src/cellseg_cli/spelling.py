"""How the type of an option is spelled on the command line.

Typer reads numbers, text, switches, paths and choices by itself. Tuples and lists are typed with
commas (``--spacing 1,0.5,0.5``), lists also flag by flag. Anything else is typed as text, and its
option class reads it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

_NATIVE = (int, float, str, bool)
_SEQUENCES = (tuple, list, set, frozenset, Sequence, AbstractSet)
_LIMITS = {
    annotated_types.Ge: ("ge", "at least {}"),
    annotated_types.Gt: ("gt", "more than {}"),
    annotated_types.Le: ("le", "at most {}"),
    annotated_types.Lt: ("lt", "less than {}"),
}


class PathText:
    """What Typer is told that a path or an address is; with ``path_type=str`` it gives the text,
    and shells complete files."""


@dataclass(frozen=True)
class Spelling:
    """One type, as Typer sees it."""

    annotation: Any
    metavar: str | None
    """What stands for the value on the help page; None leaves it to Typer."""
    read: Callable[[Any], object]
    """From what Typer gives to what the option class takes."""
    write: Callable[[Any], Any]
    """From a default of the option class to what Typer shows."""
    is_path: bool = False


def spelling(annotation: Any) -> Spelling:
    """How to type a value of ``annotation``."""
    inner, optional = without_none(annotation)
    chosen = _spelling(inner)
    if not optional:
        return chosen
    return replace(chosen, annotation=chosen.annotation | None, write=_or_none(chosen.write))


def without_none(annotation: Any) -> tuple[Any, bool]:
    """``annotation`` without ``None``, and whether it had one."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    rest = [part for part in get_args(annotation) if part is not type(None)]
    if len(rest) == len(get_args(annotation)):
        return annotation, False
    return (rest[0] if len(rest) == 1 else Union[tuple(rest)]), True  # noqa: UP007


def limits(info: FieldInfo) -> str:
    """The range of a number in words: ``at least 0, at most 1``; empty where there is none."""
    words = []
    for item in info.metadata:
        for kind, (attribute, text) in _LIMITS.items():
            if isinstance(item, kind):
                words.append(text.format(getattr(item, attribute)))
    return ", ".join(words)


def _spelling(annotation: Any) -> Spelling:
    if annotation in _NATIVE:
        return Spelling(annotation, None, _same, _same)
    if get_origin(annotation) is Annotated:
        return _spelling(get_args(annotation)[0])
    if annotation is Path:  # as text: Path would join the slashes of an address
        return Spelling(PathText, None, _same, str, is_path=True)
    if get_origin(annotation) is Literal:
        return _choice({str(value): value for value in get_args(annotation)})
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choice({str(member.value): member.value for member in annotation})
    if (get_origin(annotation) or annotation) in _SEQUENCES:
        if _is_fixed(annotation):
            return Spelling(str, _list_metavar(annotation), _split, _join)
        return Spelling(list[str], _list_metavar(annotation), _split_all, _strings)
    return Spelling(str, _metavar(annotation), _same, str)


def _choice(values: dict[str, object]) -> Spelling:
    def write(default: Any) -> str:
        return str(default.value if isinstance(default, Enum) else default)

    return Spelling(Literal[tuple(values)], None, values.__getitem__, write)


def _is_fixed(annotation: Any) -> bool:
    """Whether this is a tuple of a known length."""
    items = get_args(annotation)
    return get_origin(annotation) is tuple and bool(items) and items[-1] is not Ellipsis


def _list_metavar(annotation: Any) -> str:
    items = get_args(annotation)
    if not items:
        return "A,B,..."
    if _is_fixed(annotation):
        return ",".join(_metavar(item) for item in items)
    return f"{_metavar(items[0])},..."


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return "|".join(_metavar(part) for part in get_args(annotation))
    return str(getattr(annotation, "__name__", annotation)).lower()


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _split_all(texts: Sequence[str]) -> list[str]:
    return [part for text in texts for part in _split(text)]


def _strings(values: Any) -> list[str]:
    return [str(value.value if isinstance(value, Enum) else value) for value in values]


def _join(values: Any) -> str:
    return ",".join(_strings(values))


def _same(value: Any) -> Any:
    return value


def _or_none(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else write(value)

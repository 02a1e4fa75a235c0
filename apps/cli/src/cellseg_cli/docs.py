"""The reference of all commands and options, written from the commands themselves.

    python -m cellseg_cli.docs --write docs/reference.md
    python -m cellseg_cli.docs --check docs/reference.md

The check fails where the page says something else than the program. On a page with the
comments ``<!-- options of vista2d -->`` and ``<!-- end of options -->``, only what stands between
them is written.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo

from cellseg.locations import is_place
from cellseg.options import Options, flag
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, Spec, TrainerSpec
from cellseg.workflows.init import entry
from cellseg.workflows.installed import InstalledBackend, installed_backends
from cellseg_cli import failures
from cellseg_cli.arguments import Arguments
from cellseg_cli.commands import COMMANDS
from cellseg_cli.flags import build, help_text, in_order
from cellseg_cli.spelling import PathText, spelling, without_none

_INTRODUCTION = """\
# Commands and options

This page is written from the program by `python -m cellseg_cli.docs --write docs/reference.md`.
Every command has `--help`, `--json`, `--quiet` and `-v`. An option of core, of a reader or of a
backend is a flag (`--val-fraction 0.3`), a line of a file for `--config` (`val_fraction: 0.3`), and
a keyword in Python (`TrainSettings(val_fraction=0.3)`).
"""
_MARKED = re.compile(r"(<!-- options of (\S+) -->\n).*?(<!-- end of options -->)", flags=re.DOTALL)
Row = tuple[str, str, str, str]
"""Flag, values, default, help."""


def render_reference(plugins: Plugins | None = None) -> str:
    """The page as Markdown: the commands, then the options of the readers and the backends."""
    plugins = plugins or Plugins()
    parts = [_INTRODUCTION, _exit_codes()]
    parts += [_command(name) for name in COMMANDS]
    parts.append("## Readers\n\nFor `--reader`; `auto` takes the one that recognises the data.\n")
    parts += [_card("###", card) for card in _readers(plugins)]
    parts.append("## Backends\n")
    parts += [_backend(backend) for backend in installed_backends(plugins)]
    return "\n".join(parts).rstrip() + "\n"


def filled(text: str, plugins: Plugins | None = None) -> str:
    """A page of a backend with the options between its two comments brought up to date."""
    known = {backend.name: backend for backend in installed_backends(plugins or Plugins())}

    def options(found: re.Match[str]) -> str:
        tables = "\n".join(_tables(known[found[2]]))
        return f"{found[1]}\n{tables}\n{found[3]}"

    return _MARKED.sub(options, text)


def _page(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return filled(text) if _MARKED.search(text) else render_reference()


def option_table(model: type[Options], aliases: Mapping[str, str] | None = None) -> str:
    """The options of one class as a Markdown table, and the other names that some have."""
    aliases = aliases or {}
    rows = [_row(name, info, aliases) for name, info in in_order(model)]
    elsewhere = {a: option for a, option in aliases.items() if option not in model.model_fields}
    parts = [_table(rows) if rows else "It has no options.\n"]
    if elsewhere:
        named = ", ".join(f"`{flag(a)}` for `{flag(o)}`" for a, o in elsewhere.items())
        parts.append(f"Other names of cellseg's own options: {named}.\n")
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; 1 where it is out of date."""
    parser = argparse.ArgumentParser(description="Write or check the reference page.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="PAGE")
    what.add_argument("--check", type=Path, metavar="PAGE")
    options = parser.parse_args(arguments)
    page = _page(options.write or options.check)
    if options.write is not None:
        options.write.write_text(page, encoding="utf-8", newline="\n")
        return 0
    if options.check.exists() and options.check.read_text(encoding="utf-8") == page:
        return 0
    command = f"python -m cellseg_cli.docs --write {options.check}"
    print(f"{options.check} is out of date: run {command}", file=sys.stderr)
    return 1


def _exit_codes() -> str:
    text = inspect.cleandoc(failures.__doc__ or "").split("\n\n", 1)[1]
    return f"## Exit codes\n\n{text.replace('``', '`')}\n"


def _command(name: str) -> str:
    made = build(name, Arguments(("--help",)))
    parts = [f"## cellseg {name}\n"]
    if isinstance(made, typer.Typer):
        parts.append(f"{made.info.help}\n")
        for command in made.registered_commands:
            assert command.callback is not None
            parts.append(f"### cellseg {name} {command.name or command.callback.__name__}\n")
            parts.append(_signature(command.callback))
    else:
        parts.append(_signature(made))
    return "\n".join(parts)


def _signature(function: Callable[..., Any]) -> str:
    """What a command says about itself, and its parameters."""
    rows = [
        _own(parameter)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation is not typer.Context and parameter.name not in _EVERYWHERE
    ]
    return f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_table(rows)}" if rows else ""


_EVERYWHERE = ("json", "quiet", "verbose")


def _own(parameter: inspect.Parameter) -> Row:
    kind, info = get_args(parameter.annotation)[:2]
    # Typer takes the first name of a flag for its default, until it reads the signature.
    given = (info.default, *(info.param_decls or ()))
    names = [name for name in given if isinstance(name, str) and name.startswith("-")]
    is_argument = isinstance(info, ArgumentInfo)
    shown = f"`{info.metavar}`" if is_argument else _code(names or [flag(parameter.name)])
    default = parameter.default
    if default is inspect.Parameter.empty:
        text = "required"
    else:
        text = "" if default in (None, "", []) else f"`{_said(default)}`"
    return shown, _values(kind, None if is_argument else info.metavar), text, str(info.help)


def _readers(plugins: Plugins) -> list[DatasetSpec[Any]]:
    return sorted(plugins.all(DatasetSpec).values(), key=lambda card: card.name)


def _backend(backend: InstalledBackend) -> str:
    if backend.error is not None:
        raise backend.error
    parts = [f"### {backend.name}\n", f"{backend.summary}.\n"]
    parts += [
        f"Starts from {m.name} (licence {m.licence}): <{m.files[0].url}>\n" for m in backend.models
    ]
    return "\n".join(parts + _tables(backend))


def _tables(backend: InstalledBackend) -> list[str]:
    """A table of options for each thing that a backend does."""
    parts = []
    cards: Iterable[tuple[str, Spec[Any] | None]] = (
        ("cellseg train", backend.trainer),
        ("cellseg predict", backend.predictor),
        *((f"cellseg export --format {card.name}", card) for card in backend.exporters),
    )
    for command, card in cards:
        if card is not None:
            parts += [f"`{command}`:\n", option_table(card.options, card.aliases)]
        if isinstance(card, TrainerSpec) and card.presets:
            parts += ["Presets, for `--preset`:\n", _preset_table(card)]
    return parts


def _preset_table(card: TrainerSpec[Any]) -> str:
    """The presets of a trainer as a Markdown table."""
    lines = ["| preset | options |", "| --- | --- |"]
    for name, options in card.presets.items():
        said = _code(entry(*option) for option in options.items()).replace("|", "\\|")
        lines.append(f"| `{name}` | {said} |")
    return "\n".join(lines) + "\n"


def _card(level: str, card: Spec[Any]) -> str:
    return f"{level} {card.name}\n\n{card.summary}\n\n{option_table(card.options, card.aliases)}"


def _row(name: str, info: Any, aliases: Mapping[str, str]) -> Row:
    also = [alias for alias, option in aliases.items() if option == name]
    spelled = spelling(info.annotation)
    default = spelled.write(info.get_default(call_default_factory=True))
    text = "" if default in (None, "", []) else f"`{_said(default)}`"
    values = _values(info.annotation, spelled.metavar)
    return f"`{flag(name)}`", values, text, help_text(info, also)


def _values(annotation: Any, metavar: str | None) -> str:
    inner, _ = without_none(annotation)
    if inner is bool:
        return "switch"
    if metavar:
        return f"`{metavar}`"
    if inner is PathText or is_place(inner):
        return "path"
    if get_origin(inner) is list:
        (inner,) = get_args(inner)
    choices = get_args(inner)
    return _code(choices, " ") if choices else str(getattr(inner, "__name__", inner)).lower()


def _said(default: object) -> str:
    return ",".join(default) if isinstance(default, list) else str(default)


def _code(words: Iterable[object], between: str = ", ") -> str:
    return between.join(f"`{word}`" for word in words)


def _table(rows: list[Row]) -> str:
    def cells() -> Iterator[Iterable[str]]:
        yield ("flag", "values", "default", "")
        yield ("---",) * 4
        yield from rows

    lines = ("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

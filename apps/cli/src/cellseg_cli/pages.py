"""The help pages: options and commands under their headings, in plain text.

Typer's own pages draw boxes. For the hundred options that a backend has, loading and running what
draws them takes longer than everything else together, so the formatter below Typer writes these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Contexts and formatters are Typer's copies of Click's classes, which it does not publish.


class CommandPage(TyperCommand):
    """A command, with its help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options under their headings."""
        _write(formatter, _options(self, ctx))


class GroupPage(TyperGroup):
    """A group of commands, with its help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under their headings, then the options."""
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        listed = [
            (
                str(getattr(c, "rich_help_panel", None) or "Commands"),
                c.name,
                c.get_short_help_str(99),
            )
            for c in commands
        ]
        _write(formatter, [*listed, *_options(self, ctx)])


def settings() -> dict[str, Any]:
    """What every :class:`typer.Typer` of this program is made with."""
    return {
        "cls": GroupPage,
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "context_settings": {
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
        },
    }


def _options(command: TyperCommand | TyperGroup, ctx: Any) -> list[tuple[str, str, str]]:
    """Heading, flag and help of each; the general ones last."""
    rows = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            is_argument = param.param_type_name == "argument"
            default = "Arguments" if is_argument else "Options"
            heading = getattr(param, "rich_help_panel", None) or default
            rows.append((heading, *record))
    return rows


def _write(formatter: Any, rows: Iterable[tuple[str, str | None, str]]) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for heading, name, text in rows:
        sections.setdefault(heading, []).append((typer.style(name, fg="cyan"), text))
    for heading, entries in sections.items():
        with formatter.section(typer.style(heading, bold=True)):
            formatter.write_dl(entries)

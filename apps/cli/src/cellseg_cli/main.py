"""``cellseg``: the entry point. It builds the one command that is asked for.

The others are listed by name and summary alone, so that ``--help`` stays quick; nothing of core
is imported for it.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from cellseg_cli.arguments import COMPLETING, typed
from cellseg_cli.commands import COMMANDS
from cellseg_cli.pages import CommandPage, settings
from cellseg_cli.signals import interruptible

_HELP = "Train, predict and score models that find cells and nuclei in microscopy images."


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; the one place where an error becomes a message."""
    line = list(sys.argv[1:] if argv is None else argv)
    # Pydantic would look through all installed packages for plugins of its own; no one has any.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        with interruptible():
            make_app(line)(line, prog_name="cellseg")
    except SystemExit:
        raise
    except BaseException as error:
        if COMPLETING in os.environ:
            raise SystemExit(0) from None  # the line is not finished: no time to complain
        from cellseg_cli.failures import report

        raise SystemExit(report(error, line)) from None
    raise SystemExit(0)


def make_app(line: Sequence[str] = ()) -> typer.Typer:
    """The app with all commands; the one that ``line`` asks for also has its flags."""
    app = typer.Typer(help=_HELP, no_args_is_help=True, **settings())
    app.callback()(_root)
    called, arguments = typed(line, os.environ)
    for name, entry in COMMANDS.items():
        if name != called:
            app.command(name, help=entry.summary, rich_help_panel=entry.panel)(_listed)
            continue
        from cellseg_cli.flags import build

        command = build(name, arguments)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=entry.panel)
        else:
            app.command(name, cls=CommandPage, rich_help_panel=entry.panel)(command)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cellseg {version('cellseg-core')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and exit.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Take the flags that stand before a command."""


def _listed() -> None:
    """Stand in for a command that is not asked for."""


if __name__ == "__main__":
    main()

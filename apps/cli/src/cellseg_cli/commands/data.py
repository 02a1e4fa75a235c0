"""``cellseg check-data`` and ``cellseg preview-augmentation``."""

from pathlib import Path
from typing import Annotated

import typer

from cellseg.errors import DataError
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line


def check_data(arguments: Arguments) -> Command:
    """The command, with the options of the checks and of the reader."""
    from cellseg.workflows.check import CheckSettings

    line = Line(arguments)
    reader = line.reader([CheckSettings])

    def run(
        console: Console,
        given: Given,
        data: Annotated[
            Path, typer.Argument(metavar="DATA", help="Images with labels.", show_default=False)
        ],
        config: ConfigFile = None,
    ) -> None:
        """Check images and labels before training on them.

        Prints a verdict for each file; the exit code is 4 when training would be wrong.
        """
        from cellseg.workflows.check import check

        with console.following("Checking", "image") as emit:
            report = check(
                line.plugins,
                data,
                given.options(CheckSettings),
                given.values(reader.model),
                emit=emit,
            )
        console.result(report.to_dict(), report.lines())
        if not report.ok:
            raise typer.Exit(DataError.exit_code)

    return Command(run, [Group(CheckSettings, "Checks"), reader], line.file, line.configured)

"""``cellseg augment``."""

from pathlib import Path
from typing import Annotated

import typer

from cellseg.workflows.augment_settings import AugmentSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, LabelledImages, Line
from cellseg_cli.signals import stoppable


def augment(arguments: Arguments) -> Command:
    """The command, with its own options and those of the reader."""
    line = Line(arguments)
    reader = line.reader([AugmentSettings])

    def run(
        console: Console,
        given: Given,
        data: LabelledImages,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Folder to make.", show_default=False)
        ],
        config: ConfigFile = None,
    ) -> None:
        """Write augmented copies of labelled images, to train on.

        cellseg train augments by itself while it trains; this is for looking at the copies, for
        other programs, and for backends that do not augment.
        """
        from cellseg.workflows.augment import augment

        with stoppable() as interrupted, console.following("Augmenting", "image") as emit:
            made = augment(
                line.plugins,
                data,
                output,
                given.options(AugmentSettings),
                given.values(reader.model),
                emit=emit,
                interrupted=interrupted,
            )
        console.result(made.to_dict(), made.lines())

    return Command(run, [Group(AugmentSettings, "Data"), reader], line.file, line.configured)

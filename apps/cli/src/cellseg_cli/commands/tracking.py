"""``cellseg track``."""

from typing import Annotated

import typer

from cellseg.locations import Location
from cellseg.workflows.track_settings import TrackSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line
from cellseg_cli.signals import stoppable


def track(arguments: Arguments) -> Command:
    """The command, with the options of linking."""
    line = Line(arguments)

    def run(
        console: Console,
        given: Given,
        labels: Annotated[
            Location,
            typer.Argument(
                metavar="LABELS",
                help="Label images of a movie: a stack, a container, or a folder of frames.",
                show_default=False,
            ),
        ],
        config: ConfigFile = None,
    ) -> None:
        """Link the objects of labelled movies to tracks, divisions included.

        The labels may come from anything: cellseg predict with any backend, the Cell Tracking
        Challenge, or other programs.
        """
        from cellseg.plugins import Plugins
        from cellseg.workflows.track import track

        settings = given.options(TrackSettings)
        with stoppable() as interrupted, console.following("Linking", "frame") as emit:
            summary = track(Plugins(), labels, settings, emit=emit, interrupted=interrupted)
        console.result(summary.to_dict(), summary.lines())

    groups = [Group(TrackSettings, "Linking", short={"output": "-o"})]
    return Command(run, groups, line.file, line.configured)

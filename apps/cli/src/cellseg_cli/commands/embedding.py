"""``cellseg embed``."""

from dataclasses import replace
from typing import Annotated

import typer

from cellseg.locations import Location
from cellseg.workflows.embed_settings import EmbedSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.commands.predicting import options_of_backend
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line
from cellseg_cli.signals import stoppable

_LABELS = "labels"
"""An option of core, though some readers have one of that name for labels to train on."""


def embed(arguments: Arguments) -> Command:
    """The command, with the options of core, of the reader and of the model's backend."""
    line = Line(arguments)
    groups = [Group(EmbedSettings, "Model and images", short={"output": "-o"})]
    own = options_of_backend(line)
    if own is not None:
        own = replace(own, defaults={})  # what was calibrated is for finding objects
        groups.append(own)
    reader = replace(line.reader([group.model for group in groups]), without=frozenset({_LABELS}))
    groups.insert(1, reader)

    def run(
        console: Console,
        given: Given,
        where: Annotated[  # a reader has an option called images
            Location,
            typer.Argument(metavar="IMAGES", help="File, folder or container."),
        ],
        config: ConfigFile = None,
    ) -> None:
        """Describe each object by a vector, from what a model sees.

        Give --labels, such as the folder that cellseg predict wrote, unless the labels are
        beside the images or inside them.
        """
        from cellseg.workflows.embed import embed

        settings = given.options(EmbedSettings)
        with stoppable() as interrupted, console.following("Embedding", "tile") as emit:
            summary = embed(
                line.plugins,
                where,
                settings,
                options=given.values(own.model) if own else {},
                reader_options=_of_reader(given, reader),
                emit=emit,
                interrupted=interrupted,
            )
        console.result(summary.to_dict(), [*summary.lines(), f"Written to {settings.output}"])

    return Command(run, groups, line.file, line.configured, downloads=True)


def _of_reader(given: Given, reader: Group) -> dict[str, object]:
    """What was given for the reader; ``--labels`` is not."""

    def others(values: object) -> dict[str, object]:
        assert isinstance(values, dict)
        return {name: value for name, value in values.items() if name not in reader.without}

    own = replace(given, typed=others(given.typed), configured=others(given.configured))
    return own.values(reader.model)

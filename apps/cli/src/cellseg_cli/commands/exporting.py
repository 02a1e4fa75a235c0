"""``cellseg export``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line

_DEFAULT = "zip"


def export(arguments: Arguments) -> Command:
    """The command, with the options of the exporter where the line names model and format."""
    from cellseg.bundle import Bundle
    from cellseg.options import NoOptions

    line = Line(arguments)
    name, model_path = line.chosen("format") or _DEFAULT, line.existing(())
    options = NoOptions
    aliases: Mapping[str, str] = {}
    if model_path is not None:
        _, bundle = Bundle.find(model_path)
        spec = line.plugins.exporter(bundle.backend, name)
        options, aliases = spec.options, spec.aliases
    groups = [Group(options, f"Format: {name}", aliases=aliases)]

    def run(
        console: Console,
        given: Given,
        model: Annotated[
            Path, typer.Argument(metavar="MODEL", help="Run or model.", show_default=False)
        ],
        output: Annotated[
            Path, typer.Option("--output", "-o", help="What to write.", show_default=False)
        ],
        format: Annotated[
            str,
            typer.Option(help="Name of the format; cellseg backends info lists them."),
        ] = _DEFAULT,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace what is there.")
        ] = False,
        config: ConfigFile = None,
    ) -> None:
        """Convert a trained model to another format."""
        from cellseg.workflows.export import export

        with console.following("Exporting", "step") as emit:
            target = export(
                line.plugins,
                model,
                name,
                output,
                overwrite=overwrite,
                options=given.values(options),
                emit=emit,
            )
        console.result({"output": str(target), "format": name}, [f"Written: {target}"])

    return Command(run, groups, line.file, line.configured, ("format",))

"""``cellseg demo``, ``init``, ``new-backend`` and ``doctor``."""

from pathlib import Path
from typing import Annotated

import typer

from cellseg.plugins import Plugins
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command
from cellseg_cli.lookup import Line, TrainerName, preset_flag
from cellseg_cli.signals import stoppable


def demo(arguments: Arguments) -> Command:
    """The command."""

    def run(
        console: Console,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Directory for all that it makes.")
        ] = Path("cellseg-demo"),
        fast: Annotated[
            bool, typer.Option("--fast", help="Train for seconds only: shows that all works.")
        ] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace an earlier demo.")
        ] = False,
    ) -> None:
        """Train, predict and score on synthetic cells; needs no data."""
        from cellseg.workflows.demo import demo

        with stoppable() as interrupted, console.following("Training", "step") as emit:
            result = demo(
                Plugins(),
                output,
                fast=fast,
                overwrite=overwrite,
                emit=emit,
                interrupted=interrupted,
            )
        console.result(result.to_dict(), result.lines())

    return Command(run)


def init(arguments: Arguments) -> Command:
    """The command."""
    line = Line(arguments)
    trainer = line.trainer()

    def run(
        console: Console,
        backend: TrainerName = None,
        preset: preset_flag(trainer) = None,  # type: ignore[valid-type]
        output: Annotated[
            Path, typer.Option("--output", "-o", help="The file to write; - for stdout.")
        ] = Path("config.yaml"),
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace the file if it is there.")
        ] = False,
    ) -> None:
        """Write a commented config file for a backend.

        It holds every option with its help and its default, for cellseg train --config.
        """
        from cellseg.workflows.init import config_text, init

        assert trainer is not None
        if str(output) == "-":
            text = config_text(line.plugins, trainer.name, preset)
            console.result({"config": text}, [text.rstrip("\n")])
            return
        target = init(line.plugins, trainer.name, output, preset=preset, overwrite=overwrite)
        console.result(
            {"output": str(target)},
            [f"Written: {target}", f"Use it:  cellseg train DATA -o RUN --config {target}"],
        )

    return Command(run)


def new_backend(arguments: Arguments) -> Command:
    """The command."""

    def run(
        console: Console,
        name: Annotated[
            str,
            typer.Argument(
                metavar="NAME", help="What users will type after --backend.", show_default=False
            ),
        ],
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", help="Directory to make; by default cellseg-NAME."),
        ] = None,
    ) -> None:
        """Write a backend package that passes its own tests."""
        from cellseg.workflows.new_backend import new_backend

        folder = new_backend(name, output)
        console.result(
            {"output": str(folder), "name": name},
            [
                f"Written:  {folder}",
                f"Install:  uv pip install -e {folder}",
                f"Test it:  pytest {folder}",
            ],
        )

    return Command(run)


def doctor(arguments: Arguments) -> Command:
    """The command."""

    def run(
        console: Console,
        backend: Annotated[
            str | None,
            typer.Option(
                "--backend",
                metavar="NAME",
                help="The only backend to look at, besides the computer; by default all.",
                autocompletion=lambda: Plugins().names(),
            ),
        ] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                "--output", "-o", help="Where you are about to write; it need not exist yet."
            ),
        ] = None,
    ) -> None:
        """Check this computer and what is installed on it.

        Downloads nothing, and leaves nothing behind. The exit code is 5 where something is a
        PROBLEM, and 0 where there are warnings at most.
        """
        from cellseg.errors import PluginError
        from cellseg.workflows.doctor import diagnose

        found = diagnose(output=output, backend=backend)
        console.result(found.to_dict(), found.lines())
        if not found.ok:
            raise typer.Exit(PluginError.exit_code)

    return Command(run)

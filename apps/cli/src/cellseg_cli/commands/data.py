"""``cellseg check-data`` and ``cellseg preview-augmentation``."""

from pathlib import Path
from typing import Annotated

import typer

from cellseg.errors import DataError, UsageError
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, LabelledImages, Line, TrainerName


def check_data(arguments: Arguments) -> Command:
    """The command, with the options of the checks and of the reader."""
    from cellseg.workflows.check import CheckSettings

    line = Line(arguments)
    reader = line.reader([CheckSettings])

    def run(
        console: Console,
        given: Given,
        data: LabelledImages,
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

    keys = ("preset",)  # of no use here
    return Command(run, [Group(CheckSettings, "Checks"), reader], line.file, line.configured, keys)


def preview_augmentation(arguments: Arguments) -> Command:
    """The command, with the options of the reader and of the backend that would train."""
    from cellseg.sampling_options import AugmentOptions, PatchOptions
    from cellseg.workflows.preview_augmentation import PreviewSettings
    from cellseg.workflows.train_settings import TrainSettings

    line = Line(arguments)
    trainer = line.trainer()
    groups = [Group(PreviewSettings, "Preview")]
    aliases = trainer.aliases if trainer is not None else {}
    if trainer is not None:
        groups.append(Group(trainer.options, f"Backend: {trainer.name}", aliases=aliases))
    reader = line.reader([group.model for group in groups], line.preset, aliases)
    groups.insert(1, reader)

    def run(
        console: Console,
        given: Given,
        data: LabelledImages,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="The PNG file to write.")
        ] = Path("augmentation.png"),
        backend: TrainerName = None,
        config: ConfigFile = None,
    ) -> None:
        """Draw what augmentation does to your images.

        It takes the options, and the config file, that cellseg train would take.
        """
        from cellseg.readers import open_dataset
        from cellseg.workflows.preview_augmentation import preview_augmentation

        assert trainer is not None
        options, settings = given.options(trainer.options), given.options(PreviewSettings)
        if not (isinstance(options, PatchOptions) and isinstance(options, AugmentOptions)):
            raise UsageError(
                f"The backend {trainer.name!r} does not use the augmentation of cellseg.",
                hint="Its own guide says what it does instead.",
            )
        samples = open_dataset(
            line.plugins, data, settings.reader, given.values(reader.model), labelled=True
        )
        picture = preview_augmentation(
            samples,
            options,
            options,
            output,
            count=settings.count,
            seed=settings.seed,
            normalise_options=settings,
        )
        console.result({"output": str(picture)}, [f"Written: {picture}"])

    # A config file for training has more keys than are of use here.
    keys = ("backend", "preset", *TrainSettings.model_fields)
    return Command(run, groups, line.file, line.configured, keys, line.preset)

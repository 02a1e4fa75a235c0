"""``cellseg cross-validate``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cellseg.errors import ConfigError
from cellseg.options import flag
from cellseg.workflows.cross_validate_settings import IDLE, OWN_WAY, CrossValidateSettings
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, LabelledImages, Line, TrainerName, preset_flag
from cellseg_cli.signals import stoppable


def cross_validate(arguments: Arguments) -> Command:
    """The command, with its own options, and those of a training."""
    line = Line(arguments)
    trainer = line.trainer()
    # A preset's own way to divide the images gives way to the folds.
    chosen = {name: value for name, value in line.preset.items() if name not in OWN_WAY}
    if "split" in line.preset:
        chosen.pop("val_fraction", None)
    own = Group(CrossValidateSettings, "Cross-validation")
    groups, reader = line.training([own], chosen, frozenset(IDLE))

    def run(
        console: Console,
        given: Given,
        data: LabelledImages,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Folder to make.", show_default=False)
        ],
        backend: TrainerName = None,
        preset: preset_flag(trainer) = None,  # type: ignore[valid-type]
        config: ConfigFile = None,
    ) -> None:
        """Train on all folds but one, in turn, and score the models on the fold left out.

        Takes the options of cellseg train, apart from those that divide the images.
        """
        from cellseg.workflows.cross_validate import cross_validate

        assert trainer is not None
        _refuse_idle(given.configured, line.file)
        typed, configured = _of_training(given.typed), _of_training(given.configured)
        training = Given(typed, configured, given.file, chosen)
        with stoppable() as interrupted, console.following("Cross-validating", "step") as emit:
            found = cross_validate(
                line.plugins,
                trainer.name,
                data,
                output,
                settings=given.options(CrossValidateSettings),
                train_settings=training.options(TrainSettings),
                reader_options=training.values(reader.model),
                options=training.values(trainer.options),
                emit=emit,
                interrupted=interrupted,
            )
        console.result(found.to_dict(), found.lines())

    extra = ("backend", "preset", *(name for name in IDLE if name != "folds"))
    return Command(run, groups, line.file, line.configured, extra, chosen, downloads=True)


def _of_training(given: Mapping[str, object]) -> dict[str, object]:
    """What was given without what only the cross-validation takes."""
    return {name: value for name, value in given.items() if name not in IDLE}


def _refuse_idle(configured: Mapping[str, object], file: Path | None) -> None:
    """Refuse keys of a config file for trainings that do nothing here, unless at their defaults."""
    fields = TrainSettings.model_fields
    for name in IDLE:
        if name == "folds" or name not in configured:
            continue
        value = configured[name]
        default = fields[name].default
        if value != default and value != (list(default) if isinstance(default, tuple) else default):
            raise ConfigError(
                f"{file}: {name}: does nothing in a cross-validation, whose folds say which "
                f"images train, validate and are held out; there is no {flag(name)} here.",
                hint="Remove the line.",
            )

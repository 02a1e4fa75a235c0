"""``cellseg calibrate``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.bundle import Bundle
from cellseg.errors import UsageError
from cellseg.locations import Location, refuse_address
from cellseg.options import NoOptions
from cellseg.specs import PredictorSpec
from cellseg.workflows.calibrate_settings import CalibrateSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group, value_flags
from cellseg_cli.lookup import ConfigFile, Line

_SWITCHES = ("--json", "--quiet", "--verbose", "--offline", "--help")


def calibrate(arguments: Arguments) -> Command:
    """The command, with the options of core, of the backend and of the reader of the images."""
    line = Line(arguments)
    groups = [Group(CalibrateSettings, "Calibration", short={"output": "-o"})]
    model_word = _model(line)
    own = _options_of_backend(line, model_word)
    groups.append(own)
    models = [group.model for group in groups]
    reader = _without(line, model_word).reader(models, aliases=own.aliases)
    groups.insert(1, reader)

    def run(
        console: Console,
        given: Given,
        first: Annotated[
            Location,
            typer.Argument(
                metavar="RUN", help="Run or model; with --backend, DATA.", show_default=False
            ),
        ],
        second: Annotated[
            Location | None,
            typer.Argument(
                metavar="DATA",
                help="Images with labels. If not given, those that the run validated on.",
                show_default=False,
            ),
        ] = None,
        config: ConfigFile = None,
    ) -> None:
        """Find the options of prediction that suit labelled images best.

        They become the defaults of the model. Options of the backend that are given stay as they
        are, and are kept as well.
        """
        from cellseg.workflows.calibrate import calibrate

        settings = given.options(CalibrateSettings)
        if settings.backend is not None and second is not None:
            raise UsageError(
                "--backend is for published weights: there is no RUN, only DATA.",
                hint="Leave out --backend.",
            )
        model, data = (first, second) if settings.backend is None else (None, first)
        with console.following("Calibrating", "step") as emit:
            found = calibrate(
                line.plugins,
                settings,
                model=model,
                data=data,
                options=given.values(own.model),
                reader_options=given.values(reader.model),
                emit=emit,
            )
        console.result(found.to_dict(), found.lines())

    return Command(run, groups, line.file, line.configured, downloads=True)


def _model(line: Line) -> str | None:
    """The word that names the run or the model: the first path, unless ``--backend`` is given.

    Raises:
        UsageError: both are given.
    """
    takes, switches = value_flags([CalibrateSettings])
    words = line.arguments.positionals({*takes, "-o", "--config"}, {*switches, *_SWITCHES})
    if not words or not line.chosen("backend"):
        return words[0] if words else None
    if any((Path(words[0]) / inside / BUNDLE_FILE).exists() for inside in ("", "model")):
        raise UsageError(
            f"{words[0]} is a model, and --backend is for published weights.",
            hint="Leave out --backend.",
        )
    return None


def _options_of_backend(line: Line, model: str | None) -> Group:
    """The options of the predictor that ``--backend`` names, or else of the model's."""
    name, stored = line.chosen("backend"), {}
    if model is not None and not (line.arguments.only_shown and not Path(model).exists()):
        refuse_address(model, "a run or model")
        _, bundle = Bundle.find(Path(model))
        name, stored = bundle.backend, bundle.predict
    if name is None:
        return Group(NoOptions, "Backend")
    spec = line.plugins.get(PredictorSpec, name)
    return Group(spec.options, f"Backend: {name}", stored, aliases=spec.aliases)


def _without(line: Line, word: str | None) -> Line:
    """The line as it would be without one of its words, so that the images come first."""
    words = list(line.arguments.words)
    if word is not None:
        words.remove(word)
    return Line(replace(line.arguments, words=tuple(words)))

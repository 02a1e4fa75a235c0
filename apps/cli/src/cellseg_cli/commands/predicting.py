"""``cellseg predict``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cellseg.locations import Location, refuse_address
from cellseg.specs import PredictorSpec
from cellseg.workflows.example_settings import learner_of
from cellseg.workflows.predict_settings import PredictSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line
from cellseg_cli.signals import stoppable


def predict(arguments: Arguments) -> Command:
    """The command, with the options of core, of the reader and of the model's backend."""
    line = Line(arguments)
    groups = [Group(PredictSettings, "Model and images", short={"output": "-o"})]
    own = options_of_backend(line)
    if own is not None:
        if line.chosen("prompts"):
            own = replace(own, defaults={})  # what was calibrated is for objects that are found
        groups.append(own)
    trainer = options_of_trainer(line)
    if trainer is not None:
        groups.append(trainer)
    aliases = trainer.aliases if trainer is not None else {}
    reader = line.reader([group.model for group in groups], aliases=aliases)
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
        """Segment images with a trained model.

        Give --model to see the options of its backend as well, with this model's defaults; or
        --backend, to segment with published weights, or to learn from --examples first.
        """
        from cellseg.workflows.predict import predict

        settings = given.options(PredictSettings)
        with stoppable() as interrupted, console.following("Segmenting", "tile") as emit:
            summary = predict(
                line.plugins,
                where,
                settings,
                options={
                    name: value
                    for group in (own, trainer)
                    if group is not None
                    for name, value in given.values(group.model).items()
                },
                reader_options=given.values(reader.model),
                emit=emit,
                interrupted=interrupted,
            )
        lines = summary.lines()
        if settings.output is not None and not settings.dry_run:
            lines.append(f"Written to {settings.output}")
        console.result(summary.to_dict(), lines)

    return Command(run, groups, line.file, line.configured, downloads=True)


def options_of_backend(line: Line) -> Group | None:
    """The options of the predictor that ``--model``, or else ``--backend``, names."""
    model, name = line.chosen("model"), line.chosen("backend")
    calibrated: dict[str, object] = {}
    if model is not None:
        from cellseg.bundle import Bundle

        refuse_address(model, "a model")
        _, bundle = Bundle.find(Path(model))
        name, calibrated = name or bundle.backend, bundle.predict
    if name is None:
        return None
    spec = line.plugins.get(PredictorSpec, name)
    return Group(spec.options, f"Backend: {name}", calibrated, aliases=spec.aliases)


def options_of_trainer(line: Line) -> Group | None:
    """The options of learning from ``--examples``, for a backend that does."""
    name = line.chosen("backend")
    if name is None or line.chosen("model"):
        return None
    spec = learner_of(line.plugins, name)
    if spec is None:
        return None
    return Group(spec.options, f"Learning: {name}", aliases=spec.aliases)

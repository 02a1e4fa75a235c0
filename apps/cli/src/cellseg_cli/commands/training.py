"""``cellseg train`` and ``cellseg resume``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg.errors import UsageError
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given
from cellseg_cli.lookup import ConfigFile, LabelledImages, Line, TrainerName, preset_flag
from cellseg_cli.signals import stoppable

if TYPE_CHECKING:
    from cellseg.runs import RunDir


def train(arguments: Arguments) -> Command:
    """The command, with the options of core, of the reader and of the backend."""
    line = Line(arguments)
    trainer, chosen = line.trainer(), line.preset
    groups, reader = line.training()

    def run(
        console: Console,
        given: Given,
        data: LabelledImages,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Run directory to make.", show_default=False)
        ],
        backend: TrainerName = None,
        preset: preset_flag(trainer) = None,  # type: ignore[valid-type]
        config: ConfigFile = None,
    ) -> None:
        """Train a model on labelled images.

        Give --backend to see that backend's own options as well.
        """
        from cellseg.workflows.train import train

        assert trainer is not None
        with stoppable() as interrupted, console.following("Training", "step") as emit:
            finished = train(
                line.plugins,
                trainer.name,
                data,
                output,
                settings=given.options(TrainSettings),
                reader_options=given.values(reader.model),
                options=given.values(trainer.options),
                emit=emit,
                interrupted=interrupted,
            )
        _show(console, finished)

    return Command(
        run, groups, line.file, line.configured, ("backend", "preset"), chosen, downloads=True
    )


def resume(arguments: Arguments) -> Command:
    """The command; everything else is in the run."""

    def run(
        console: Console,
        run: Annotated[
            Path,
            typer.Argument(
                metavar="RUN", help="Run directory, or that of a search.", show_default=False
            ),
        ],
        epochs: Annotated[
            int | None,
            typer.Option(min=1, help="A new total of epochs, those done included."),
        ] = None,
        device: Annotated[
            str | None, typer.Option(help="Where to go on: auto, cpu, cuda, cuda:1, mps.")
        ] = None,
    ) -> None:
        """Continue a training that was stopped, or train longer.

        It goes on from the last checkpoint, with the options that the run began with. So does a
        search of cellseg tune, or this computer joins one that runs elsewhere.
        """
        from cellseg.plugins import Plugins
        from cellseg.workflows.train import resume
        from cellseg.workflows.tune_request import FILE as SEARCH_FILE

        if (run / SEARCH_FILE).exists():
            _resume_search(console, run, epochs, device)
            return
        with stoppable() as interrupted, console.following("Training", "step") as emit:
            finished = resume(
                Plugins(), run, epochs=epochs, device=device, emit=emit, interrupted=interrupted
            )
        _show(console, finished)

    return Command(run, downloads=True)


def _resume_search(console: Console, run: Path, epochs: int | None, device: str | None) -> None:
    from cellseg.plugins import Plugins
    from cellseg.workflows.tune import resume_tune
    from cellseg_cli.commands.tuning import show

    if epochs is not None or device is not None:
        raise UsageError(
            f"{run} is a search: it goes on as it began, with no other --epochs or --device.",
            hint="Leave it out, or start a new search.",
        )
    with stoppable() as interrupted, console.following("Searching", "trial") as emit:
        found = resume_tune(Plugins(), run, emit=emit, interrupted=interrupted)
    show(console, found, run)


def _show(console: Console, run: "RunDir") -> None:
    from cellseg.events import Progress, Validated

    events = run.events()
    steps = [event for event in events if isinstance(event, Progress)]
    best = [event for event in events if isinstance(event, Validated) and event.best]
    metrics = dict(best[-1].metrics) if best else {}
    console.result(
        {
            "run": str(run.path),
            "model": str(run.model),
            "report": str(run.report),
            "steps": steps[-1].step if steps else 0,
            "best": {"step": best[-1].step, "metrics": metrics} if best else None,
        },
        [
            f"Model:  {run.model}",
            f"Report: {run.report}",
            f"Next:   cellseg predict IMAGES --model {run.path} -o OUT",
        ],
    )

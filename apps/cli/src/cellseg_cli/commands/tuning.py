"""``cellseg tune``."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg.errors import PartialError
from cellseg.options import Options
from cellseg.workflows.train_settings import TrainSettings
from cellseg.workflows.tune_settings import TuneSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, LabelledImages, Line, TrainerName, preset_flag
from cellseg_cli.signals import stoppable

if TYPE_CHECKING:
    from cellseg.workflows.tune import Tuned

_SEARCH = "Search"
_MOST_FAILURES = 5


def tune(arguments: Arguments) -> Command:
    """The command, with the options of core, of the reader and of the backend."""
    line = Line(arguments)
    trainer, chosen = line.trainer(), line.preset
    groups, reader = line.training([Group(TuneSettings, _SEARCH)])

    def run(
        console: Console,
        given: Given,
        data: LabelledImages,
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Directory to make.", show_default=False)
        ],
        search: Annotated[
            list[str] | None,
            typer.Option(
                "--search",
                metavar="NAME=VALUES",
                help="An option to search, and where: learning_rate=1e-5..1e-3:log, "
                "dropout=0..0.5:0.1, batch_size=1..8, mode=full,decoder; predict.NAME is an option "
                "of prediction. Give one for each.",
                rich_help_panel=_SEARCH,
            ),
        ] = None,
        space: Annotated[
            Path | None,
            typer.Option(
                "--space",
                help="YAML file of options to search: lists of values, or {low, high, log, step}.",
                rich_help_panel=_SEARCH,
            ),
        ] = None,
        backend: TrainerName = None,
        preset: preset_flag(trainer) = None,  # type: ignore[valid-type]
        config: ConfigFile = None,
    ) -> None:
        """Search for the options that score best, in many trainings.

        All trials train, validate and are scored on the same images. Options that are given as
        flags are the same in all of them. Give --backend to see that backend's own options.
        """
        from cellseg.tuning.searched import read_space
        from cellseg.workflows.tune import tune

        assert trainer is not None
        wanted = read_space(search or (), space)
        given = _without(given, wanted, {**trainer.aliases, **reader.aliases})
        with stoppable() as interrupted, console.following("Searching", "trial") as emit:
            found = tune(
                line.plugins,
                trainer.name,
                data,
                output,
                space=wanted,
                settings=given.options(TuneSettings),
                training=given.options(TrainSettings),
                reader_options=_fixed(given, reader.model),
                options=_fixed(given, trainer.options),
                emit=emit,
                interrupted=interrupted,
            )
        show(console, found, output)

    return Command(
        run, groups, line.file, line.configured, ("backend", "preset"), chosen, downloads=True
    )


def show(console: Console, found: "Tuned", output: Path) -> None:
    """Print what a search found.

    Raises:
        PartialError: some trials failed.
    """
    best = found.best
    failed = [trial for trial in found.trials if trial.state == "failed"]
    config = output / "best.yaml"
    lines = (
        []
        if best is None
        else [
            f"Best:   trial {best.number}, {found.score:.4g} on the images it was chosen by",
            *(f"        {name}: {value}" for name, value in found.options.items()),
        ]
    )
    if _all_the_same(found):
        lines.append(
            "        All trials score the same: that says nothing about the options. Train"
            " longer, or take another --metric."
        )
    lines += _of_test(found)
    lines.append(f"Report: {output / 'report.html'}")
    if config.exists():
        lines.append(f"Next:   cellseg train DATA --config {config} -o RUN")
    console.result(
        {
            "output": str(output),
            "best": None
            if best is None
            else {
                "trial": best.number,
                "score": found.score,
                "options": found.options,
                "scores": dict(best.scores),
                "run": str(output / best.folder),
            },
            "test": dict(found.test) if found.test is not None else None,
            "config": str(config) if config.exists() else None,
            "report": str(output / "report.html"),
            "table": str(output / "trials.csv"),
            "importance": found.importance,
            "trials": {state: found.count(state) for state in ("complete", "pruned", "failed")},
        },
        lines,
    )
    if failed:
        shown = "; ".join(f"trial {t.number}: {t.message}" for t in failed[:_MOST_FAILURES])
        more = f"; and {len(failed) - _MOST_FAILURES} more" if len(failed) > _MOST_FAILURES else ""
        raise PartialError(
            f"{len(failed)} of {len(found.trials)} trials failed: {shown}{more}",
            hint=f"Try them again: cellseg resume {output}",
        )
    if found.test is not None and "error" in found.test:
        raise PartialError(found.test["error"], hint=f"Try it again: cellseg resume {output}")


def _all_the_same(found: "Tuned") -> bool:
    scores = [trial.score for trial in found.trials if trial.state == "complete"]
    return len(scores) > 1 and len(set(scores)) == 1


def _of_test(found: "Tuned") -> list[str]:
    """What the best model scores on images that took no part."""
    if found.test is None or "scores" not in found.test:
        return []
    score, images = found.test["score"], found.test["images"]
    return [f"Test:   {score:.4g} on {images} image(s) that took no part, judged once"]


def _without(given: Given, searched: Iterable[str], aliases: Mapping[str, str]) -> Given:
    """What was given, without the options of the preset that are searched."""
    names = {aliases.get(name, name) for name in searched}
    return replace(given, preset={n: v for n, v in given.preset.items() if n not in names})


def _fixed(given: Given, model: type[Options]) -> Mapping[str, object]:
    """What was given for a class; it need not be allowed without what is searched."""
    every = model.over(given.preset, {**given.configured, **given.typed})
    return {name: value for name, value in every.items() if name in model.model_fields}

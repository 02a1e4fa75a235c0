"""``cellseg evaluate`` and ``cellseg report``."""

from pathlib import Path
from typing import Annotated

import typer

from cellseg.errors import DataError, PartialError, UsageError
from cellseg.locations import Location
from cellseg.plugins import Plugins
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line


def evaluate(arguments: Arguments) -> Command:
    """The command, with the options of the scores."""
    line = Line(arguments)

    def run(
        console: Console,
        given: Given,
        prediction: Annotated[
            Location,
            typer.Argument(
                metavar="PREDICTION",
                help="Predicted labels: a file or a folder.",
                show_default=False,
            ),
        ],
        truth: Annotated[
            Location,
            typer.Argument(
                metavar="TRUTH", help="True labels of the same names.", show_default=False
            ),
        ],
        csv: Annotated[
            Path | None, typer.Option(help="Also write all scores to this file.")
        ] = None,
        report: Annotated[
            Path | None, typer.Option(help="Also write this HTML page, the worst images first.")
        ] = None,
        images: Annotated[
            Location | None,
            typer.Option(
                help="The images, to draw contours on, for --report. If not given, those in "
                "TRUTH/images; if there are none, contours are drawn on black."
            ),
        ] = None,
        config: ConfigFile = None,
    ) -> None:
        """Score predicted labels against the truth."""
        from cellseg.report import views_of, write_evaluation_report
        from cellseg.workflows.evaluate import evaluate

        if images is not None and report is None:
            raise UsageError("--images is for the report.", hint="Add --report scores.html")
        plugins, settings = Plugins(), given.options(EvaluateSettings)
        if settings.ctc:
            if images is not None:
                raise UsageError("--images: the report on tracks (--ctc) has no pictures.")
            _score_tracks(console, prediction, truth, settings, csv, report)
            return
        with console.following("Scoring", "image") as emit:
            scores = evaluate(plugins, prediction, truth, settings, emit=emit)
        lines, written = scores.lines(), {}
        if csv is not None:
            scores.write_csv(csv)
            written["csv"] = str(csv)
        if report is not None:
            if images is None and (truth / "images").is_dir():
                images = truth
            write_evaluation_report(scores, report, images=views_of(plugins, scores, images))
            written["report"] = str(report)
        lines += [f"Written: {path}" for path in written.values()]
        console.result({**scores.to_dict(), **written}, lines)

    return Command(run, [Group(EvaluateSettings, "Scores")], line.file, line.configured)


def _score_tracks(
    console: Console,
    prediction: Path,
    truth: Path,
    settings: EvaluateSettings,
    csv: Path | None,
    report: Path | None,
) -> None:
    from cellseg.report import write_tracks_evaluation_report
    from cellseg.workflows.evaluate_tracks import evaluate_tracks

    with console.following("Scoring", "frame") as emit:
        scores = evaluate_tracks(prediction, truth, settings, emit=emit)
    written = {}
    if csv is not None:
        scores.write_csv(csv)
        written["csv"] = str(csv)
    if report is not None:
        write_tracks_evaluation_report(scores, report)
        written["report"] = str(report)
    lines = [*scores.lines(), *(f"Written: {path}" for path in written.values())]
    console.result({**scores.to_dict(), **written}, lines)
    if scores.invalid:
        partial = len(scores.invalid) < len(scores.movies)
        raise typer.Exit((PartialError if partial else DataError).exit_code)


def report(arguments: Arguments) -> Command:
    """The command."""

    def run(
        console: Console,
        run: Annotated[
            Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)
        ],
    ) -> None:
        """Write the report page of a run again."""
        from cellseg.report import write_run_report
        from cellseg.runs import RunDir

        page = write_run_report(RunDir(run))
        console.result({"report": str(page)}, [f"Written: {page}"])

    return Command(run)

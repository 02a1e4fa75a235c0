"""``cellseg evaluate`` and ``cellseg report``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg.errors import DataError, UsageError
from cellseg.plugins import Plugins
from cellseg_cli.arguments import Arguments
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group
from cellseg_cli.lookup import ConfigFile, Line

if TYPE_CHECKING:
    from cellseg.report.evaluation import View
    from cellseg.workflows.evaluate_pairs import LabelPair


def evaluate(arguments: Arguments) -> Command:
    """The command, with the options of the scores."""
    from cellseg.workflows.evaluate_settings import EvaluateSettings

    line = Line(arguments)

    def run(
        console: Console,
        given: Given,
        prediction: Annotated[
            Path, typer.Argument(help="Predicted labels: a file or a folder.", show_default=False)
        ],
        truth: Annotated[
            Path, typer.Argument(help="True labels of the same names.", show_default=False)
        ],
        csv: Annotated[
            Path | None, typer.Option(help="Also write all scores to this file.")
        ] = None,
        report: Annotated[
            Path | None, typer.Option(help="Also write this HTML page, the worst images first.")
        ] = None,
        images: Annotated[
            Path | None, typer.Option(help="The images, to draw contours on, for --report.")
        ] = None,
        config: ConfigFile = None,
    ) -> None:
        """Score predicted labels against the truth."""
        from cellseg.report import write_evaluation_report
        from cellseg.workflows.evaluate import evaluate
        from cellseg.workflows.evaluate_pairs import label_pairs

        if images is not None and report is None:
            raise UsageError("--images is for the report.", hint="Add --report scores.html")
        plugins, settings = Plugins(), given.options(EvaluateSettings)
        with console.following("Scoring", "image") as emit:
            scores = evaluate(plugins, prediction, truth, settings, emit=emit)
        lines, written = scores.lines(), {}
        if csv is not None:
            scores.write_csv(csv)
            written["csv"] = str(csv)
        if report is not None:
            pairs = {p.name: p for p in label_pairs(plugins, prediction, truth, settings)}
            write_evaluation_report(
                scores,
                report,
                images=_views(plugins, pairs, images),
            )
            written["report"] = str(report)
        lines += [f"Written: {path}" for path in written.values()]
        console.result({**scores.to_dict(), **written}, lines)

    return Command(run, [Group(EvaluateSettings, "Scores")], line.file, line.configured)


def report(arguments: Arguments) -> Command:
    """The command."""

    def run(
        console: Console,
        run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    ) -> None:
        """Write the report page of a run again."""
        from cellseg.report import write_run_report
        from cellseg.runs import RunDir

        page = write_run_report(RunDir(run))
        console.result({"report": str(page)}, [f"Written: {page}"])

    return Command(run)


def _views(
    plugins: Plugins, pairs: Mapping[str, "LabelPair"], images: Path | None
) -> Callable[[str], "View"]:
    """What the report draws of an image: its labels, on the image where there is one."""
    from cellseg.readers import open_dataset
    from cellseg.report.evaluation import View

    found = {}
    if images is not None:
        found = {s.name: s for s in open_dataset(plugins, images, "auto", {}, labelled=False)}

    def view(name: str) -> View:
        if images is not None and name not in found:
            raise DataError(
                f"--images {images}: there is no image called {name}.",
                hint=f"There are: {', '.join(list(found)[:5])}.",
            )
        return View(
            prediction=pairs[name].prediction.labels,
            truth=pairs[name].truth.labels,
            image=found[name].image if images is not None else None,
        )

    return view

"""The report of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.report.curves import Chart, Series, chart, scatter
from cellseg.report.page import number, shown, versions, write_page
from cellseg.tuning.library import masked
from cellseg.tuning.search import Tuned, said
from cellseg.tuning.space import Parameter
from cellseg.tuning.trials import Trial, ranked

if TYPE_CHECKING:
    from cellseg.workflows.tune_request import TuneDir, TuneRequest

_MOST_ROWS = 500
_MOST_NAMES = 8
"""Values of an option that are named below a chart; more would lie on each other."""
_LONGEST = 14


def write_tune_report(folder: TuneDir, request: TuneRequest, found: Tuned) -> Path:
    """Write ``report.html`` of a search, finished or not.

    Args:
        folder: the search on disk.
        request: what was asked for.
        found: the trials so far.

    Returns:
        The page: one file that loads nothing else.

    Raises:
        StorageError: the page cannot be written.
    """
    from cellseg.workflows.tune_results import maximises

    how = request.how
    maximise = request.function or maximises(how.metric)
    best, test = found.best, found.test
    rows = [*ranked(found.trials, maximise), *(t for t in found.trials if t.score is None)]
    storage = masked(how.storage) if how.storage is not None else "study.db beside this page"
    page = {
        "name": folder.path.absolute().name,
        "folder": folder.path,
        "request": request,
        "how": how,
        "metric": "score" if request.function else how.metric,
        "maximise": maximise,
        "finished": all(trial.finished for trial in found.trials),
        "found": found,
        "best": best,
        "best_said": said(best.options) if best is not None else "",
        "config": folder.best.exists(),
        "predict": folder.predict.exists(),
        "test": test,
        "test_score": test["scores"].get(how.metric) if test and "scores" in test else None,
        "names": [one.name for one in request.space.parameters],
        "rows": rows[:_MOST_ROWS],
        "hidden": max(len(rows) - _MOST_ROWS, 0),
        "failures": [trial for trial in found.trials if trial.state == "failed"],
        "reported": any(trial.reported for trial in found.trials),
        "history": history(found.trials, maximise),
        "scatters": scatters(request.space.parameters, found),
        "importance": sorted(found.importance.items(), key=lambda item: -item[1]),
        "space": {one.name: str(one) for one in request.space.parameters},
        "fixed": {**request.settings, **request.reader_options, **request.options},
        "searching": {
            "sampler": how.sampler,
            "trials": len(found.trials),
            "seed": request.seed,
            "stops bad trials early": how.pruned,
            "database": storage,
            **({} if request.function else {"score": how.metric}),
        },
        "versions": versions(
            request.cellseg_version,
            "" if request.function else request.backend,
            request.backend_version,
        ),
    }
    return write_page("tuning.html.j2", folder.report, page)


def history(trials: Sequence[Trial], maximise: bool) -> Chart | None:
    """The score of each trial, and the best so far."""
    scored = [(float(trial.number), trial.score) for trial in trials if trial.score is not None]
    if not scored:
        return None
    best: list[tuple[float, float]] = []
    for place, score in scored:
        before = best[-1][1] if best else score
        best.append((place, max(before, score) if maximise else min(before, score)))
    lines = [
        Series("each trial", scored, markers=True, style=1),
        Series("best so far", best, style=0),
    ]
    return chart("score by trial", lines, "trial", whole=True, wide=False)


def scatters(parameters: Sequence[Parameter], found: Tuned) -> list[Chart]:
    """The scores over the values of each option; the most important option first."""
    order = sorted(parameters, key=lambda one: -found.importance.get(one.name, 0.0))
    drawn = [_scatter(one, found) for one in order]
    return [one for one in drawn if one is not None]


def _scatter(one: Parameter, found: Tuned) -> Chart | None:
    scored = [t for t in found.trials if t.score is not None and one.name in t.options]
    numbers = all(_is_number(t.options[one.name]) for t in scored)
    values = list(one.choices)
    named = bool(values) and not (numbers and len(values) > _MOST_NAMES)
    points = []
    for trial in scored:
        value = trial.options[one.name]
        place = float(values.index(value)) if named else float(value) if numbers else None
        if place is not None and trial.score is not None:
            text = f"trial {trial.number}: {number(trial.score)} at {shown(value)}"
            points.append((place, trial.score, text))
    best = next((i for i, t in enumerate(scored) if t == found.best), None)
    few = named and len(values) <= _MOST_NAMES
    return scatter(
        one.name,
        points,
        f"{one.name} (log scale)" if one.log else one.name,
        names=[_short(shown(value)) if few else "" for value in values] if named else (),
        wide=one.log,
        whole=one.whole,
        best=best if len(points) == len(scored) else None,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

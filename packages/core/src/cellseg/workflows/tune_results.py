"""What a search leaves: the best options, a table, a report, and the score on other images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.bundle import Bundle
from cellseg.errors import CellsegError, ConfigError, InterruptedRunError
from cellseg.events import Emit, Failed
from cellseg.files import write_atomic
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg.specs import TrainerSpec
from cellseg.tuning.search import Tuned, result
from cellseg.tuning.study import Study
from cellseg.tuning.trials import write_table
from cellseg.tuning.worker import Objective
from cellseg.workflows.tune_objective import TrainAndJudge
from cellseg.workflows.tune_request import TuneDir, TuneRequest

TEST = "test"
"""The note of a study that holds the scores of its best model on the test images."""


def known_metric(name: str) -> None:
    """Refuse a score that nobody computes.

    Raises:
        ConfigError: with the nearest name.
    """
    from cellseg.metrics import score

    known = list(score([_empty()]))
    if name not in known:
        spelt = [each for each in known if _threshold(each) == _threshold(name)]  # f1@0.5
        close = spelt or get_close_matches(name, known, n=1)
        raise ConfigError(
            f"--metric {name}: there is no such score.",
            hint=f"Did you mean {close[0]}?" if close else f"Scores: {', '.join(known)}.",
        )
    if name.startswith(("n_", "tp@", "fp@", "fn@")):
        raise ConfigError(
            f"--metric {name}: it counts objects, and says nothing about how good they are.",
            hint="Such as f1@0.50 or mSA@0.50:0.95; see cellseg evaluate.",
        )


def _threshold(name: str) -> tuple[str, float | str]:
    """What is measured, and from which IoU on, however the number is written."""
    what, _, number = name.partition("@")
    try:
        return what, float(number)
    except ValueError:
        return what, number


def maximises(name: str) -> bool:
    """Whether higher is better."""
    from cellseg.workflows.judge import lower_is_better

    return not lower_is_better(name)


def finish(
    plugins: Plugins,
    folder: TuneDir,
    request: TuneRequest,
    study: Study,
    objective: Objective,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> Tuned:
    """Write down what was found so far; where all trials are done, judge the best on the test."""
    from cellseg.report.tuning import write_tune_report

    found = result(study)
    before = study.notes.get(TEST)
    if found.best is not None and before is not None and before["trial"] == found.best.number:
        found = replace(found, test=before)
    write_table(found.trials, request.space, folder.table)
    if found.best is not None and isinstance(objective, TrainAndJudge):
        chosen = objective.chosen(found.options)
        train = {"backend": request.backend, "reader": request.reader, **chosen.training}
        if plugins.get(TrainerSpec, request.backend).examples:
            train.pop("val", None)  # which a training of one go does not take
        _write(folder.best, train)
        if chosen.predict:
            _write(folder.predict, chosen.predict)
        done = all(trial.finished for trial in found.trials)
        model = _model(folder, objective, found)
        if done and model is not None:
            _keep_predict_options(model, chosen.predict)
            untested = found.test is None or "scores" not in found.test
            if untested and not interrupted():
                write_tune_report(folder, request, found)
                found = _tested(plugins, study, objective, found, model, emit, interrupted)
    write_tune_report(folder, request, found)
    return found


def _model(folder: TuneDir, objective: TrainAndJudge, found: Tuned) -> RunDir | None:
    """The run of the best trial, if it lies here and not on another computer."""
    assert found.best is not None
    path = objective.trained or folder.path / found.best.folder
    return RunDir(path) if (path / "model" / BUNDLE_FILE).exists() else None


def _keep_predict_options(run: RunDir, predict: Mapping[str, Any]) -> None:
    """Make the best options of prediction the defaults of the best model."""
    bundle = Bundle.load(run.model)
    wanted = {**bundle.predict, **predict}
    if wanted != bundle.predict:
        bundle.model_copy(update={"predict": wanted}).save(run.model)


def _tested(
    plugins: Plugins,
    study: Study,
    objective: TrainAndJudge,
    found: Tuned,
    run: RunDir,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> Tuned:
    """Judge the best model on the test images, if there are some; what was found, with that."""
    from cellseg.workflows.judge import judge

    assert found.best is not None
    note: dict[str, Any] = {"trial": found.best.number}
    try:
        samples = objective.tested(run)
        if not samples:
            return found
        device = str(objective.settings.get("device", "auto"))
        judged = judge(plugins, run.path, samples, device=device, interrupted=interrupted)
    except InterruptedRunError:
        raise InterruptedRunError(
            "Stopped while the best model was judged on the test images; all trials are done.",
            hint="Go on with: cellseg resume, and the folder of the search.",
        ) from None
    except CellsegError as error:
        note["error"] = f"The best model could not be judged on the test images: {error}"
        emit(Failed("The test", str(error)))
    else:
        scores = {name: float(value) for name, value in judged.scores.items()}
        note |= {"images": len(samples), "score": scores[objective.metric], "scores": scores}
    study.note(TEST, note)
    return replace(found, test=note)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    import yaml

    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    write_atomic(path, text)


def _empty() -> Any:
    from cellseg.metrics import Tally
    from cellseg.metrics.scores import THRESHOLDS

    nothing = (0,) * len(THRESHOLDS)
    return Tally(thresholds=THRESHOLDS, matched=nothing, matched_iou=(0.0,) * len(THRESHOLDS))

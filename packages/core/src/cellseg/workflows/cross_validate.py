"""Cross-validation of any backend: each image is judged by a model that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.errors import (
    CellsegError,
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    WeightsError,
)
from cellseg.events import Emit, Event, Failed, Note, Progress
from cellseg.files import remove
from cellseg.locks import LOCK, refuse_busy, sole
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.runs import FILE as RUN_FILE
from cellseg.runs import RunDir
from cellseg.workflows.cross_validate_folds import Folder
from cellseg.workflows.cross_validate_plan import Plan
from cellseg.workflows.cross_validate_results import (
    MAIN,
    Comparison,
    CrossValidation,
    FoldScores,
    compared,
    read_judged,
)
from cellseg.workflows.cross_validate_settings import IDLE, CrossValidateSettings
from cellseg.workflows.evaluate_text import text_of
from cellseg.workflows.judge import Judged, judge
from cellseg.workflows.train import resume, train
from cellseg.workflows.train_settings import TrainSettings

_T = TypeVar("_T")


def cross_validate(
    plugins: Plugins,
    backend: str,
    data: Path,
    out: Path,
    *,
    settings: CrossValidateSettings | None = None,
    train_settings: TrainSettings | None = None,
    reader_options: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
    runs: str = "fold-{}",
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> CrossValidation:
    """Train a model for each fold, and judge it on the images of the fold, which it never saw.

    The images are divided by source into folds. For each fold a new model is trained on the
    others, of which the share ``train_settings.val_fraction`` validates: it chooses the best
    weights and the thresholds, so that the held-out images are judged by nothing that was tuned on
    them. Each fold is an ordinary run in ``out/fold-0`` and so on; all scores are in
    ``out/results.json``, ``results.csv`` and ``report.html``.

    Args:
        plugins: where to find the backend and the reader.
        backend: name of a trainer that learns from labelled images.
        data: images with labels, as some reader understands them.
        out: the folder to make; with ``settings.resume`` one that was begun.
        settings: folds and comparisons.
        train_settings: core's options of each training; those that divide the images must be at
            their defaults.
        reader_options: options of the reader, by name.
        options: options of the backend, as ``train`` takes them.
        runs: what the run directories are called; ``{}`` is the number of the fold.
        emit: gets the events of all trainings; steps and their total are counted over all folds.
        interrupted: asked after each step; True stops with the state saved.

    Raises:
        UsageError: ``out`` holds a cross-validation and is not to be resumed, or the reverse.
        ConfigError: the backend learns from examples; an option is unknown, not allowed, does
            nothing here, or is not what the cross-validation began with.
        DataError: too few source images; ``settings.against`` is not finished, or held out other
            images.
        InterruptedRunError: stopped; everything that is done is kept.
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    how = settings or CrossValidateSettings()
    plan = Plan.of(
        plugins,
        backend,
        data,
        how,
        train_settings or TrainSettings(),
        reader_options or {},
        options or {},
    )
    folder = Folder(out, runs)
    if folder.request.exists():
        refuse_busy(out, out / LOCK)
    folder.check_startable(how.resume)
    others = _others(how.against, plan, out)
    with sole(out, out / LOCK, emit=emit):
        folder.check_startable(how.resume)  # again: another process may have begun
        folder.start(plan.request(), plan.folds, how.resume)
        work = _Work(plugins, plan, folder, how, _Steps(emit, len(plan.folds)), interrupted)
        try:
            folds = tuple(work.fold(number) for number in range(len(plan.folds)))
        except InterruptedRunError:
            raise InterruptedRunError(
                "Stopped; all finished folds and the state of this one are kept.",
                hint="Go on with the same command and --resume.",
            ) from None
        comparisons = tuple(_comparisons(folds, how, others, plan.settings.seed))
        found = CrossValidation(
            folder=folder, backend=backend, data=data, folds=folds, comparisons=comparisons
        )
        from cellseg.report.cross_validation import write_cross_validation_report

        write_cross_validation_report(found, plan.request())
        found.save()
    return found


class _Steps:
    """Passes events on, and counts the steps over all folds.

    Args:
        emit: gets the events.
        folds: how many are left.
    """

    def __init__(self, emit: Emit, folds: int) -> None:
        self._emit, self._left = emit, folds
        self._before, self._here = 0, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._here = event.total or event.step
            total = self._before + self._left * event.total if event.total else event.total
            event = replace(event, step=self._before + event.step, total=total)
        self._emit(event)

    def judging(self, event: Event) -> None:
        """Pass on only what a prediction says of failures and in words."""
        if isinstance(event, Failed | Note):
            self._emit(event)

    def finished(self) -> None:
        """A fold is done."""
        self._before, self._here, self._left = self._before + self._here, 0, self._left - 1


@dataclass(frozen=True)
class _Work:
    """The trainings and judgements of all folds."""

    plugins: Plugins
    plan: Plan
    folder: Folder
    how: CrossValidateSettings
    steps: _Steps
    interrupted: Callable[[], bool]

    def fold(self, number: int) -> FoldScores:
        """Do what is left of a fold."""
        plan, splits = self.plan, self.plan.folds[number]
        found = FoldScores(
            fold=number,
            run=self.folder.run(number),
            train=plan.sources(splits.train),
            val=plan.sources(splits.val),
            sources={sample.name: sample.group for sample in plan.held_out(number)},
            judged=Judged(scores={}, per_image={}),
        )
        judged = self.folder.kept("fold", number)
        before = self.folder.kept("before", number) if self.how.before else None
        if judged is None or (before is None and self.how.before):
            self.steps(
                Note(
                    f"Fold {number} ({number + 1} of {len(plan.folds)}): {found.train} source "
                    f"image(s) train, {found.val} validate, {found.test} are held out."
                )
            )
        if before is None and self.how.before:
            before = self._before(number)
        if judged is None:
            self._train(number)
            judged = self._judge(found.run, "fold", number)
            self.steps(Note(f"Fold {number}, held-out images: {_brief(judged)}"))
        self.steps.finished()
        return replace(found, judged=judged, before=before)

    def _train(self, fold: int) -> None:
        run = self.folder.run(fold)
        if (run / "model" / BUNDLE_FILE).is_file():
            return
        go_on = (run / RUN_FILE).is_file()
        if not go_on and run.exists():  # killed before it had begun
            remove(run)
        if go_on:
            device = self.plan.settings.device
            resume(self.plugins, run, device=device, emit=self.steps, interrupted=self.interrupted)
            return
        begin = partial(self._begin, fold, run, self.plan.settings, self.plan.options, self.steps)
        self._first(begin) if fold == 0 else begin()

    def _before(self, fold: int) -> Judged:
        """Judge the model that a training starts from; only its scores are kept."""
        run = self.folder.untrained(fold)
        if run.exists():
            remove(run)
        settings = self.plan.settings.model_copy(update={"epochs": 0})
        options, quiet = self.plan.untrained, self.steps.judging

        def begin() -> Judged:
            self._begin(fold, run, settings, options, quiet)
            try:
                return self._judge(run, "before", fold)
            except ConfigError as error:
                remove(run)
                raise ConfigError(
                    "--before: the model that the trainings start from cannot segment: "
                    f"{str(error).removeprefix(f'--model {RunDir(run).model}: ')}",
                    hint="Leave --before out.",
                ) from error

        judged = self._first(begin) if fold == 0 else begin()
        remove(run)
        self.steps(Note(f"Fold {fold}, held-out images before training: {_brief(judged)}"))
        return judged

    def _begin(
        self,
        fold: int,
        run: Path,
        settings: TrainSettings,
        options: Mapping[str, object],
        emit: Emit,
    ) -> None:
        values = settings.model_dump(exclude_unset=True)
        values = {name: value for name, value in values.items() if name not in IDLE}
        values = {name: value for name, value in values.items() if name != "val_fraction"}
        values |= {"splits": self.folder.splits(fold), "reader": self.plan.reader}
        if not settings.epochs:
            values["epochs"] = 0
        train(
            self.plugins,
            self.plan.spec.name,
            self.plan.data,
            run,
            settings=parse(TrainSettings, values),
            reader_options=self.plan.reading,
            options=options,
            emit=emit,
            interrupted=self.interrupted,
        )

    def _first(self, begin: Callable[[], _T]) -> _T:
        """Begin; what the backend itself refuses leaves nothing behind."""
        try:
            return begin()
        except (ConfigError, DataError, DeviceError, WeightsError):
            runs = [self.folder.run(0), self.folder.untrained(0), self.folder.path / "scores"]
            if not any(run.exists() for run in runs):
                self.folder.forget()
            raise

    def _judge(self, run: Path, kind: str, fold: int) -> Judged:
        try:
            judged = judge(
                self.plugins,
                run,
                self.plan.held_out(fold),
                device=self.plan.settings.device,
                emit=self.steps.judging,
                interrupted=self.interrupted,
            )
        except CellsegError as error:
            error.add_note(f"while judging fold {fold}")
            raise
        self.folder.keep(kind, fold, judged)
        return judged


def _others(against: Path | None, plan: Plan, out: Path) -> list[Judged] | None:
    """The scores of the other cross-validation, by fold.

    Raises:
        DataError: it is not finished, or held out other images.
        ConfigError: it is this one.
    """
    if against is None:
        return None
    if against.resolve() == out.resolve():
        raise ConfigError(
            f"--against {against}: a cross-validation cannot be compared with itself.",
            hint="Give the folder of another one, or leave it out.",
        )
    others = read_judged(against)
    if len(others) != len(plan.folds):
        raise DataError(
            f"--against {against} has {len(others)} folds, and this one {len(plan.folds)}.",
            hint=f"Use the same images, --seed and --folds {len(others)}.",
        )
    for fold, (splits, judged) in enumerate(zip(plan.folds, others, strict=True)):
        differing = sorted(set(splits.test) ^ judged.per_image.keys())
        if differing:
            raise DataError(
                f"--against {against}: fold {fold} holds out other images than here, such as "
                f"{differing[0]!r}.",
                hint="Use the same images and --seed: the same images must be held out together.",
            )
    return others


def _comparisons(
    folds: tuple[FoldScores, ...],
    how: CrossValidateSettings,
    others: list[Judged] | None,
    seed: int,
) -> list[Comparison]:
    found = []
    if how.before:
        before = [fold.before for fold in folds if fold.before is not None]
        found.append(compared(folds, before, "before", seed))
    if others is not None:
        found.append(compared(folds, others, str(how.against), seed))
    return found


def _brief(judged: Judged) -> str:
    return ", ".join(f"{name} {text_of(judged.scores[name])}" for name in MAIN[:2])

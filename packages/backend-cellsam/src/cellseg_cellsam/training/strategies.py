"""How an experiment divides its images, and trains and judges on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.data import Dataset
from cellseg.events import Emit, Event, Failed, Note
from cellseg.files import remove
from cellseg.plugins import Plugins
from cellseg.runs import FILE as RUN_FILE
from cellseg.runs import RunDir
from cellseg.splits import Splits, held_out
from cellseg.workflows.cross_validate_folds import Folder
from cellseg.workflows.judge import Judged
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cellsam.training.config import ExperimentConfig
from cellseg_cellsam.training.results import FoldResult

BACKEND = "cellsam"
RUNS = "fold_{}"
"""What the run directories of an experiment are called."""


class TrainingStrategy(ABC):
    """Trains and judges the models of an experiment in ``models`` in its folder.

    What is done already is not done again, and what was stopped goes on.

    Args:
        config: of the experiment.
        plugins: where to find the backend and the readers; if not given, what is installed.
    """

    name: ClassVar[str]
    """What ``ExperimentConfig.strategy`` calls it."""

    def __init__(self, config: ExperimentConfig, plugins: Plugins | None = None) -> None:
        self.config = config
        self.plugins = plugins or Plugins()
        self.folder = Folder(config.folder / "models", RUNS)

    @abstractmethod
    def run(
        self,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[FoldResult, ...]:
        """Train what is not trained, and judge what is not judged.

        Args:
            emit: gets what happens.
            interrupted: asked after each step; True stops with the state saved.

        Raises:
            InterruptedRunError: stopped; run it again to go on.
            CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
        """

    @staticmethod
    def of(config: ExperimentConfig, plugins: Plugins | None = None) -> TrainingStrategy:
        """The strategy that a configuration names."""
        kinds = (KFoldStrategy, TrainValSplitStrategy, FullDatasetStrategy)
        (kind,) = (kind for kind in kinds if kind.name == config.strategy)
        return kind(config, plugins)

    def _samples(self) -> Dataset:
        from cellseg.readers import open_dataset

        config = self.config
        reader = config.train_settings().reader
        return open_dataset(self.plugins, config.img_path, reader, config.reading(), labelled=True)

    def _result(self, fold: int, judged: Judged | None, before: Judged | None) -> FoldResult:
        run = RunDir(self.folder.run(fold))
        splits = Splits.load(run.splits)
        groups = {s.name: s.group for s in held_out(self._samples(), splits)} if splits.test else {}
        return FoldResult(
            fold=fold,
            run=run.path,
            train=splits.train,
            val=splits.val,
            test=splits.test,
            scores=judged.scores if judged else {},
            per_image=judged.per_image if judged else {},
            start_scores=before.scores if before else {},
            start_per_image=before.per_image if before else {},
            groups=groups,
        )


class KFoldStrategy(TrainingStrategy):
    """Folds by source image: each image is judged by a model that never saw it, of images of
    which it chose neither weights nor thresholds (``cellseg.workflows.cross_validate``)."""

    name = "k_fold"

    def run(
        self,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[FoldResult, ...]:
        """As ``TrainingStrategy.run``; a fresh model for each fold."""
        from cellseg.workflows.cross_validate import cross_validate
        from cellseg.workflows.cross_validate_settings import CrossValidateSettings

        config = self.config
        settings = {**_given(config.train_settings()), "val_fraction": config.val_fraction}
        found = cross_validate(
            self.plugins,
            BACKEND,
            config.img_path,
            self.folder.path,
            settings=CrossValidateSettings(
                folds=config.k_folds,
                before=config.preeval,
                resume=self.folder.request.is_file(),
            ),
            train_settings=TrainSettings(**settings),
            reader_options=config.reading(),
            options=config.given_options(),
            runs=RUNS,
            emit=emit,
            interrupted=interrupted,
        )
        return tuple(self._result(one.fold, one.judged, one.before) for one in found.folds)


class TrainValSplitStrategy(TrainingStrategy):
    """One division of the images: some validate, some are kept for the result, the others train."""

    name = "train_val_split"

    def run(
        self,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[FoldResult, ...]:
        """As ``TrainingStrategy.run``, with one model."""
        config, folder = self.config, self.folder
        settings = {
            **_given(config.train_settings()),
            "val_fraction": config.val_fraction,
            "test_fraction": config.test_fraction,
        }
        before = folder.kept("before", 0) if config.preeval else None
        if config.preeval and before is None:
            before = self._before(settings, emit, interrupted)
        run = _trained(self, settings, emit, interrupted)
        judged = folder.kept("fold", 0)
        if judged is None:
            judged = self._judge(run, "fold", emit, interrupted)
        return (self._result(0, judged, before),)

    def _before(
        self, settings: dict[str, Any], emit: Emit, interrupted: Callable[[], bool]
    ) -> Judged:
        """Judge the model that the training starts from; only its scores are kept."""
        from cellseg.workflows.train import train

        run = self.folder.untrained(0)
        if run.exists():
            remove(run)
        config = self.config
        options = {n: v for n, v in config.given_options().items() if not n.endswith("_epochs")}
        train(
            self.plugins,
            BACKEND,
            config.img_path,
            run,
            settings=TrainSettings(**{**settings, "epochs": 0}),
            reader_options=config.reading(),
            options={n: v for n, v in options.items() if n != "fast_dev_run"},
            emit=_judging(emit),
            interrupted=interrupted,
        )
        judged = self._judge(run, "before", emit, interrupted)
        remove(run)
        return judged

    def _judge(self, run: Path, kind: str, emit: Emit, interrupted: Callable[[], bool]) -> Judged:
        from cellseg.workflows.judge import judge

        judged = judge(
            self.plugins,
            run,
            held_out(self._samples(), Splits.load(RunDir(run).splits)),
            device=self.config.device,
            emit=_judging(emit),
            interrupted=interrupted,
        )
        self.folder.keep(kind, 0, judged)
        return judged


class FullDatasetStrategy(TrainingStrategy):
    """All images train. No image is left to choose weights or thresholds by, or to judge the
    model, so the results hold no scores."""

    name = "full_dataset"

    def run(
        self,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[FoldResult, ...]:
        """As ``TrainingStrategy.run``, with one model, and without scores."""
        settings = {**_given(self.config.train_settings()), "split": "full"}
        _trained(self, settings, emit, interrupted)
        return (self._result(0, None, None),)


def _given(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(exclude_unset=True)


def _trained(
    strategy: TrainingStrategy,
    settings: dict[str, Any],
    emit: Emit,
    interrupted: Callable[[], bool],
) -> Path:
    """The run directory of the only fold, trained."""
    from cellseg.workflows.train import resume, train

    config, run = strategy.config, strategy.folder.run(0)
    if (RunDir(run).model / BUNDLE_FILE).is_file():
        return run
    if (run / RUN_FILE).is_file():
        resume(strategy.plugins, run, device=config.device, emit=emit, interrupted=interrupted)
        return run
    if run.exists():  # killed before it had begun
        remove(run)
    train(
        strategy.plugins,
        BACKEND,
        config.img_path,
        run,
        settings=TrainSettings(**settings),
        reader_options=config.reading(),
        options=config.given_options(),
        emit=emit,
        interrupted=interrupted,
    )
    return run


def _judging(emit: Emit) -> Emit:
    """Passes on only what a prediction says of failures and in words: it counts its own steps."""

    def pass_on(event: Event) -> None:
        if isinstance(event, Failed | Note):
            emit(event)

    return pass_on

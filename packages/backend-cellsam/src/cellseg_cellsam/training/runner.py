"""Runs an experiment, and writes what it found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cellseg.errors import CellsegError, ConfigError, DataError
from cellseg.events import Emit
from cellseg.files import make_folder, replacing, write_atomic
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg_cellsam.training.config import ExperimentConfig
from cellseg_cellsam.training.epochs import write_stage_metrics
from cellseg_cellsam.training.log import ExperimentLog
from cellseg_cellsam.training.results import ExperimentResults
from cellseg_cellsam.training.strategies import TrainingStrategy

CONFIG = "experiment_config.json"


class ExperimentRunner:
    """An experiment: its trainings, their scores, pictures and metrics, in one folder.

        output/NAME/
            experiment_config.json
            logs/experiment.log
            models/fold_0/            a run directory, as cellseg train writes it, and
                best_model_s1.safetensors, best_model_s2.safetensors
            results/individual_results.json, aggregated_results.json
            results/fold_0/visualizations/*.png
            metrics/stage1_metrics.json, stage2_metrics.json

    Args:
        config: what to do; it is read when ``run`` is called.
        plugins: where to find the backend and the readers; if not given, what is installed.
    """

    def __init__(self, config: ExperimentConfig, plugins: Plugins | None = None) -> None:
        self.config = config
        self._plugins = plugins

    def run(
        self,
        *,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> ExperimentResults:
        """Do all of it, or what is left of it: an experiment that was stopped goes on.

        Args:
            emit: gets what happens, beside the log.
            interrupted: asked after each step; True stops with the state saved.

        Raises:
            ConfigError: an option is unknown, not allowed, would do nothing, or is given twice; or
                the experiment was begun with another configuration.
            DataError: the images cannot be used, or the folder holds something else.
            InterruptedRunError: stopped; run it again to go on.
            CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
        """
        config = self.config
        config.train_options(), config.train_settings(), config.reading()
        self._check_start()
        self._begin()
        log = ExperimentLog(
            config.folder / "logs" / "experiment.log", debug=config.debug, device=config.device
        )
        log.line(f"experiment {config.output_name}: {config.strategy}, images {config.img_path}")
        log.memory("memory at the start")
        try:
            folds = TrainingStrategy.of(config, self._plugins).run(log.events(emit), interrupted)
        except CellsegError as error:
            log.line(f"stopped: {type(error).__name__}: {error}")
            raise
        results = ExperimentResults(path=config.folder, strategy=config.strategy, individual=folds)
        for fold in folds:
            self._finish(fold.fold, fold.run, log)
        write_stage_metrics(
            {f"fold_{fold.fold}": RunDir(fold.run) for fold in folds}, config.folder / "metrics"
        )
        results.save()
        log.memory("memory at the end")
        log.line(f"finished: {results}")
        return results

    def _check_start(self) -> None:
        """See whether there is a start model that could be judged."""
        from cellseg_cellsam.description import FILE

        path = self.config.checkpoint
        places = () if path is None else (path / "model" / FILE, path / FILE)
        if self.config.preeval and not any(place.is_file() for place in places):
            raise ConfigError(
                "preeval: the detector starts from random weights, and finds no cells.",
                hint="Start from a model of cellsam, with checkpoint=RUN, or leave preeval out.",
            )

    def _begin(self) -> None:
        """Take the folder, or see that it is of this experiment."""
        folder, text = self.config.folder, self.config.to_json()
        file, models = folder / CONFIG, folder / "models"
        if folder.exists() and not file.is_file() and any(folder.iterdir()):
            raise DataError(
                f"{folder} exists, and holds no experiment.", hint="Choose another output_name."
            )
        if file.is_file() and models.is_dir() and any(models.iterdir()):
            differing = _differing(ExperimentConfig.load(file), ExperimentConfig.load_text(text))
            if differing:
                raise ConfigError(
                    f"{folder}: this experiment was begun with other values of"
                    f" {', '.join(differing)}.",
                    hint=f"Choose another output_name, or go on with {file}.",
                )
        make_folder(folder)
        write_atomic(file, text)

    def _finish(self, fold: int, run: Path, log: ExperimentLog) -> None:
        from cellseg_cellsam.training.utils.visualizer import TrainingVisualizer

        for stage, weights in _best_weights(run).items():
            _link(weights, run / f"best_model_{stage}.safetensors")
        place = self.config.folder / "results" / f"fold_{fold}" / "visualizations"
        drawn = TrainingVisualizer(run, place).draw_all()
        log.line(f"fold_{fold}: {len(drawn)} pictures in {place}")


def _best_weights(run: Path) -> dict[str, Path]:
    """The weights that each stage left: those of its best validation, in which the other parts of
    the model are as they were then."""
    from cellseg.torch.weights import FILE

    directory = RunDir(run)
    stage = directory.request().options.get("stage")
    first = directory.checkpoint / "stage1" / "model" / FILE
    found = {"s1": first} if first.is_file() else {}
    last = directory.model / FILE
    return {**found, "s1" if stage == "1" else "s2": last}


def _link(source: Path, target: Path) -> None:
    """One file under two names, or a copy where the file system cannot do that."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _differing(one: ExperimentConfig, other: ExperimentConfig) -> list[str]:
    """The attributes that differ, but for the device."""
    names = [name for name in type(one).model_fields if name != "device"]
    return [name for name in names if getattr(one, name) != getattr(other, name)]

"""One trial of a search: an experiment, scored by its validation images."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.files import write_atomic
from cellseg_cellsam.training.config import ExperimentConfig

EXPERIMENT = "experiment"
"""The folder of a trial's experiment in that of the trial."""
SCORE = "score.json"
"""What a finished trial leaves beside it."""


@dataclass(frozen=True)
class ExperimentTrial:
    """An experiment as the objective of a search (``cellseg.tuning.worker.Objective``).

    Args:
        config: the base configuration as JSON.
        metric: the score of the validation images to return; the mean over the folds.
    """

    config: str
    metric: str

    def __call__(self, options: Mapping[str, Any], folder: Path, report: Any) -> float:
        """Run, or go on with, the experiment of some values, and score its validation images."""
        from cellseg.events import Event, Progress
        from cellseg_cellsam.training.runner import ExperimentRunner

        config = changed(ExperimentConfig.load_text(self.config), options)
        config.output_dir, config.output_name = folder, EXPERIMENT
        config.device = _device(config.device, report.worker)

        def told(event: Event) -> None:
            if isinstance(event, Progress):
                report.step(event.step)

        results = ExperimentRunner(config).run(emit=told, interrupted=report.stopped)
        scores = [self._judged(config, fold.fold, report) for fold in results.individual]
        means = {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}
        report.measured(means)
        score = float(means[self.metric])
        if math.isfinite(score):  # else the search calls it a failure
            write_atomic(folder / SCORE, json.dumps(score))
            _keep_best(folder.parent)
        return score

    def _judged(self, config: ExperimentConfig, fold: int, report: Any) -> Mapping[str, float]:
        from cellseg.runs import RunDir
        from cellseg.workflows.judge import judge
        from cellseg.workflows.train import samples_of
        from cellseg_cellsam.training.strategies import TrainingStrategy

        strategy = TrainingStrategy.of(config)
        kept = strategy.folder.kept("val", fold)
        if kept is None:
            run = RunDir(strategy.folder.run(fold))
            kept = judge(
                strategy.plugins,
                run.path,
                samples_of(strategy.plugins, run)[1],
                device=config.device,
                interrupted=report.called_off,
            )
            strategy.folder.keep("val", fold, kept)
        return kept.scores


def changed(config: ExperimentConfig, values: Mapping[str, Any]) -> ExperimentConfig:
    """A configuration with other values.

    Args:
        config: it stays as it is.
        values: by the name of the attribute; ``stage1_config.learning_rate`` is that of the stage.

    Raises:
        ConfigError: they are not allowed.
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        stage, _, field = name.rpartition(".")
        if stage:
            nested.setdefault(stage, {})[field] = value
        else:
            nested[name] = value
    found: ExperimentConfig = config.changed(**nested)
    return found


def _keep_best(trials: Path) -> None:
    """Remove the weights of all finished trials but the best, the earlier of equal ones."""
    scores = {file.parent: json.loads(file.read_text()) for file in trials.glob(f"*/{SCORE}")}
    best = max(sorted(scores), key=scores.__getitem__)
    for trial in scores:
        for run in (trial / EXPERIMENT / "models").glob("fold_*"):
            heavy = [run / "checkpoint"]
            if trial != best:
                heavy += [run / "model", *run.glob("best_model_s*.safetensors")]
            for path in heavy:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _device(device: str, worker: int) -> str:
    """Where a worker trains: each on the next GPU, where there are several."""
    if device != "auto" or not worker:
        return device
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{worker % gpus}" if gpus > 1 else device

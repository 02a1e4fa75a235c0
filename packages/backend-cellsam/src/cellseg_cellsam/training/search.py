"""Searches for the best configuration of an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellseg.errors import CellsegError, ConfigError
from cellseg.events import Emit
from cellseg.files import write_atomic
from cellseg.plugins import Plugins
from cellseg_cellsam.training.base import Configuration
from cellseg_cellsam.training.config import ExperimentConfig
from cellseg_cellsam.training.trial import EXPERIMENT, ExperimentTrial, changed

if TYPE_CHECKING:
    from cellseg.tuning.search import Tuned
    from cellseg.tuning.trials import Trial

_MEANS = {
    "stage1_learning_rates": "stage1_config.learning_rate",
    "stage1_epochs": "stage1_config.total_epochs",
    "ce_loss_weights": "stage1_config.ce_loss_weight",
    "bbox_loss_weights": "stage1_config.bbox_loss_weight",
    "giou_loss_weights": "stage1_config.giou_loss_weight",
    "stage2_learning_rates": "stage2_config.learning_rate",
    "stage2_epochs": "stage2_config.total_epochs",
    "focal_loss_weights": "stage2_config.focal_loss_weight",
    "focal_gammas": "stage2_config.focal_gamma",
    "dice_loss_weights": "stage2_config.dice_loss_weight",
    "boundary_loss_weights": "stage2_config.boundary_loss_weight",
    "gammas": "gamma",
    "eosin_fractions": "stain_eosin",
    "dab_fractions": "stain_dab",
    "batch_sizes": "batch_size",
    "augmentation_flags": "augmentation",
}
"""Which attribute of ``ExperimentConfig`` takes the values of each list."""


class HyperparameterSpace(Configuration):
    """The values to try. A list that is not given leaves the base configuration as it is."""

    stage1_learning_rates: tuple[float, ...] = ()
    """Of ``stage1_config.learning_rate``."""
    stage2_learning_rates: tuple[float, ...] = ()
    """Of ``stage2_config.learning_rate``."""
    stage1_epochs: tuple[int, ...] = ()
    """Of ``stage1_config.total_epochs``."""
    stage2_epochs: tuple[int, ...] = ()
    """Of ``stage2_config.total_epochs``."""
    ce_loss_weights: tuple[float, ...] = ()
    """Of ``stage1_config.ce_loss_weight``."""
    bbox_loss_weights: tuple[float, ...] = ()
    """Of ``stage1_config.bbox_loss_weight``."""
    giou_loss_weights: tuple[float, ...] = ()
    """Of ``stage1_config.giou_loss_weight``."""
    focal_loss_weights: tuple[float, ...] = ()
    """Of ``stage2_config.focal_loss_weight``."""
    focal_gammas: tuple[float, ...] = ()
    """Of ``stage2_config.focal_gamma``."""
    dice_loss_weights: tuple[float, ...] = ()
    """Of ``stage2_config.dice_loss_weight``."""
    boundary_loss_weights: tuple[float, ...] = ()
    """Of ``stage2_config.boundary_loss_weight``."""
    gammas: tuple[float, ...] = ()
    """Of ``gamma``."""
    eosin_fractions: tuple[float, ...] = ()
    """Of ``stain_eosin``."""
    dab_fractions: tuple[float, ...] = ()
    """Of ``stain_dab``."""
    batch_sizes: tuple[int, ...] = ()
    """Of ``batch_size``."""
    augmentation_flags: tuple[bool | Literal["simple", "complex"], ...] = ()
    """Of ``augmentation``."""

    def values(self) -> dict[str, list[Any]]:
        """The values to try of each attribute of ``ExperimentConfig``, those of the stages with
        ``stage1_config.`` or ``stage2_config.`` before their names.

        Raises:
            ConfigError: there is none.
        """
        found = {_MEANS[name]: list(getattr(self, name)) for name in type(self).model_fields}
        found = {name: values for name, values in found.items() if values}
        if not found:
            raise ConfigError(
                "HyperparameterSpace: there is nothing to search.",
                hint="Give a list of values, such as focal_gammas=[2.0, 3.0].",
            )
        return found


@dataclass(frozen=True)
class SearchResults:
    """What a search found."""

    path: Path
    """Its folder: ``trials.csv``, ``report.html``, and an experiment for each trial."""
    tuned: Tuned
    """All of it, as ``cellseg.workflows.tune`` gives it."""
    best_config: ExperimentConfig | None
    """The base configuration with the best values; None where no trial has a score."""

    @property
    def best_score(self) -> float | None:
        """That of the validation images, by which it was chosen, so it is optimistic: run the best
        configuration with ``k_fold``, or look at ``best_experiment``."""
        return self.tuned.score

    @property
    def best_experiment(self) -> Path | None:
        """The folder of the best trial's experiment, whose results are of images that chose
        nothing."""
        best = self.tuned.best
        return self.path / best.folder / EXPERIMENT if best is not None else None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, with their values, scores and failures."""
        return self.tuned.trials


class HyperparameterOptimizer:
    """Tries values over a base configuration: each trial is an experiment (``ExperimentRunner``).

    Trials are compared by their validation images alone. All trials divide the images in the same
    way. A search that was stopped goes on when it is called again.

    Args:
        base_config: what all trials share; its ``output_dir`` and ``output_name`` are not used.
        param_space: the values to try.
        output_dir: where searches are written: ``random_search``, ``grid_search``, ``tpe_search``.
        max_parallel: how many trials at once, each in a process of its own; on several GPUs they
            take turns. Only the best one keeps its weights.
        metric: the score to search for, as ``cellseg evaluate`` names it.

    Raises:
        ConfigError: a value does not fit the base configuration; the strategy is ``full_dataset``,
            which has no score.
    """

    def __init__(
        self,
        base_config: ExperimentConfig,
        param_space: HyperparameterSpace,
        output_dir: str | Path = "output/hp_search",
        max_parallel: int = 1,
        *,
        metric: str = "f1@0.50",
    ) -> None:
        if base_config.strategy == "full_dataset":
            raise ConfigError(
                "base_config: strategy 'full_dataset' leaves no image to compare trials by.",
                hint="Search with 'train_val_split', and train the best on all images.",
            )
        if max_parallel < 1:
            raise ConfigError(f"max_parallel {max_parallel}: expected 1 or more.")
        self.base_config, self.param_space = base_config, param_space
        self.output_dir, self.max_parallel = Path(output_dir), max_parallel
        self.metric = metric
        self._check_metric()
        self._check_values()

    def run_random_search(
        self,
        n_trials: int = 20,
        *,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> SearchResults:
        """Try distinct points at random; fewer where there are fewer.

        Args:
            n_trials: how many.
            emit: gets a note for each trial that begins or ends.
            interrupted: asked often; True stops with the state saved.

        Raises:
            ConfigError: the folder holds a search of something else.
            DataError: nothing but failures happened.
            InterruptedRunError: stopped; call it again to go on.
            PluginError: Optuna is not installed.
        """
        return self._run("random_search", {"trials": n_trials}, emit, interrupted)

    def run_grid_search(
        self,
        *,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> SearchResults:
        """Try all combinations; otherwise as ``run_random_search``."""
        return self._run("grid_search", {"sampler": "grid"}, emit, interrupted)

    def run_tpe_search(
        self,
        n_trials: int = 20,
        *,
        emit: Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> SearchResults:
        """Try points where those before promise most (tree-structured Parzen estimators, Bergstra
        et al. 2011); otherwise as ``run_random_search``."""
        how = {"sampler": "tpe", "trials": n_trials}
        return self._run("tpe_search", how, emit, interrupted)

    def _run(
        self,
        name: str,
        how: dict[str, Any],
        emit: Emit,
        interrupted: Callable[[], bool],
    ) -> SearchResults:
        from cellseg.workflows.tune import resume_tune, tune
        from cellseg.workflows.tune_request import TuneDir
        from cellseg.workflows.tune_settings import TuneSettings

        out = self.output_dir / name
        objective = ExperimentTrial(self.base_config.to_json(), self.metric)
        how = {**how, "prune": False, "keep_trials": True}
        space = self.param_space.values()
        told = json.loads(json.dumps({"search": how, "space": space, "metric": self.metric}))
        told["config"] = json.loads(self.base_config.to_json())
        begun = TuneDir(out).file.is_file()
        self._remember(out.with_name(f"{name}.json"), told, begun)
        if begun:
            found = resume_tune(
                Plugins(),
                out,
                objective=objective,
                workers=self.max_parallel,
                emit=emit,
                interrupted=interrupted,
            )
        else:
            found = tune(
                Plugins(),
                "cellsam",
                None,
                out,
                space=space,
                settings=TuneSettings(**how, workers=self.max_parallel),
                objective=objective,
                seed=self.base_config.seed,
                emit=emit,
                interrupted=interrupted,
            )
        best = changed(self.base_config, found.options) if found.options else None
        return SearchResults(out, found, best)

    def _remember(self, file: Path, told: dict[str, Any], begun: bool) -> None:
        """Write down what is searched, or see that it is the same."""
        if begun:
            before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            differing = sorted(name for name in told if before.get(name) != told[name])
            if differing:
                raise ConfigError(
                    f"{file.with_suffix('')}: this search was begun with another"
                    f" {' and another '.join(differing)}.",
                    hint="Choose another output_dir.",
                )
        else:
            write_atomic(file, json.dumps(told, indent=2) + "\n")

    def _check_metric(self) -> None:
        from cellseg.workflows.tune_results import known_metric, maximises

        known_metric(self.metric)
        if not maximises(self.metric):
            raise ConfigError(f"metric {self.metric!r} counts errors: less is better.")

    def _check_values(self) -> None:
        """See whether each value by itself makes a configuration that can be trained."""
        for name, values in self.param_space.values().items():
            for value in values:
                try:
                    config = changed(self.base_config, {name: value})
                    config.train_options(), config.train_settings()
                except CellsegError as error:
                    raise ConfigError(f"{name} {value!r}: {error}", hint=error.hint) from None

"""Experiments with cellsam from Python: divide, train in two stages, judge, search.

Importing this imports no torch.
"""

from __future__ import annotations

from cellseg_cellsam.training.config import ExperimentConfig, Stage1Config, Stage2Config
from cellseg_cellsam.training.legacy import finetune
from cellseg_cellsam.training.results import ExperimentResults, FoldResult
from cellseg_cellsam.training.runner import ExperimentRunner
from cellseg_cellsam.training.search import (
    HyperparameterOptimizer,
    HyperparameterSpace,
    SearchResults,
)
from cellseg_cellsam.training.strategies import (
    FullDatasetStrategy,
    KFoldStrategy,
    TrainingStrategy,
    TrainValSplitStrategy,
)

__all__ = [
    "ExperimentConfig",
    "ExperimentResults",
    "ExperimentRunner",
    "FoldResult",
    "FullDatasetStrategy",
    "HyperparameterOptimizer",
    "HyperparameterSpace",
    "KFoldStrategy",
    "SearchResults",
    "Stage1Config",
    "Stage2Config",
    "TrainValSplitStrategy",
    "TrainingStrategy",
    "finetune",
]

"""What goes along with a training: memory, metrics, checkpoints, early stopping, pictures."""

from __future__ import annotations

from cellseg_cellsam.training.utils.checkpoints import Checkpoint, CheckpointManager
from cellseg_cellsam.training.utils.memory import GPUMonitor
from cellseg_cellsam.training.utils.metrics import Best, MetricsTracker
from cellseg_cellsam.training.utils.stopping import EarlyStopping
from cellseg_cellsam.training.utils.visualizer import TrainingVisualizer

__all__ = [
    "Best",
    "Checkpoint",
    "CheckpointManager",
    "EarlyStopping",
    "GPUMonitor",
    "MetricsTracker",
    "TrainingVisualizer",
]

"""Recipes for common cases, and the settings of CellSAM2. Light."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: Mapping[str, Mapping[str, object]] = {
    # A small network from random weights, for a computer without a GPU.
    "scratch": {
        "model_type": "nano",
        "resolution": 128,
        "use_lora": False,
        "base_lr": 2e-3,
        "vision_lr": 2e-3,
        "head_lr": 2e-3,
        "layer_decay": 1.0,
        "weight_decay": 1e-2,
        "clip": 1.0,
        "average": 0.99,
        "decay_epochs": 100,
        "max_num_objects": 16,
        "max_num_bkgd_objects": 4,
        "correction_points": 0,
        "dice_weight": 5.0,
        "batch_size": 2,
        "threads": 1,
    },
    "segmentation": {"num_frames": 1},
    "full": {"use_lora": False},
    # What CellSAM2's configuration for a GPU sets; its README differs.
    "cellsam2-gpu": {"epochs": 10, "precision": "16-mixed", "num_workers": 2},
    # And the one for a CPU.
    "cellsam2-cpu": {
        "epochs": 20,
        "decay_epochs": 20,
        "max_num_objects": 12,
        "max_num_bkgd_objects": 4,
        "correction_points": 2,
        "num_workers": 0,
    },
}

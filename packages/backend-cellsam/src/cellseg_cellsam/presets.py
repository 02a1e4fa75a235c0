"""Recipes for common cases, and the settings of an older trainer. Light."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: Mapping[str, Mapping[str, object]] = {
    # A small network from random weights, for a computer without a GPU.
    "scratch": {
        "model_type": "small",
        "patch_size": 128,
        "stage1_learning_rate": 1e-3,
        "backbone_learning_rate": 1e-3,
        "stage2_type": "neck_and_decoder",
        "stage2_learning_rate": 1e-3,
        "boundary_loss_weight": 0.0,  # it favours empty masks at first
        "batch_size": 4,
        "patches_per_image": 4,
        "threads": 1,
    },
    "gpu-16gb": {
        "precision": "bf16-mixed",
        "batch_size": 1,
        "accumulate": 2,
        "recompute": True,
    },
    # Few weights of the encoder learn.
    "lora": {"lora_rank": 8, "backbone_learning_rate": 1e-4},
    # The paper of CellSAM (arXiv:2311.11004) trains encoder and detector, then the neck alone; the
    # values are those of a public trainer for it.
    "paper": {
        "stage1_learning_rate": 1e-5,
        "backbone_learning_rate": 1e-6,
        "stage2_learning_rate": 1e-5,
        "epochs": 1000,
        "batch_size": 2,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "stage1_patience": 15,
        "stage2_patience": 15,
        "boundary_loss_weight": 0.0,
    },
}

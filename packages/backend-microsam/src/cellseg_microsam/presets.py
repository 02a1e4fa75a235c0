"""Recipes for common computers, and the settings of an older trainer. Light."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: Mapping[str, Mapping[str, object]] = {
    "a100": {
        "model_type": "vit_l_lm",
        "mode": "full",
        "batch_size": 4,
        "learning_rate": 5e-5,
        "precision": "bf16-mixed",
    },
    "a40": {
        "model_type": "vit_b_lm",
        "mode": "full",
        "batch_size": 1,
        "learning_rate": 1e-5,
        "precision": "bf16-mixed",
    },
    "gpu-16gb": {
        "model_type": "vit_b_lm",
        "mode": "full",
        "n_objects": 10,
        "precision": "16-mixed",
        "recompute": True,
    },
    "gpu-10gb": {
        "model_type": "vit_b_lm",
        "mode": "full",
        "n_objects": 5,
        "peft": "last-blocks",
        "peft_blocks": (11,),
        "precision": "16-mixed",
        "recompute": True,
    },
    "cpu": {
        "model_type": "vit_b_lm",
        "mode": "decoder",
        "copies": 4,
        "learning_rate": 5e-4,
        "precision": "bf16-mixed",
        "average": 0.99,
    },
    # What SAM Trainer, a wrapper of micro-SAM, trains with unless told otherwise.
    "sam-trainer": {
        "model_type": "vit_b_lm",
        "mode": "instances",
        "epochs": 100,
        "patch_size": 512,
        "batch_size": 1,
        "learning_rate": 1e-5,
        "early_stopping": 10,
        "min_instances": 2,
        "min_instance_size": 25,
        "num_workers": 4,
        "val_fraction": 0.1,
        "percentile_low": 1.0,
        "percentile_high": 99.5,
        "normalise_pixels": "non-zero",
    },
}

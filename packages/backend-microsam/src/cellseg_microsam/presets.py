"""Recipes for common computers. Light."""

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
    },
    "cpu": {
        "model_type": "vit_b_lm",
        "mode": "decoder",
        "copies": 4,
        "learning_rate": 5e-4,
        "precision": "bf16-mixed",
        "average": 0.99,
    },
}

"""Named sets of options: the trainings on public electron microscopy that users ask for."""

from __future__ import annotations

from collections.abc import Mapping

Preset = Mapping[str, object]

_VISTA: Preset = {"encoder": "segresnet_ds", "levels": 5, "feature_size": 48, "emb_dim": 16}
_ONE_VOLUME: Preset = {"learning_rate": 1e-4, "weight_decay": 1e-5, "batch_size": 4}
# Volumes that come as training or validation volumes stay whole; each other one is cut in two.
_BLOCKS: Preset = {"split": "blocks", "split_axis": "z", "val_gap": 8}

PRESETS_2D: Mapping[str, Preset] = {
    "snemi2d": {
        "reader": "snemi3d",
        "epochs": 100,
        "decay_epochs": 100,
        "precision": "32-true",
        "patch_size": 256,
        "patches_per_image": 100,
        **_BLOCKS,
        **_VISTA,
        **_ONE_VOLUME,
    },
}

PRESETS_3D: Mapping[str, Preset] = {
    "snemi3d": {
        "reader": "snemi3d",
        "epochs": 100,
        "decay_epochs": 100,
        "precision": "16-mixed",
        "patch_depth": 32,
        "patch_size": 128,
        "patches_per_image": 100,
        **_BLOCKS,
        **_VISTA,
        **_ONE_VOLUME,
    },
    "cremi3d": {
        "reader": "cremi",
        "epochs": 200,
        "decay_epochs": 200,
        "precision": "16-mixed",
        "patch_depth": 32,
        "patch_size": 128,
        "patches_per_image": 100,
        **_BLOCKS,
        **_VISTA,
        **_ONE_VOLUME,
    },
    "combine": {
        "reader": "collection",
        "epochs": 300,
        "decay_epochs": 300,
        "precision": "16-mixed",
        "patch_depth": 32,
        "patch_size": 128,
        "patches_per_image": 100,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        **_BLOCKS,
        **_VISTA,
    },
    "foundation": {
        "reader": "collection",
        "epochs": 500,
        "decay_epochs": 500,
        "early_stopping": 80,
        "precision": "bf16-mixed",
        "patch_depth": 64,
        "patch_size": 128,
        "patches_per_image": 100,
        "batch_size": 2,
        "accumulate": 4,
        "learning_rate": 2e-4,
        "weight_decay": 1e-4,
        "ce_weight": 0.5,
        "dice_weight": 0.5,
        # background, neuron, cleft, mitochondria, mito boundary; the other eleven are spare.
        "class_weights": (0.05, 0.35, 0.25, 0.2, 0.15, *(0.0,) * 11),
        **_BLOCKS,
        **_VISTA,
        "feature_size": 96,
        "emb_dim": 32,
    },
}

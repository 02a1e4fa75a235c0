"""The Python API of experiments: what importing it costs, and the names that ``finetune`` knows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cellseg.errors import ConfigError
from cellseg_cellsam.training import Stage1Config
from cellseg_cellsam.training.legacy import finetune_config


def test_importing_the_api_imports_no_torch() -> None:
    code = (
        "import sys, cellseg_cellsam.training as t, cellseg_cellsam.training.utils\n"
        "t.ExperimentConfig(img_path='a', output_name='b').train_options()\n"
        "print(sorted({'torch', 'cv2', 'optuna', 'lightning', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_finetune_knows_all_names_and_no_others() -> None:
    config = finetune_config(
        "i", "m", "n", total_epochs_s1=3, learning_rate_s2=1e-3, focal_gamma=3.0, patience_s1=4,
        k_fold_training=True, gamma=2.1,
    )  # fmt: skip
    assert config.strategy == "k_fold" and config.gamma == 2.1
    assert (config.stage1_config.total_epochs, config.stage1_config.patience) == (3, 4)
    assert (config.stage2_config.learning_rate, config.stage2_config.focal_gamma) == (1e-3, 3.0)
    assert finetune_config("i", "m", "n", k_fold_training=False).strategy == "train_val_split"
    with pytest.raises(ConfigError, match="unknown option 'total_epoch_s1'") as caught:
        finetune_config("i", "m", "n", total_epoch_s1=3)
    assert "total_epochs_s1" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="say the same"):
        finetune_config("i", "m", "n", k_fold_training=True, strategy="k_fold")
    with pytest.raises(ConfigError, match="exclude each other"):
        finetune_config("i", "m", "n", total_epochs_s1=3, stage1_config=Stage1Config())

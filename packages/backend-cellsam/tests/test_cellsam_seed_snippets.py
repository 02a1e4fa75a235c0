"""What the documentation of CellSAM's training module shows does run: its snippets, with all their
keyword arguments; paths and epochs are small ones, and what makes a model tiny is added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from cellseg.synthetic import make_image  # noqa: E402

IMAGES = 6
SMALL: dict[str, Any] = {
    "patch_size": 48,
    "patches_per_image": 1,
    "val_patches": 1,
    "warmup_steps": 0,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images in red, green and blue, and their masks."""
    import tifffile

    root = tmp_path_factory.mktemp("path")
    images, masks = root / "to" / "images", root / "to" / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for number in range(IMAGES):
        light, labels = make_image((7, number), (48, 48))
        dark = 255 - 200 * (light / light.max())
        stained = np.stack([dark, dark * 0.8, 128 + dark / 2], axis=-1).astype(np.uint8)
        tifffile.imwrite(images / f"slide{number}.tif", stained, photometric="rgb")
        tifffile.imwrite(masks / f"slide{number}.tif", labels)
    return images, masks


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """What is added to the snippets."""
    return {
        "model_type": "tiny",
        "device": "cpu",
        "output_dir": tmp_path / "output",
        "options": SMALL,
    }


@pytest.fixture
def small(folders: tuple[Path, Path], tiny: dict[str, Any]) -> dict[str, Any]:
    """What stands for "other parameters"."""
    from cellseg_cellsam.training import Stage1Config, Stage2Config

    return {
        "img_path": folders[0],
        "mask_path": folders[1],
        "output_name": "small",
        "stage1_config": Stage1Config(total_epochs=1),
        "stage2_config": Stage2Config(total_epochs=1),
        **tiny,
    }


@pytest.fixture(scope="module")
def base_run(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of cellsam to start from."""
    from cellseg_cellsam.training import finetune

    torch.set_num_threads(1)
    results = finetune(
        *folders,
        "base",
        strategy="full_dataset",
        total_epochs_s1=1,
        total_epochs_s2=1,
        model_type="tiny",
        device="cpu",
        output_dir=tmp_path_factory.mktemp("base"),
        options=SMALL,
    )
    return results.individual[0].run


def test_basic_usage(folders: tuple[Path, Path], tiny: dict[str, Any]) -> None:
    from cellseg_cellsam.training import finetune

    results = finetune(
        img_path=str(folders[0]),
        mask_path=str(folders[1]),
        output_name="my_experiment",
        total_epochs_s1=1,
        total_epochs_s2=1,
        k_fold_training=True,
        **tiny,
    )
    assert results.path == tiny["output_dir"] / "my_experiment"
    assert len(results.individual) == 5
    for fold in range(5):
        for stage in (1, 2):
            assert (
                results.path / "models" / f"fold_{fold}" / f"best_model_s{stage}.safetensors"
            ).is_file()


def test_advanced_usage(folders: tuple[Path, Path], tiny: dict[str, Any]) -> None:
    from cellseg.runs import RunDir
    from cellseg_cellsam.training import (
        ExperimentConfig,
        ExperimentRunner,
        Stage1Config,
        Stage2Config,
    )

    stage1_config = Stage1Config(
        stage1_type="all_backbones",
        total_epochs=1,
        learning_rate=1e-4,
        ce_loss_weight=2,
        bbox_loss_weight=10,
        giou_loss_weight=5,
    )

    stage2_config = Stage2Config(
        total_epochs=1,
        learning_rate=5e-5,
        focal_loss_weight=2.0,
        dice_loss_weight=1.5,
        boundary_loss_weight=0.5,
        online_hard_negative_mining=True,
    )

    config = ExperimentConfig(
        img_path=str(folders[0]),
        mask_path=str(folders[1]),
        output_name="advanced_experiment",
        strategy="k_fold",
        k_folds=5,
        stage1_config=stage1_config,
        stage2_config=stage2_config,
        batch_size=2,
        debug=True,
        augmentation=True,
        stain_transform=True,
        gamma=2.4,
        **tiny,
    )

    runner = ExperimentRunner(config)
    results = runner.run()

    assert len(results.individual) == 5 and results.aggregated["f1@0.50"].n == 5
    request = RunDir(results.individual[4].run).request()
    told = {
        "stage1_type": "all_backbones",
        "stage1_epochs": 1,
        "stage1_learning_rate": 1e-4,
        "ce_loss_weight": 2,
        "bbox_loss_weight": 10,
        "giou_loss_weight": 5,
        "stage2_epochs": 1,
        "stage2_learning_rate": 5e-5,
        "focal_loss_weight": 2.0,
        "dice_loss_weight": 1.5,
        "boundary_loss_weight": 0.5,
        "online_hard_negative_mining": True,
        "batch_size": 2,
        "augmentation": "simple",
    }
    assert {name: request.options[name] for name in told} == told
    assert request.settings["stain_transform"] == "hed" and request.settings["gamma"] == 2.4
    assert "MiB" in (results.path / "logs" / "experiment.log").read_text()


@pytest.mark.parametrize(
    "snippet",
    [
        {"strategy": "k_fold", "k_folds": 5},
        {"strategy": "train_val_split"},
        {"strategy": "full_dataset"},
        {"debug": True},
    ],
)
def test_strategies_and_debugging(small: dict[str, Any], snippet: dict[str, Any]) -> None:
    from cellseg_cellsam.training import ExperimentConfig

    config = ExperimentConfig(**small, **snippet)
    config.train_options(), config.train_settings(), config.reading()
    assert all(getattr(config, name) == value for name, value in snippet.items())


def test_debugging_can_be_set_later(small: dict[str, Any]) -> None:
    from cellseg_cellsam.training import ExperimentConfig

    config = ExperimentConfig(**small)
    config.debug = True
    assert config.train_options().preview_every is None


def test_configuration_options(small: dict[str, Any]) -> None:
    from cellseg_cellsam.training import ExperimentConfig, Stage1Config, Stage2Config

    stage1 = Stage1Config(
        stage1_type="cellfinder",
        total_epochs=500,
        learning_rate=1e-4,
        patience=15,
        ce_loss_weight=1,
        bbox_loss_weight=5,
        giou_loss_weight=2,
    )
    stage2 = Stage2Config(
        total_epochs=500,
        learning_rate=1e-4,
        patience=15,
        focal_loss_weight=1.0,
        focal_gamma=2.0,
        dice_loss_weight=1.0,
        boundary_loss_weight=1.0,
        online_hard_negative_mining=False,
        online_hard_negative_mining_weighted=False,
    )
    # What it shows are the defaults, but for the type.
    assert stage1 == Stage1Config(stage1_type="cellfinder") and stage2 == Stage2Config()
    both = {"stage1_config": stage1, "stage2_config": stage2}
    options = ExperimentConfig(**{**small, **both}).train_options()
    assert (options.stage1_patience, options.stage2_patience) == (15, 15)
    assert options.wanted_epochs == 1000


@pytest.mark.slow  # two processes import torch
def test_hyperparameter_optimization(small: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from cellseg_cellsam.training import (
        ExperimentConfig,
        HyperparameterOptimizer,
        HyperparameterSpace,
    )

    base_config = ExperimentConfig(**small, strategy="train_val_split")

    param_space = HyperparameterSpace(
        stage1_learning_rates=[1e-4, 1e-5],
        stage2_learning_rates=[1e-4, 5e-5],
        focal_gammas=[2.0, 3.0],
        gammas=[2.1, 2.4],
        augmentation_flags=[False, True],
    )

    optimizer = HyperparameterOptimizer(
        base_config=base_config,
        param_space=param_space,
        output_dir=str(tmp_path / "output" / "hp_search"),
        max_parallel=2,
    )

    results = optimizer.run_random_search(n_trials=2)

    points = [tuple(trial.options.items()) for trial in results.trials]
    assert len(set(points)) == 2 and results.tuned.count("complete") == 2
    assert results.best_config is not None
    assert results.best_config.gamma in (2.1, 2.4)
    assert results.best_config.stage1_config.learning_rate in (1e-4, 1e-5)

    fewer = HyperparameterSpace(focal_gammas=[2.0, 3.0])
    optimizer = HyperparameterOptimizer(base_config, fewer, tmp_path / "output" / "hp_search")
    results = optimizer.run_grid_search()
    gammas = [trial.options["stage2_config.focal_gamma"] for trial in results.trials]
    assert sorted(gammas) == [2.0, 3.0]


def test_gpu_memory_monitoring(capsys: pytest.CaptureFixture[str]) -> None:
    from cellseg_cellsam.training.utils import GPUMonitor

    monitor = GPUMonitor()
    monitor.print_memory_summary("Training Start")
    assert capsys.readouterr().out.startswith("Training Start: ")


def test_metrics_tracking(tmp_path: Path) -> None:
    from cellseg_cellsam.training.utils import MetricsTracker

    tracker = MetricsTracker(save_dir=str(tmp_path / "output" / "metrics"))
    tracker.update({"loss": 0.5, "f1": 0.8}, epoch=1)
    tracker.save_metrics()
    assert (tmp_path / "output" / "metrics" / "metrics.json").is_file()


def test_a_quick_test(folders: tuple[Path, Path], tiny: dict[str, Any]) -> None:
    from cellseg_cellsam.training import finetune

    results = finetune(
        img_path=folders[0],
        mask_path=folders[1],
        output_name="quick_test",
        strategy="train_val_split",
        total_epochs_s1=1,
        total_epochs_s2=1,
        debug=True,
        **tiny,
    )
    assert results.strategy == "train_val_split" and results.individual[0].test


def test_pre_evaluation(small: dict[str, Any], base_run: Path) -> None:
    from cellseg_cellsam.training import ExperimentConfig, ExperimentRunner

    given = {name: value for name, value in small.items() if name != "model_type"}
    config = ExperimentConfig(
        **given, strategy="train_val_split", checkpoint=base_run, preeval=True
    )
    results = ExperimentRunner(config).run()
    assert results.aggregated_start.keys() == results.aggregated.keys()
    assert results.tests["f1@0.50"].n >= 1


def test_migration(folders: tuple[Path, Path], tiny: dict[str, Any]) -> None:
    from cellseg_cellsam.training import (
        ExperimentConfig,
        ExperimentRunner,
        Stage1Config,
        Stage2Config,
        finetune,
    )

    img_path, mask_path = folders
    total_epochs_s1 = total_epochs_s2 = 1
    kwargs = {
        **tiny,
        "strategy": "full_dataset",
        "total_epochs_s1": total_epochs_s1,
        "total_epochs_s2": total_epochs_s2,
    }
    first = finetune(img_path, mask_path, "old", **kwargs)
    config = ExperimentConfig(
        img_path=img_path,
        mask_path=mask_path,
        output_name="new",
        stage1_config=Stage1Config(total_epochs=total_epochs_s1),
        stage2_config=Stage2Config(total_epochs=total_epochs_s2),
        strategy="full_dataset",
        **tiny,
    )
    runner = ExperimentRunner(config)
    results = runner.run()
    weights = "best_model_s2.safetensors"
    one, other = (r.individual[0].run / weights for r in (first, results))
    assert one.read_bytes() == other.read_bytes()

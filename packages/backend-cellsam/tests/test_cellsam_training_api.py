"""Experiments from Python: configurations, strategies, what is written, resume, searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from cellseg.errors import ConfigError, DataError, InterruptedRunError  # noqa: E402
from cellseg.events import Event, Progress  # noqa: E402
from cellseg.synthetic import write_dataset  # noqa: E402
from cellseg_cellsam.training import (  # noqa: E402
    ExperimentConfig,
    ExperimentResults,
    ExperimentRunner,
    HyperparameterOptimizer,
    HyperparameterSpace,
    Stage1Config,
    Stage2Config,
    TrainingStrategy,
    finetune,
)
from cellseg_cellsam.training.utils import TrainingVisualizer  # noqa: E402

TINY: dict[str, Any] = {
    "patch_size": 48,
    "patches_per_image": 1,
    "val_patches": 1,
    "warmup_steps": 0,
    "threads": 1,
}
IMAGES = 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, IMAGES, 48)
    return folder


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Callable[..., ExperimentConfig]:
    def config(**values: Any) -> ExperimentConfig:
        values = {
            "img_path": data / "images",
            "mask_path": data / "labels",
            "output_name": "tried",
            "output_dir": tmp_path / "output",
            "strategy": "train_val_split",
            "stage1_config": Stage1Config(total_epochs=1),
            "stage2_config": Stage2Config(total_epochs=1),
            "options": TINY,
            "device": "cpu",
            **values,
        }
        if "checkpoint" not in values:
            values = {"model_type": "tiny", **values}
        return ExperimentConfig(**values)

    return config


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentResults:
    """Of an experiment with one division, with all that debugging adds."""
    torch.set_num_threads(1)
    return finetune(
        data / "images",
        data / "labels",
        "debugged",
        output_dir=tmp_path_factory.mktemp("output"),
        strategy="train_val_split",
        total_epochs_s1=2,
        total_epochs_s2=1,
        learning_rate_s1=1e-3,
        debug=True,
        model_type="tiny",
        device="cpu",
        options=TINY,
    )


def test_the_tree_of_an_experiment(trained: ExperimentResults) -> None:
    files = [
        "experiment_config.json",
        "logs/experiment.log",
        "models/fold_0/run.json",
        "models/fold_0/report.html",
        "models/fold_0/model/bundle.json",
        "models/fold_0/best_model_s1.safetensors",
        "models/fold_0/best_model_s2.safetensors",
        "results/individual_results.json",
        "results/aggregated_results.json",
        "results/fold_0/visualizations/boxes_epoch-0002.png",
        "results/fold_0/visualizations/masks_epoch-0001.png",
        "results/fold_0/visualizations/loss_curves.png",
        "results/fold_0/visualizations/loss_components.png",
        "metrics/stage1_metrics.json",
        "metrics/stage2_metrics.json",
    ]
    missing = [name for name in files if not (trained.path / name).is_file()]
    assert not missing
    assert ExperimentConfig.load(trained.path / "experiment_config.json").debug


def test_the_images_of_the_result_neither_trained_nor_validated(trained: ExperimentResults) -> None:
    (fold,) = trained.individual
    sides = [set(fold.train), set(fold.val), set(fold.test)]
    assert all(sides) and len(set.union(*sides)) == sum(map(len, sides)) == IMAGES
    assert set(fold.per_image) == set(fold.test)
    assert trained.aggregated["f1@0.50"].n == 1 and "no spread" in trained.remark
    assert fold.scores["n_true"] > 0


def test_the_weights_of_the_stages(trained: ExperimentResults) -> None:
    from safetensors.torch import load_file

    run = trained.individual[0].run
    first, second = (load_file(run / f"best_model_s{n}.safetensors") for n in (1, 2))
    assert first.keys() == second.keys()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(".neck." in name for name in changed)
    last = load_file(run / "model" / "weights.safetensors")
    assert all(torch.equal(second[name], last[name]) for name in last)


def test_metrics_by_epoch(trained: ExperimentResults) -> None:
    first, second = (
        json.loads((trained.path / "metrics" / f"stage{n}_metrics.json").read_text())["fold_0"]
        for n in (1, 2)
    )
    assert [row["epoch"] for row in first["epochs"]] == [1, 2]
    assert [row["epoch"] for row in second["epochs"]] == [1]
    terms = {"train/loss_class", "train/loss_box", "train/loss_giou", "val/score"}
    assert terms <= first["epochs"][0].keys() and not terms & {"train/loss_focal"}
    row = second["epochs"][0]
    parts = [v for n, v in row.items() if n.startswith("train/loss_")]
    assert row["train/loss"] == pytest.approx(sum(parts), rel=1e-4)


def test_debugging_logs_terms_and_memory_of_each_step(
    trained: ExperimentResults, make: Callable[..., ExperimentConfig]
) -> None:
    log = (trained.path / "logs" / "experiment.log").read_text()
    steps = [line for line in log.splitlines() if " step " in line and "/loss_" in line]
    assert len(steps) == sum(
        isinstance(e, Progress) for e in TrainingVisualizer(trained.individual[0].run).run.events()
    )
    assert all("MiB in main memory" in line for line in steps)
    assert "memory at the start" in log and "validated at epoch 1" in log and "Stage 1: " in log


def test_without_debugging_the_log_is_short_and_one_picture_is_drawn(
    make: Callable[..., ExperimentConfig],
) -> None:
    results = ExperimentRunner(make(stage1_config=Stage1Config(total_epochs=2))).run()
    log = (results.path / "logs" / "experiment.log").read_text()
    assert "loss_" not in log and "MiB" not in log and "validated at epoch" in log
    pictures = sorted(p.name for p in results.path.rglob("visualizations/*_epoch-*.png"))
    assert pictures == ["boxes_epoch-0002.png", "masks_epoch-0001.png"]


def test_folds_are_disjoint_and_cover(make: Callable[..., ExperimentConfig]) -> None:
    results = ExperimentRunner(make(strategy="k_fold", k_folds=3)).run()
    held = [name for fold in results.individual for name in fold.test]
    assert len(held) == len(set(held)) == IMAGES
    for fold in results.individual:
        assert not set(fold.test) & {*fold.train, *fold.val} and fold.val
        assert fold.run == results.path / "models" / f"fold_{fold.fold}"
        assert (fold.run / "best_model_s2.safetensors").is_file()
    assert results.aggregated["f1@0.50"].n == 3
    found = ExperimentResults.load(results.path)
    assert [one.test for one in found.individual] == [one.test for one in results.individual]
    same = results.compare(found)
    assert same.difference == 0 and same.p == 1.0
    stages = json.loads((results.path / "metrics" / "stage1_metrics.json").read_text())
    assert sorted(stages) == ["fold_0", "fold_1", "fold_2"]


def test_all_images_train_with_full_dataset(make: Callable[..., ExperimentConfig]) -> None:
    results = ExperimentRunner(make(strategy="full_dataset")).run()
    (fold,) = results.individual
    assert len(fold.train) == IMAGES and not fold.val and not fold.test and not fold.scores
    assert results.aggregated == {} and "trained on" in results.to_dict()["remark"]


def test_preeval_tests_the_change(
    make: Callable[..., ExperimentConfig], trained: ExperimentResults
) -> None:
    config = make(checkpoint=trained.individual[0].run, preeval=True)
    results = ExperimentRunner(config).run()
    (fold,) = results.individual
    assert fold.start_per_image.keys() == fold.per_image.keys() and fold.start_scores
    assert results.tests["f1@0.50"].n == len(fold.test)
    assert not list((results.path / "models").glob("before*"))
    with pytest.raises(ConfigError, match="finds no cells"):
        ExperimentRunner(make(preeval=True, output_name="other")).run()


def test_a_stopped_experiment_goes_on(make: Callable[..., ExperimentConfig]) -> None:
    config, steps = make(strategy="k_fold", k_folds=3), []

    def told(event: Event) -> None:
        steps.extend([event.step] if isinstance(event, Progress) else [])

    whole = ExperimentRunner(make(strategy="k_fold", k_folds=3, output_name="whole")).run()
    with pytest.raises(InterruptedRunError):
        ExperimentRunner(config).run(emit=told, interrupted=lambda: len(steps) >= 6)
    before = len(steps)
    with pytest.raises(ConfigError, match="seed"):
        ExperimentRunner(config.changed(seed=1)).run()
    results = ExperimentRunner(config).run(emit=told)
    assert len(steps) > before
    for one, other in zip(whole.individual, results.individual, strict=True):
        assert one.test == other.test
        weights = [fold.run / "best_model_s2.safetensors" for fold in (one, other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    again = len(steps)
    assert ExperimentRunner(config).run(emit=told).path == results.path
    assert len(steps) == again


def test_a_folder_of_something_else_is_left_alone(make: Callable[..., ExperimentConfig]) -> None:
    config = make()
    config.folder.mkdir(parents=True)
    (config.folder / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="holds no experiment"):
        ExperimentRunner(config).run()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"img_pth": "a"}, "unknown option 'img_pth'"),
        ({"stratgy": "k_fold"}, "unknown option 'stratgy'"),
        ({"k_folds": 1}, "k_folds"),
        ({"k_folds": 3}, "k_folds goes with strategy 'k_fold'"),
        ({"strategy": "k_fold", "test_fraction": 0.5}, "test_fraction goes with"),
        ({"strategy": "full_dataset", "preeval": True}, "preeval needs held-out images"),
        ({"output_name": "a/b"}, "name of a folder"),
        (
            {"strategy": "full_dataset", "stage1_config": Stage1Config(patience=3)},
            "patience waits",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    make: Callable[..., ExperimentConfig], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"options": {"patchsize": 3}}, "unknown option 'patchsize'"),
        ({"options": {"focal_gamma": 3.0}}, "'focal_gamma' is said by"),
        ({"options": {"stage": "1"}}, "'stage' is said by"),
        (
            {"options": {"stage1_learning_rate": 1e-3}},
            "'stage1_learning_rate' is said by stage1_config.learning_rate of",
        ),
        ({"settings": {"epochs": 3}}, "'epochs' is said by"),
        ({"settings": {"val_fraction": 0.3}}, "'val_fraction' is said by"),
        ({"stain_eosin": 0.1}, "stain-eosin"),
        ({"stage1_config": Stage1Config(total_epochs=0, patience=3)}, "patience: do nothing"),
        ({"stage2_config": Stage2Config(focal_loss_weight=0, focal_gamma=3)}, "focal-gamma"),
        ({"mask_path": Path("nowhere")}, "mask_path nowhere"),
    ],
)
def test_what_would_be_ignored_is_refused(
    make: Callable[..., ExperimentConfig], values: dict[str, Any], message: str
) -> None:
    config = make(**values)
    with pytest.raises((ConfigError, DataError), match=message):
        ExperimentRunner(config).run()
    assert not config.folder.exists()


def test_attributes_can_be_set_and_are_checked(make: Callable[..., ExperimentConfig]) -> None:
    config = make()
    config.debug = True
    config.stage2_config.focal_gamma = 3.0
    assert config.train_options().focal_gamma == 3.0 and config.debug
    with pytest.raises(ConfigError, match="unknown option 'debugg'"):
        config.debugg = True
    with pytest.raises(ConfigError, match="k_folds"):
        config.k_folds = 7
    assert config.k_folds == 5
    with pytest.raises(ConfigError, match="exclude each other"):
        Stage2Config(online_hard_negative_mining=True, online_hard_negative_mining_weighted=True)


def test_configurations_become_options(make: Callable[..., ExperimentConfig]) -> None:
    config = make(
        stage1_config=Stage1Config(total_epochs=7, learning_rate=2e-4, patience=3),
        stage2_config=Stage2Config(total_epochs=0),
        stain_transform=True,
        stain_dab=0.1,
        gamma=2.4,
        augmentation=True,
        batch_size=3,
    )
    options, settings = config.train_options(), config.train_settings()
    assert (options.stage, options.stage1_epochs, options.stage1_patience) == ("1", 7, 3)
    assert (options.stage1_learning_rate, options.backbone_learning_rate) == (2e-4, 2e-5)
    assert (options.augmentation, options.batch_size) == ("simple", 3)
    assert (settings.epochs, settings.stain_transform, settings.stain_dab) == (7, "hed", 0.1)
    assert settings.gamma == 2.4
    encoder = make(stage1_config=Stage1Config(stage1_type="image_encoder", learning_rate=3e-4))
    assert encoder.train_options().backbone_learning_rate == 3e-4
    assert make(augmentation="complex").train_options().augmentation == "complex"
    assert make().train_options().augmentation == "none"
    again = ExperimentConfig.load_text(config.to_json())
    assert again.train_options() == options and again.train_settings() == settings


def test_strategies_have_the_names_of_the_configuration(
    make: Callable[..., ExperimentConfig],
) -> None:
    for name in ("k_fold", "train_val_split", "full_dataset"):
        assert TrainingStrategy.of(make(strategy=name)).name == name


def test_a_search_chooses_by_validation_images_and_goes_on(
    make: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    space = HyperparameterSpace(focal_gammas=[2.0, 3.0], batch_sizes=[1, 2])
    optimizer = HyperparameterOptimizer(make(), space, tmp_path / "search")
    done: list[Event] = []
    with pytest.raises(InterruptedRunError):
        optimizer.run_grid_search(
            emit=done.append,
            interrupted=lambda: any(isinstance(e, Progress) and e.step >= 2 for e in done),
        )
    found = optimizer.run_grid_search()
    points = [tuple(trial.options.values()) for trial in found.trials]
    assert len(points) == len(set(points)) == 4 and found.tuned.count("complete") == 4
    assert found.best_config is not None and found.best_experiment is not None
    assert found.best_config.batch_size == found.tuned.options["batch_size"]
    best = ExperimentResults.load(found.best_experiment)
    judged = json.loads((found.best_experiment / "models" / "scores" / "val-0.json").read_text())
    assert set(judged["images"]) == set(best.individual[0].val)
    assert judged["scores"]["f1@0.50"] == found.best_score
    kept = [path.parents[4].name for path in found.path.rglob("model/weights.safetensors")]
    assert len(kept) == 1 and kept[0] == found.best_experiment.parent.name
    with pytest.raises(ConfigError, match="another metric"):
        HyperparameterOptimizer(
            make(), space, tmp_path / "search", metric="precision@0.50"
        ).run_grid_search()


def test_searches_that_make_no_sense(make: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    space = HyperparameterSpace(focal_gammas=[2.0])
    with pytest.raises(ConfigError, match="full_dataset"):
        HyperparameterOptimizer(make(strategy="full_dataset"), space, tmp_path)
    with pytest.raises(ConfigError, match="nothing to search"):
        HyperparameterOptimizer(make(), HyperparameterSpace(), tmp_path)
    with pytest.raises(ConfigError, match=r"stain_eosin 0\.1: .*stain-eosin"):
        HyperparameterOptimizer(make(), HyperparameterSpace(eosin_fractions=[0.1]), tmp_path)
    with pytest.raises(ConfigError, match="unknown option 'focal_gamma'"):
        HyperparameterSpace(focal_gamma=[2.0])
    with pytest.raises(ConfigError, match="no such score"):
        HyperparameterOptimizer(make(), space, tmp_path, metric="f2")

"""Training cellsam2: what is reported, what learns, resuming, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from cellseg.classes import encoded  # noqa: E402
from cellseg.data import Sample  # noqa: E402
from cellseg.errors import ConfigError, DataError, InterruptedRunError  # noqa: E402
from cellseg.events import Note, Progress, Validated  # noqa: E402
from cellseg.normalise import Normaliser, normalised  # noqa: E402
from cellseg.specs import Trained, TrainJob  # noqa: E402
from cellseg.synthetic_movies import make_movie  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg_cellsam2.learner import CellSam2Learner, rates  # noqa: E402
from cellseg_cellsam2.lora import learning  # noqa: E402
from cellseg_cellsam2.losses import TERMS  # noqa: E402
from cellseg_cellsam2.options import CellSam2Options  # noqa: E402
from cellseg_cellsam2.predict_options import CellSam2PredictOptions  # noqa: E402
from cellseg_cellsam2.stored import load, save  # noqa: E402
from cellseg_cellsam2.train import train  # noqa: E402
from cellseg_cellsam2.weights import make_model  # noqa: E402

TINY: dict[str, Any] = {
    "model_type": "nano",
    "resolution": 64,
    "num_frames": 2,
    "max_num_objects": 3,
    "max_num_bkgd_objects": 1,
    "correction_points": 1,
    "clips_per_epoch": 2,
    "val_clips": 1,
    "warmup_steps": 0,
}
FULL: dict[str, Any] = {"use_lora": False, "base_lr": 1e-3, "vision_lr": 1e-3, "head_lr": 1e-3}
LORA: dict[str, Any] = {"lora_rank": 2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def movie(seed: int, frames: int = 4) -> list[Sample]:
    made = make_movie(seed, frames, (64, 64), 5, diameter=14)
    return made.samples(f"movie{seed}", normalise=True)


@pytest.fixture(scope="module")
def movies() -> tuple[list[Sample], list[Sample]]:
    return [*movie(1), *movie(2)], movie(3)


def make_job(folder: Path, movies: Any, **changes: Any) -> TrainJob[CellSam2Options]:
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    own = {n: v for n, v in changes.items() if n in CellSam2Options.model_fields}
    rest = {n: v for n, v in changes.items() if n not in own}
    rates = {**(LORA if own.get("use_lora") else FULL)}
    if own.get("freeze_encoder"):
        rates.pop("vision_lr", None)
    values = {**TINY, **rates, **own}
    job: TrainJob[Any] = TrainJob(
        options=CellSam2Options(**values),
        train=movies[0],
        val=movies[1],
        epochs=1,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    return replace(job, **rest)


def run(job: TrainJob[CellSam2Options]) -> tuple[Trained, list[Any]]:
    events: list[Any] = []
    return train(job, events.append), events


def notes(events: list[Any]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def weights(job: TrainJob[Any]) -> dict[str, Any]:
    return load_file(job.model / "weights.safetensors")


def test_losses_scores_pictures_and_thresholds(movies: Any, tmp_path: Path) -> None:
    trained, events = run(make_job(tmp_path, movies))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [e.step for e in steps] == [1, 2]
    named = {f"train/loss_{name}" for name in TERMS}
    assert set(steps[0].metrics) == {*named, "train/loss", "learning_rate"}
    (validated,) = (e for e in events if isinstance(e, Validated))
    assert {"val/score", "val/f1@0.5", "val/division_f1", "val/heatmap_ap"} <= set(
        validated.metrics
    )
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["epoch-0001.png"]
    CellSam2PredictOptions(**trained.calibrated)  # type: ignore[arg-type]
    assert "heat_threshold" in trained.calibrated and "Thresholds: " in notes(events)
    assert trained.tiling is not None and trained.tiling.core == (1, 48, 48)
    model, description = load(tmp_path / "model")
    assert (description.scale, description.num_frames, model.side) == (1.0, 2, 64)
    assert not description.use_lora


def test_mixed_precision_and_larger_batches_train(movies: Any, tmp_path: Path) -> None:
    changes = {"precision": "bf16-mixed", "batch_size": 2, "recompute": True, "calibrate": False}
    _, events = run(make_job(tmp_path, movies, use_lora=True, clips_per_epoch=4, **changes))
    losses = [e.metrics["train/loss"] for e in events if isinstance(e, Progress)]
    assert len(losses) == 2 and np.isfinite(losses).all() and min(losses) > 0
    assert any(isinstance(e, Validated) for e in events)


@pytest.mark.parametrize(
    "changes",
    [{}, {"freeze_encoder": True}, {"use_lora": True}, {"use_lora": True, "freeze_encoder": True}],
)
def test_training_changes_what_it_declares(
    changes: dict[str, Any], movies: Any, tmp_path: Path
) -> None:
    common = {**changes, "val": [], "clips_per_epoch": 3}
    before = make_job(tmp_path / "before", movies, epochs=0, **common)
    after = make_job(tmp_path / "after", movies, epochs=2, **common)
    run(before)
    trained, _ = run(after)
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys() and set(trained.trainable) <= new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and changed <= set(trained.trainable)
    vision = any(name.startswith("sam.image_encoder") for name in changed)
    assert vision != changes.get("freeze_encoder", False)
    if changes.get("use_lora"):
        assert not any("norm" in name and "sam." in name for name in changed)
        assert any(name.endswith("v_proj.weight") for name in changed)
    (state,) = after.checkpoint.glob("step-*.ckpt")
    kept = torch.load(state, weights_only=True)["module"]
    frozen = changes.get("use_lora") or changes.get("freeze_encoder")
    assert bool(frozen) == (len(kept) < len(old) - 10), "what is frozen is in no checkpoint"


@pytest.mark.parametrize("use_lora", [False, True])
def test_a_training_that_was_killed_ends_like_one_that_was_not(
    use_lora: bool, movies: Any, tmp_path: Path
) -> None:
    common = {"use_lora": use_lora, "epochs": 2, "calibrate": False}
    if use_lora:
        common["val"] = []
    whole = make_job(tmp_path / "whole", movies, **common)
    run(whole)
    asked = iter([False, True])
    stopped = make_job(tmp_path / "stopped", movies, **common)
    with pytest.raises(InterruptedRunError):
        run(replace(stopped, interrupted=lambda: next(asked)))
    run(stopped)
    old, new = weights(whole), weights(stopped)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_still_images_and_single_planes_learn_segmentation(tmp_path: Path) -> None:
    volume = np.zeros((1, 3, 64, 64), np.float32)
    labels = np.zeros((3, 64, 64), np.uint32)
    volume[0, 1, 20:40, 20:40], labels[1, 20:40, 20:40] = 1, 1
    deep = Sample(name="deep", image=volume, labels=labels)
    empty = Sample(name="empty", image=volume[:, :1], labels=labels[:1])
    train, val = [blobs(1), blobs(2), deep, empty], [blobs(3)]
    job = make_job(tmp_path, (train, val), num_frames=1, clips_per_epoch=8)
    _, events = run(job)
    assert any(isinstance(e, Validated) for e in events)
    assert load(job.model)[1].num_frames == 1


def test_images_without_objects_can_be_trained_with(movies: Any, tmp_path: Path) -> None:
    empty = [replace(one, labels=np.zeros((1, 64, 64), np.uint32)) for one in movies[0]]
    _, events = run(make_job(tmp_path, (empty, movies[1])))
    losses = [e.metrics["train/loss_mask"] for e in events if isinstance(e, Progress)]
    assert losses == [0, 0] and "No cell divides" not in notes(events)


def test_the_scale_is_that_of_the_clips(movies: Any, tmp_path: Path) -> None:
    for name, given, scale, core in (
        ("a", {"patch_size": 32}, 2.0, 24),
        ("b", {"patch_size": 128}, 0.5, 96),
        ("c", {"resolution": 128}, 2.0, 48),
    ):
        trained, _ = run(make_job(tmp_path / name, movies, epochs=0, **given))
        assert load(tmp_path / name / "model")[1].scale == scale
        assert trained.tiling is not None and trained.tiling.core == (1, core, core)


def test_it_starts_from_a_file_and_from_a_run(movies: Any, tmp_path: Path) -> None:
    model, _ = make_model("nano", 64, 5, None, lambda event: None)
    save(model, tmp_path / "start", num_frames=2)
    job = make_job(
        tmp_path,
        movies,
        epochs=0,
        checkpoint=tmp_path / "start",
        model_type=CellSam2Options().model_type,
    )
    trained, _ = run(job)
    start = load_file(tmp_path / "start" / "weights.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in weights(job).items())
    assert trained.base_weights[0].name == "start"
    named = replace(job, options=job.options.model_copy(update={"model_type": "nano"}))
    assert run(named)[0].base_weights == trained.base_weights
    with pytest.raises(ConfigError, match=r"holds a nano, not a sam2\.1_hiera_tiny"):
        run(
            replace(job, options=job.options.model_copy(update={"model_type": "sam2.1_hiera_tiny"}))
        )


def test_what_cannot_be_trained_is_said(movies: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path, movies)
    two = [replace(one, image=np.repeat(one.image, 2, axis=0)) for one in movies[0]]
    with pytest.raises(ConfigError, match="2 channels"):
        run(replace(job, train=two))
    scored = [normalised(one, Normaliser(method="z-score")) for one in movies[0]]
    with pytest.raises(ConfigError, match="--normalise z-score"):
        run(replace(job, train=scored))
    with pytest.raises(ConfigError, match="--num-frames 2 needs movies with tracks"):
        run(replace(job, train=[blobs(1)]))
    with pytest.raises(DataError, match="No movie to validate on has 2 frames"):
        run(replace(job, val=movies[1][:1]))


def test_notes_about_what_will_not_be_learned(movies: Any, tmp_path: Path) -> None:
    classes = [
        replace(one, labels=encoded(one.labels, 1), classes=("background", "cell"), tracks=None)
        for one in movies[0]
    ]
    job = make_job(tmp_path, (classes, []), num_frames=1, use_lora=True, clips_per_epoch=1)
    _, events = run(job)
    assert "classes of the objects are not learned" in notes(events)
    assert "nano has random weights" in notes(events)
    torn = [one for one in movies[0] if one.frame != 1]
    _, events = run(make_job(tmp_path / "torn", (torn, [])))
    assert "for want of 2 frames" in notes(events) and "movie1/t000" in notes(events)


def test_rates_are_those_of_the_options() -> None:
    model, _ = make_model("nano", 64, 0, None, lambda event: None)
    learnt = learning(model, use_lora=False, freeze_encoder=False)
    chosen = CellSam2Options(
        use_lora=False, base_lr=1e-4, vision_lr=1e-5, head_lr=1e-3, layer_decay=0.5
    )
    found = rates(model, learnt, chosen)
    assert found[0].option == "base_lr" and found[0].peak == 1e-4
    of = {name: (rate.option, rate.peak) for rate in found for name in rate.names}
    own = CellSam2Learner(model, learnt, chosen, 0)
    assert set(of) == {name for name, _ in own.named_parameters()}
    blocks = len(model.sam.image_encoder.trunk.blocks)
    trunk = "learnt.sam/image_encoder/trunk/"
    assert of[f"{trunk}blocks/{blocks - 1}/norm1/weight"] == ("vision_lr", 1e-5)
    assert of[f"{trunk}blocks/{blocks - 2}/norm1/weight"] == ("vision_lr", 5e-6)
    assert of[f"{trunk}patch_embed/proj/weight"] == ("vision_lr", 1e-5 * 0.5**blocks)
    assert of["learnt.division_token/weight"] == ("head_lr", 1e-3)
    assert of["learnt.sam/memory_attention/norm/weight"] == ("base_lr", 1e-4)

"""What a training of vista2d says and leaves, and what its prediction does with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import DataError  # noqa: E402
from cellseg.events import Note, Progress, Validated  # noqa: E402
from cellseg.patches import PatchGrid  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import PredictorSpec, Trained, TrainerSpec, TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg_vista import calibrate as calibration  # noqa: E402
from cellseg_vista.instances import PixelMaps  # noqa: E402
from cellseg_vista.learner import Vista2dLearner  # noqa: E402
from cellseg_vista.network import Architecture, Network  # noqa: E402
from cellseg_vista.options import Vista2dOptions  # noqa: E402
from cellseg_vista.patches import ValidationPatches  # noqa: E402
from cellseg_vista.predict_options import Vista2dPredictOptions  # noqa: E402
from cellseg_vista.targets import core, depth  # noqa: E402

TINY = {"feature_size": 4, "emb_dim": 2, "patch_size": 32, "batch_size": 4, "patches_per_image": 4}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_job(folder: Path, **changes: Any) -> TrainJob[Vista2dOptions]:
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True)
    job = TrainJob(
        options=Vista2dOptions(**TINY),
        train=[blobs(1), blobs(2)],
        val=[blobs(3)],
        epochs=2,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    return replace(job, **changes)


def train(job: TrainJob[Vista2dOptions]) -> tuple[Trained, list[Any]]:
    events: list[Any] = []
    return Plugins().get(TrainerSpec, "vista2d").train(job, events.append), events


def test_it_reports_losses_scores_and_pictures(tmp_path: Path) -> None:
    import cv2

    trained, events = train(make_job(tmp_path))
    steps = [e for e in events if isinstance(e, Progress)]
    assert len(steps) == 4
    assert {"train/loss", "train/pull", "train/push", "train/semantic"} <= set(steps[0].metrics)
    validated = [e for e in events if isinstance(e, Validated)]
    assert [set(e.metrics) for e in validated] == [{"val/loss", "val/f1@0.5", "val/mean_f1"}] * 2
    pictures = sorted((tmp_path / "previews").iterdir())
    assert [p.name for p in pictures] == ["epoch-0001.png", "epoch-0002.png"]
    assert cv2.imread(str(pictures[0])).shape == (32, 4 * 32, 3)
    assert trained.classes == ("cell",)
    spec = Plugins().get(PredictorSpec, "vista2d")
    assert spec.options(**trained.calibrated).model_dump() == trained.calibrated


def test_without_validation_nothing_is_calibrated(tmp_path: Path) -> None:
    trained, events = train(make_job(tmp_path, val=[]))
    assert trained.calibrated == {}
    assert not [e for e in events if isinstance(e, Validated)]


def test_images_left_out_are_named(tmp_path: Path) -> None:
    empty = replace(blobs(9, count=0), name="nothing-here")
    _, events = train(make_job(tmp_path, train=[blobs(1), empty], epochs=1))
    assert "nothing-here" in next(e.text for e in events if isinstance(e, Note))


def test_nothing_but_empty_images_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        train(make_job(tmp_path, train=[blobs(9, count=0)], epochs=1))
    assert "--min-instances" in (error.value.hint or "")


def test_nothing_but_empty_images_trains_when_asked_to(tmp_path: Path) -> None:
    job = make_job(tmp_path, train=[blobs(9, count=0)], val=[blobs(8, count=0)], epochs=1)
    train(replace(job, options=Vista2dOptions(**TINY, min_instances=0)))
    assert (job.model / "weights.safetensors").exists()


def batch(empty: bool = False) -> dict[str, torch.Tensor]:
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    if not empty:
        labels[0, 4:14, 4:14], labels[0, 14:24, 4:14] = 3, 9
    depths = torch.from_numpy(np.stack([core(depth(plane.numpy())) for plane in labels]))
    return {
        "image": torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)),
        "labels": labels,
        "distance": depths,
        "contact": labels > 5,
        "weight": torch.ones(2, 32, 32),
    }


@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_gets_a_finite_gradient(empty: bool) -> None:
    learner = Vista2dLearner(Network(Architecture(1, 4, 2)), Vista2dOptions(**TINY))
    losses = learner.training_step(batch(empty))
    losses["loss"].backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert empty or parameter.grad.any(), name
    assert all(torch.isfinite(value) for value in losses.values())


def test_validation_never_uses_the_true_foreground() -> None:
    """What is predicted does not change with the truth."""
    learner = Vista2dLearner(Network(Architecture(1, 4, 2)), Vista2dOptions(**TINY)).eval()
    with torch.no_grad():
        learner.validation_step(batch())
        learner.validation_step(batch(empty=True))
    first, _, third, _ = learner._seen
    np.testing.assert_array_equal(first.found, third.found)
    assert first.truth.any() and not third.truth.any()


def test_validation_counts_what_matches() -> None:
    class Perfect(Network):
        def forward(self, image: torch.Tensor) -> Any:
            maps = super().forward(image)
            inside = (batch()["labels"] > 0).float()
            sure = torch.stack([1 - inside, inside], 1) * 20
            place = batch()["labels"][:, None].expand(-1, 2, -1, -1) * 2.0
            deep = torch.logit(batch()["distance"], eps=1e-6)[:, None]
            return type(maps)(sure, deep, place)

    learner = Vista2dLearner(Perfect(Architecture(1, 4, 2)), Vista2dOptions(**TINY)).eval()
    with torch.no_grad():
        scores = learner.validation_step(batch())
    assert scores["f1@0.5"] == (4, 4)
    assert scores["mean_f1"][0] > 3


def test_calibration_finds_what_scores_best() -> None:
    truth = np.zeros((48, 48), np.int64)
    truth[4:20, 4:20], truth[4:20, 20:36], truth[30:44, 10:24] = 1, 2, 3
    speck = truth.copy()
    speck[40:45, 40:45] = 4
    maps = PixelMaps(
        np.where(speck > 0, 0.35, 0.05).astype(np.float32),  # shy: the default finds nothing
        depth(speck),
        np.zeros((2, 48, 48), np.float32),  # the embedding would join neighbours
    )
    pairs = [(maps, truth)]
    default = calibration._score(pairs, Vista2dPredictOptions())
    found = calibration.search(pairs)
    assert found.foreground_threshold == 0.3
    assert found.bandwidth == 0
    assert found.min_size == 30
    assert default == 0 and calibration._score(pairs, found) > 0.95


def test_validation_patches_are_spread_evenly() -> None:
    grid = PatchGrid([blobs(seed) for seed in range(4)], (1, 32, 32))
    assert len(grid) == 16
    patches = ValidationPatches(grid, Vista2dOptions(**TINY, val_patches=8))
    assert len(patches) == 8
    names = [grid[i].name for i in patches._chosen]
    assert names == [f"blobs-{seed}" for seed in range(4) for _ in range(2)]
    assert patches[0]["image"].shape == (1, 1, 32, 32)

"""Options that do not go together are refused, and all presets train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.events import Progress  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import TrainerSpec, TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg_vista.network import Network  # noqa: E402
from cellseg_vista.options import Vista3dOptions, VistaOptions  # noqa: E402
from cellseg_vista.presets import PRESETS_2D, PRESETS_3D  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "preset"),
    [("vista2d", name) for name in PRESETS_2D] + [("vista3d", name) for name in PRESETS_3D],
)
def test_every_preset_trains(name: str, preset: str, tmp_path: Path) -> None:
    spec = Plugins().get(TrainerSpec, name)
    given = {k: v for k, v in spec.presets[preset].items() if k in spec.options.model_fields}
    depth = {"patch_depth": 8} if name == "vista3d" else {}
    tiny = {"feature_size": 4, "emb_dim": 4, "patch_size": 32, "batch_size": 1, "accumulate": 1}
    tiny["levels"] = 3
    options = spec.options(**{**given, **tiny, **depth, "precision": "32-true"}, fast_dev_run=True)
    events: list[Any] = []
    job: TrainJob[Any] = TrainJob(
        options=options,
        train=[blobs(1, (1, 64, 64) if name == "vista2d" else (12, 48, 48))],
        val=[],
        epochs=1,
        seed=0,
        device="cpu",
        checkpoint=tmp_path / "checkpoint",
        model=tmp_path / "model",
        previews=tmp_path,
    )
    job.checkpoint.mkdir()
    job.model.mkdir()
    spec.train(job, events.append)
    (step,) = (e for e in events if isinstance(e, Progress))
    assert np.isfinite(step.metrics["train/loss"]) and step.metrics["train/loss_ins"] > 0
    assert Network.load(job.model).architecture.encoder == options.encoder


def test_the_options_are_checked_against_each_other() -> None:
    for wrong in (
        {"class_weights": (1.0, 1.0)},
        {"class_weights": (1.0, -1.0, 1.0, 1.0)},
        {"ignore_index": 4},
        {"ignore_index": -1},
        {"ce_weight": 0, "dice_weight": 0},
        {"class_weights": (1.0,) * 4, "ce_weight": 0},
        {"distance_reach": 3, "weight_distance": 0},
        {"weight_contact": 2, "weight_distance": 0},
        {"delta_v": 1, "weight_pull": 0},
        {"push_reach": 1, "weight_push": 0},
        {"weight_bone": 2, "weight_pull": 0, "weight_push": 0, "weight_norm": 0},
        {"encoder_weights": "vista3d.pt"},
        {"encoder": "segresnet", "deep_supervision": 1},
        {"deep_supervision": 3},
    ):
        with pytest.raises(ValueError, match=f"--{next(iter(wrong)).split('_')[0]}"):
            VistaOptions(**{"num_classes": 4, "levels": 3, **wrong})


def test_a_training_can_be_resumed_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = Vista3dOptions(encoder="segresnet_ds", encoder_weights="vista3d.pt")
    assert options.encoder_weights == tmp_path / "vista3d.pt"

"""Whatever backend is given a checkpoint from a stranger: it is refused, and runs nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cellseg.errors import WeightsError
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.testing import BackendTests

torch = pytest.importorskip("torch")

TINY: dict[str, dict[str, Any]] = {
    "vista3d": {"encoder": "segresnet_ds", "patch_depth": 16, "patch_size": 32},
}
SHAPES = {"vista3d": (16, 32, 32)}


def _options() -> list[tuple[str, str]]:
    """The options of installed trainers that name a file with weights."""
    return [
        (trainer.name, name)
        for trainer in Plugins().all(TrainerSpec).values()
        for name, field in trainer.options.model_fields.items()
        if "Path" in str(field.annotation) and ("checkpoint" in name or "weights" in name)
        if (trainer.name, name) != ("vista2d", "encoder_weights")  # refused, as it is for volumes
    ]


class Creates:
    """What runs when a pickle with it is loaded: a folder appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(("backend", "option"), _options())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_runs_no_code(backend: str, option: str, zipped: bool, tmp_path: Path) -> None:
    file, canary = tmp_path / "evil.pth", tmp_path / "canary"
    content = {"model": {"w": torch.zeros(1)}, "more": Creates(canary)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    trainer = Plugins().get(TrainerSpec, backend)
    known = {n: v for n, v in TINY.get(backend, {}).items() if n in trainer.options.model_fields}
    space = {
        "backend": backend,
        "shape": SHAPES.get(backend, (1, 64, 64)),
        "train_options": {**known, option: file},
    }
    job = type("Tiny", (BackendTests,), space)._job(trainer, tmp_path / "run", 1)
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        trainer.train(job, lambda event: None)
    assert not canary.exists()


def test_options_with_checkpoints_are_known() -> None:
    found = {backend for backend, _ in _options()}
    assert {"cellsam", "cellsam2", "microsam", "fewshot", "vista3d"} <= found


def test_resuming_runs_no_code(tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    from cellseg.torch.checkpoints import Checkpoints

    canary = tmp_path / "canary"
    module = torch.nn.Linear(1, 1)
    state = {"module": module.state_dict(), "position": Creates(canary)}
    torch.save(state, tmp_path / "step-00000001-epoch-0001.ckpt")
    with pytest.raises(WeightsError, match="could run code"):
        Checkpoints(tmp_path, Fabric(accelerator="cpu", devices=1)).load({"module": module})
    assert not canary.exists()


def test_checkpoints_of_experiments_run_no_code(tmp_path: Path) -> None:
    from cellseg_cellsam.training.utils.checkpoints import CheckpointManager

    canary = tmp_path / "canary"
    manager = CheckpointManager(tmp_path / "kept")
    path = manager.save({"w": torch.zeros(1), "epoch": 1}, epoch=1, score=0.5)
    torch.save({"w": Creates(canary)}, path)
    with pytest.raises(WeightsError, match="could run code"):
        manager.load("best")
    assert not canary.exists()

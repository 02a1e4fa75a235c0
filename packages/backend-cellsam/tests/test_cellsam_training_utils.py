"""What goes along with a training: memory, metrics, checkpoints, early stopping."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import ConfigError, DataError, DeviceError, WeightsError  # noqa: E402
from cellseg_cellsam.training.utils import (  # noqa: E402
    Best,
    CheckpointManager,
    EarlyStopping,
    GPUMonitor,
    MetricsTracker,
)
from cellseg_cellsam.training.utils.memory import describe  # noqa: E402


def test_memory_is_measured_and_written() -> None:
    lines: list[str] = []
    found = GPUMonitor("cpu", lines.append).print_memory_summary("Training Start")
    assert found["device"] == "cpu" and "allocated" not in found
    assert found["process_peak"] >= found["process"] > 10
    (line,) = lines
    assert line.startswith("Training Start: no GPU is used") and f"{found['process']:.0f}" in line


def test_memory_grows_by_what_is_held() -> None:
    monitor = GPUMonitor("cpu", lambda line: None)
    before = monitor.memory()["process"]
    held = torch.ones(64 * 2**18)  # 64 MiB
    assert 48 < monitor.memory()["process"] - before < 96
    assert held.sum() > 0


def test_memory_of_a_gpu_is_described() -> None:
    numbers = {"device": "cuda:0", "name": "A100", "allocated": 10.0, "reserved": 20.0,
               "peak": 15.0, "free": 900.0, "total": 1000.0, "process": 5.0}  # fmt: skip
    line = describe(numbers)
    for part in ("cuda:0 (A100)", "10 MiB allocated", "15 MiB at most", "900 of 1000 MiB free"):
        assert part in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="for computers without CUDA")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DeviceError):
        GPUMonitor("cuda").memory()
    with pytest.raises(DeviceError, match="NVIDIA"):
        GPUMonitor("cpu").reset_peak()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_of_cuda() -> None:
    monitor = GPUMonitor("cuda", lambda line: None)
    monitor.reset_peak()
    before = monitor.memory()
    held = torch.ones(64 * 2**18, device="cuda")
    after = monitor.memory()
    assert after["allocated"] - before["allocated"] >= 64
    assert after["peak"] >= after["allocated"] and held.numel()


def test_metrics_are_kept_by_epoch_and_gone_on_with(tmp_path: Path) -> None:
    tracker = MetricsTracker(save_dir=tmp_path / "metrics")
    tracker.update({"loss": 0.5, "f1": 0.8}, epoch=1)
    tracker.update({"loss": 0.25}, epoch=2)
    tracker.update({"f1": 0.7}, epoch=2)
    file = tracker.save_metrics()
    assert json.loads(file.read_text())["epochs"][1] == {"epoch": 2, "loss": 0.25, "f1": 0.7}
    again = MetricsTracker(tmp_path / "metrics")
    again.update({"loss": torch.tensor(0.125), "f1": math.nan}, epoch=3)
    again.save_metrics()
    history = MetricsTracker(tmp_path / "metrics").history
    assert history["loss"] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert math.isnan(history["f1"][2][1])
    assert again.best("f1") == Best(1, 0.8) and again.best("loss", "min") == (3, 0.125)
    assert not list((tmp_path / "metrics").glob(".part*"))


def test_metrics_that_are_none(tmp_path: Path) -> None:
    tracker = MetricsTracker(tmp_path)
    with pytest.raises(ConfigError, match="'f1' is no number"):
        tracker.update({"f1": "good"}, epoch=1)  # type: ignore[dict-item]
    assert tracker.history == {}
    with pytest.raises(ConfigError, match="no value of the metric 'f1'"):
        tracker.best("f1")
    with pytest.raises(ConfigError, match="epoch -1"):
        tracker.update({"f1": 1}, epoch=-1)
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(DataError, match=r"metrics\.json"):
        MetricsTracker(tmp_path)


def test_stopping_counts_evaluations_without_a_better_score() -> None:
    stopping = EarlyStopping(patience=2)
    assert [stopping.step(x) for x in (0.1, 0.3, 0.2, 0.4, 0.4, 0.1)] == [False] * 5 + [True]
    assert stopping.best == 0.4 and stopping.best_at == 4 and stopping.stale == 2


def test_stopping_by_loss_with_a_least_difference() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.1, mode="min")
    assert [stopping.step(x) for x in (1.0, 0.95, 0.85, math.nan, 0.8)] == [False] * 4 + [True]
    assert stopping.best == 0.85


def test_stopping_waits_for_any_of_several_metrics() -> None:
    stopping = EarlyStopping(patience=1, mode={"loss": "min", "f1": "max"})
    assert not stopping.step({"loss": 1.0, "f1": 0.1})
    assert not stopping.step({"loss": 2.0, "f1": 0.2})
    assert not stopping.step({"loss": 0.5, "f1": 0.1})
    assert stopping.step({"loss": 0.5, "f1": 0.2})
    assert stopping.best == {"loss": 0.5, "f1": 0.2}
    with pytest.raises(ConfigError, match="wants loss, f1"):
        stopping.step(0.5)


def test_stopping_waits_longer_where_learning_took_longer() -> None:
    stopping = EarlyStopping(patience=1, patience_share=0.5)
    done = [stopping.step(x) for x in (0.1, 0.2, 0.3, 0.4, 0.4, 0.4)]
    assert done == [False] * 5 + [True]


def test_stopping_goes_on_from_a_state() -> None:
    one, other = EarlyStopping(patience=3), EarlyStopping(patience=3)
    for score in (0.5, 0.4, 0.3):
        one.step(score)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one.step(0.2) and other.step(0.2) and other.best == 0.5
    with pytest.raises(ConfigError):
        EarlyStopping(patience=0)
    with pytest.raises(ConfigError, match="'up'"):
        EarlyStopping(mode="up")  # type: ignore[arg-type]


def state(value: float) -> dict[str, Any]:
    return {"weight": torch.full((2, 2), value), "bias": torch.zeros(2)}


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_best=2)
    for epoch, score in enumerate((0.5, 0.9, 0.7, 0.9, 0.1), start=1):
        manager.save(state(epoch), epoch=epoch, score=score)
    assert [one.epoch for one in manager.checkpoints] == [2, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints.json", "epoch-0002.safetensors", "epoch-0004.safetensors",
        "epoch-0005.safetensors",
    ]  # fmt: skip
    again = CheckpointManager(tmp_path, keep_best=2)
    assert float(again.load("best")["weight"][0, 0]) == 2
    assert float(again.load("last")["weight"][0, 0]) == 5
    assert float(again.load(4)["weight"][0, 0]) == 4
    with pytest.raises(ConfigError, match="no checkpoint 1"):
        again.load(1)
    with pytest.raises(DataError, match="mode 'max'"):
        CheckpointManager(tmp_path, mode="min")


def test_lower_scores_can_be_better_and_nan_never_is(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, mode="min")
    for epoch, score in ((1, 0.5), (2, math.nan), (3, 0.7)):
        manager.save(state(epoch), epoch=epoch, score=score)
    assert manager.best is not None and manager.best.epoch == 1
    assert [one.epoch for one in manager.checkpoints] == [1, 3]


def test_states_of_optimisers_come_back_without_running_code(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    manager = CheckpointManager(tmp_path)
    whole = {"model": layer.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 3}
    path = manager.save(whole, epoch=3)
    assert path.suffix == ".pt" and manager.best is None
    found = manager.load("last")
    assert found["epoch"] == 3
    torch.testing.assert_close(found["model"]["weight"], layer.weight.detach())
    assert found["optimiser"]["param_groups"] == optimiser.state_dict()["param_groups"]
    with pytest.raises(ConfigError, match=r"state\['model'\] is a Linear"):
        manager.save({"model": layer}, epoch=4)
    assert [one.epoch for one in manager.checkpoints] == [3]


def test_damaged_checkpoints_are_errors(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    plain = manager.save(state(1), epoch=1, score=1)
    plain.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"epoch-0001\.safetensors cannot be read"):
        manager.load("best")
    other = manager.save({"epoch": 2, "a": [1]}, epoch=2, score=2)
    other.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"epoch-0002\.pt is damaged"):
        manager.load("best")
    other.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        manager.load(2)

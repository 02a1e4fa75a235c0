"""One GPU for each worker process, with a driver that is made up."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cluster_fakes import logged, run, until
from engine_fakes import digest, discs

from cellseg.engine import gpus
from cellseg.errors import ConfigError, DeviceError

HERE = Path(__file__).parent


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    (tmp_path / "images").mkdir()
    for number in range(4):
        np.save(tmp_path / "images" / f"{number}.npy", discs((90, 80), seed=number))
    return tmp_path / "images"


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A driver that lists three GPUs, and a folder for locks."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '0, GPU-aa\\n1, GPU-bb\\n2, GPU-bc\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(gpus, "_PATIENCE", 0.0)
    return program


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa", "GPU-bb", "GPU-bc"]),
        ("2,0", ["GPU-bc", "GPU-aa"]),
        ("GPU-bc,GPU-a", ["GPU-bc", "GPU-aa"]),
        ("1,GPU-b,0", ["GPU-bb"]),
        ("1,-1,0", ["GPU-bb"]),
        ("MIG-12", ["MIG-12"]),
        ("", []),
    ],
)
def test_visible_gpus(smi, monkeypatch, visible, expected):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpus.visible_gpus()
    assert [gpu.uuid for gpu in found] == expected
    assert [gpu.index for gpu in found] == list(range(len(expected)))


def test_no_driver_no_gpus(smi):
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert gpus.visible_gpus() == []
    assert gpus.own_device("auto") == "auto"


def test_a_driver_that_does_not_answer(smi, monkeypatch):
    """Nobody takes that for a computer without GPUs: all workers would take the same one."""
    smi.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpus, "_ANSWER", 0.1)
    with pytest.raises(DeviceError, match="does not answer"):
        gpus.visible_gpus()


def test_each_process_takes_a_gpu_of_its_own(smi, monkeypatch):
    held, taken = [], []
    for _ in range(3):
        held.append(gpus._Own())
        monkeypatch.setattr(gpus, "_own", held[-1])
        taken.append(gpus.own_device("auto"))
        assert gpus.own_device("cuda") == taken[-1]
        assert gpus.own_device("cpu") == "cpu"
    assert taken == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(gpus, "_own", gpus._Own())
    with pytest.raises(ConfigError, match=r"All 3 GPU\(s\) .* are taken") as caught:
        gpus.own_device("auto")
    assert "at most 3 worker(s)" in caught.value.hint
    held[1].held.close()  # as when its process ends
    assert gpus.own_device("auto") == "cuda:1"
    held[0].held.close()
    held[2].held.close()
    gpus._own.held.close()


def test_more_workers_than_gpus(smi, images, tmp_path):
    with pytest.raises(ConfigError, match=r"--workers 4: this computer has 3 GPU\(s\)") as caught:
        run(images, tmp_path / "out", workers=4, device="auto")
    assert "--workers 3" in caught.value.hint
    with pytest.raises(ConfigError, match="--device cuda:1"):
        run(images, tmp_path / "out", workers=2, device="cuda:1")
    assert not (tmp_path / "out").exists()


def test_workers_on_gpus(smi, images, tmp_path):
    run(images, tmp_path / "one")
    log = tmp_path / "log"
    run(images, tmp_path / "out", workers=2, device="auto", options={"log": str(log)})
    assert digest(tmp_path / "out") == digest(tmp_path / "one")
    devices = {pid: device for pid, _, device, _ in logged(log)}
    assert sorted(devices.values()) == ["cuda:0", "cuda:1"]
    gone = [int(pid) for pid in devices]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in gone))

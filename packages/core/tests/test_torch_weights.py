"""Weights on disk, devices, and the promise that options need no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import DeviceError, WeightsError  # noqa: E402
from cellseg.torch.devices import memory_errors, resolve_device  # noqa: E402
from cellseg.torch.weights import load_weights, save_weights, seeded  # noqa: E402


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    one, other = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with seeded(3):
            module = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        save_weights(module, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_seeding_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(99):
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


def test_bad_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match="is missing"):
        load_weights(torch.nn.Linear(3, 4), file)
    save_weights(torch.nn.Linear(3, 5), file)
    with pytest.raises(WeightsError, match=r"w\.safetensors does not fit"):
        load_weights(torch.nn.Linear(3, 4), file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(WeightsError, match=r"w\.safetensors cannot be read"):
        load_weights(torch.nn.Linear(3, 4), file)


def test_devices_resolve_or_say_why_not() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match="no such kind") as error:
        resolve_device("gpu")
    assert "cuda:1" in (error.value.hint or "")
    with pytest.raises(DeviceError, match="cpu, cuda or mps only"):
        resolve_device("meta")
    with pytest.raises(DeviceError, match="--device cuda:77"):
        resolve_device("cuda:77")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_lack_of_memory_becomes_a_device_error(error: Exception) -> None:
    with pytest.raises(DeviceError) as caught, memory_errors("smaller, please"):
        raise error
    assert caught.value.hint == "smaller, please" and caught.value.exit_code == 7


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("no"):
        raise RuntimeError("shapes differ")


def test_options_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, cellseg.torch, cellseg.torch.options;"
        "sys.exit(','.join({'torch', 'numpy', 'lightning'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""What the diagnosis says of GPUs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellseg import diagnosis
from cellseg.specs import Finding
from cellseg.workflows import doctor_devices
from cellseg.workflows.doctor_devices import Driver


class FakeCuda:
    """What torch says of GPUs."""

    def __init__(self, there: bool = True, free: float = 0.9, arch: str = "sm_90") -> None:
        self._there, self._free, self._arch = there, free, arch

    def is_available(self) -> bool:
        return self._there

    def device_count(self) -> int:
        return 1

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name="H200", major=9, minor=0)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self._free < 0:
            raise RuntimeError("CUDA error: all devices are busy\nmore")
        total = 140 * diagnosis.GIB
        return int(self._free * total), total

    def is_bf16_supported(self, including_emulation: bool) -> bool:
        return not including_emulation

    def get_arch_list(self) -> list[str]:
        return [self._arch]


def cuda(fake: FakeCuda, built: str | None, driver: Driver | None) -> list[Finding]:
    torch = SimpleNamespace(cuda=fake, version=SimpleNamespace(cuda=built), __version__="2.15")
    return list(doctor_devices._cuda(torch, driver))


def test_a_gpu_is_described() -> None:
    _, gpu = cuda(FakeCuda(), "13.0", Driver("580.1", "13.0"))
    assert gpu.state == "ok" and gpu.what == "cuda:0"
    assert gpu.value == ("H200, 140.0 GiB, 126.0 GiB free, compute capability 9.0, with bf16")


@pytest.mark.parametrize(
    ("fake", "state", "said"),
    [
        (FakeCuda(free=0.05), "warning", "7.0 GiB free"),
        (FakeCuda(free=-1), "problem", "all devices are busy"),
        (FakeCuda(arch="sm_80"), "problem", "torch has no code"),
        (FakeCuda(arch="sm_90a"), "ok", "bf16"),
        (FakeCuda(arch="compute_80"), "ok", "bf16"),
        (FakeCuda(arch="compute_100"), "problem", "torch has no code"),
    ],
)
def test_a_gpu_that_cannot_be_used(fake: FakeCuda, state: str, said: str) -> None:
    gpu = cuda(fake, "13.0", Driver("580.1", "13.0"))[-1]
    assert gpu.state == state and said in gpu.value and bool(gpu.advice) == (state != "ok")


@pytest.mark.parametrize(
    ("built", "driver", "said"),
    [
        ("13.0", Driver("535.1", "12.2"), "driver runs CUDA up to 12.2"),
        (None, Driver("535.1", "12.2"), "without CUDA"),
        ("12.8", Driver("535.1", "12.2"), "cannot use it"),
        ("13.0", None, "no NVIDIA GPU"),
    ],
)
def test_torch_and_driver_that_do_not_fit(
    built: str | None, driver: Driver | None, said: str
) -> None:
    (found,) = cuda(FakeCuda(there=False), built, driver)
    assert said in found.value and found.state == ("ok" if driver is None else "warning")
    assert driver is None or "--torch-backend=auto" in found.advice


def test_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'if [ -n "$1" ]; then echo "550.54, NVIDIA A40, 46068, 1024, 8.6"; else\n'
        'echo "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4  |"; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = doctor_devices.read_driver()
    assert found == Driver(
        "550.54", "12.4", ("NVIDIA A40, 45.0 GiB, 1.0 GiB used, compute capability 8.6",)
    )
    program.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(subprocess.SubprocessError):
        doctor_devices.read_driver()
    failing = next(iter(doctor_devices.devices()))
    assert failing.state == "warning" and "nvidia-smi fails" in failing.value
    program.unlink()
    assert doctor_devices.read_driver() is None


def test_without_torch_there_is_nothing_to_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_devices, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor_devices, "read_driver", lambda: None)
    assert list(doctor_devices.devices()) == []


def test_kernels_are_compared_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from cellseg.torch import kernel_checks

    def differ(by: float | Exception) -> Finding:
        def difference(device: object) -> float:
            if isinstance(by, Exception):
                raise by
            return by

        return kernel_checks.compared("kernels", difference, 0.1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert differ(RuntimeError("not called")).state == "ok"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert differ(0.05).state == "ok"
    assert differ(0.2).state == differ(float("nan")).state == "problem"
    broken = differ(RuntimeError("no gcc\nlong"))
    assert broken.state == "problem" and broken.value.endswith("RuntimeError: no gcc")
    assert "gcc" in broken.advice

"""What ``cellseg doctor`` says of GPUs: as the driver, as PyTorch and as Triton see them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from cellseg.diagnosis import GIB
from cellseg.specs import Finding

_PATIENCE = 20
"""Seconds that nvidia-smi may take; it hangs where a GPU does."""
_OTHER_TORCH = "uv pip install --force-reinstall torch torchvision --torch-backend=auto"


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver, as nvidia-smi tells."""

    version: str
    cuda: str
    """The newest CUDA that it runs, such as ``12.4``; empty where it does not say."""
    gpus: tuple[str, ...] = ()
    """A line for each."""


def devices() -> Iterator[Finding]:
    """The driver and its GPUs, then what torch can compute on, then Triton."""
    try:
        driver = read_driver()
    except (OSError, subprocess.SubprocessError) as error:
        driver = None
        advice = "The driver does not answer: reboot this computer, or ask who runs it."
        yield Finding("warning", "NVIDIA driver", f"nvidia-smi fails: {error}", advice)
    if driver is not None:
        cuda = f", for CUDA up to {driver.cuda}" if driver.cuda else ""
        yield Finding("ok", "NVIDIA driver", f"{driver.version}{cuda}")
        for index, gpu in enumerate(driver.gpus):
            yield Finding("ok", f"GPU {index}", gpu)
    if find_spec("torch") is None:  # core needs none
        return
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways; all are the finding
        advice = "Reinstall it: uv pip install --force-reinstall torch"
        yield Finding("problem", "torch import", f"{type(error).__name__}: {error}", advice)
        return
    yield _numpy(torch)
    yield from _cuda(torch, driver)
    if torch.backends.mps.is_available():
        yield Finding("ok", "MPS", "available: --device mps")
    yield triton_finding(torch)


def read_driver() -> Driver | None:
    """What nvidia-smi tells; None where there is none.

    Raises:
        OSError: it cannot be run.
        subprocess.SubprocessError: it fails or does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = "driver_version,name,memory.total,memory.used,compute_cap"
    told = _run(program, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [[word.strip() for word in line.split(",")] for line in told.splitlines() if line]
    lines = tuple(
        f"{row[1]}, {_mib(row[2])}, {_mib(row[3])} used, compute capability {row[4]}"
        for row in rows
        if len(row) == 5
    )
    cuda = re.search(r"CUDA(?: UMD)? Version: *([0-9.]+)", _run(program))
    return Driver(rows[0][0] if rows else "without GPUs", cuda[1] if cuda else "", lines)


def triton_finding(torch: Any) -> Finding:
    """Whether Triton is there, and makes kernels that compute what they should on this GPU."""
    what = "Triton"
    if find_spec("triton") is None:
        return Finding("ok", what, "not installed; PyTorch alone does the same, slower on a GPU")
    from cellseg.torch.kernel_checks import compared, version

    if not torch.cuda.is_available():
        return Finding("ok", what, f"{version()}; its kernels are for NVIDIA GPUs only")
    from cellseg.torch.components import connected_components

    def differing(device: Any) -> float:
        masks = torch.arange(64, device=device).reshape(1, 8, 8) % 3 > 0
        here = connected_components(masks.cpu())
        return float((connected_components(masks).cpu() != here).sum())

    return compared(what, differing, 0)


def _cuda(torch: Any, driver: Driver | None) -> Iterator[Finding]:
    built = torch.version.cuda
    if built is None and driver is not None:
        value = f"torch {torch.__version__} is built without CUDA, but there is an NVIDIA driver"
        yield Finding("warning", "CUDA", value, f"Install one with CUDA: {_OTHER_TORCH}")
        return
    if (
        built is not None
        and driver is not None
        and driver.cuda
        and _major(driver.cuda) < _major(built)
    ):
        value = f"torch is built for CUDA {built}, the driver runs CUDA up to {driver.cuda}"
        advice = f"Update the driver, or install the torch that fits it: {_OTHER_TORCH}"
        yield Finding("warning", "CUDA", value, advice)
        return
    if not torch.cuda.is_available():
        if driver is not None:
            value = f"there is an NVIDIA driver, but torch (for CUDA {built}) cannot use it"
            advice = (
                "See whether CUDA_VISIBLE_DEVICES hides the GPUs; else update the driver, or"
                f" install the torch that fits it: {_OTHER_TORCH}"
            )
            yield Finding("warning", "CUDA", value, advice)
        else:
            yield Finding("ok", "CUDA", "no NVIDIA GPU: networks run on the CPU")
        return
    yield Finding("ok", "CUDA", f"torch is built for CUDA {built}")
    for index in range(torch.cuda.device_count()):
        yield _gpu(torch, index)


def _gpu(torch: Any, index: int) -> Finding:
    """One GPU as torch sees it; makes a context on it, as any work would."""
    what = f"cuda:{index}"
    properties = torch.cuda.get_device_properties(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        advice = "Another process may hold it: look at nvidia-smi, or choose another --device."
        return Finding("problem", what, f"{properties.name}: {first}", advice)
    value = (
        f"{properties.name}, {total / GIB:.1f} GiB, {free / GIB:.1f} GiB free, compute capability"
        f" {properties.major}.{properties.minor}, {'with' if bf16 else 'without'} bf16"
    )
    if not _has_code(torch, properties.major, properties.minor):
        advice = f"Install a torch that does: {_OTHER_TORCH}"
        return Finding("problem", what, f"{value}; torch has no code for it", advice)
    if free < total / 10:
        advice = "Other processes use it: look at nvidia-smi, or choose another --device."
        return Finding("warning", what, value, advice)
    return Finding("ok", what, value)


def _has_code(torch: Any, major: int, minor: int) -> bool:
    """Whether torch was compiled for such a GPU: the same generation, or an older PTX."""
    for arch in torch.cuda.get_arch_list():
        kind, _, digits = arch.partition("_")
        number = int(re.match(r"\d+", digits)[0])  # type: ignore[index]  # sm_90a
        of = divmod(number, 10)
        if (kind == "sm" and of[0] == major and of[1] <= minor) or (
            kind == "compute" and of <= (major, minor)
        ):
            return True
    return False


def _numpy(torch: Any) -> Finding:
    """Whether torch and numpy understand each other: both are compiled, against each other."""
    import numpy as np

    try:
        torch.from_numpy(np.ones(1)).numpy()
    except (RuntimeError, TypeError) as error:
        advice = "Install versions that fit: uv pip install --upgrade torch numpy"
        value = f"torch {torch.__version__} and numpy {np.__version__}: {error}"
        return Finding("problem", "torch and numpy", value, advice)
    return Finding("ok", "torch and numpy", "exchange arrays")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    return done.stdout


def _mib(number: str) -> str:
    return f"{int(number) / 1024:.1f} GiB" if number.isdigit() else f"{number} MiB"


def _major(version: str) -> int:
    return int(version.split(".")[0])

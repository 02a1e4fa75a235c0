"""What ``cellseg doctor`` says of Python, the processors, the memory and the environment."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from cellseg.diagnosis import GIB, variable
from cellseg.machine import processors
from cellseg.specs import Finding
from cellseg.workflows.doctor_limits import Limits, limits

LITTLE_MEMORY = 4 * GIB
_SHOWN = (
    "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "TMPDIR", "PYTHONPATH", "TRITON_INTERPRET",
    "CUDA_LAUNCH_BLOCKING",
)  # fmt: skip
"""Variables that change what happens, none of them a secret."""


def system() -> Iterator[Finding]:
    """Python, the operating system, processors and memory, and surprising variables."""
    yield Finding("ok", "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("ok", "System", f"{platform.system()} {platform.release()}, {platform.machine()}")
    allowed = limits()
    yield _processors(processors(), allowed, variable("SLURM_CPUS_PER_TASK"))
    yield _memory(memory(), allowed)
    for name in _SHOWN:
        value = os.environ.get(name)
        if value is not None:
            yield _variable(name, value)


def memory() -> tuple[int | None, int | None]:
    """Bytes of main memory, in all and not in use; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None, None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux
        return total, None
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    free = told.get("MemAvailable")
    return total, int(free.split()[0]) * 1024 if free else None


def _processors(count: int, allowed: Limits, slurm: str | None) -> Finding:
    what, value = "Processors", str(count)
    if (all_of_them := os.cpu_count() or 1) > count:
        value += f" of {all_of_them}"
    quota = allowed.processors
    if quota is not None and quota < count:
        value += f", but the time of {quota:g} (a limit of the container or job)"
        threads = max(1, int(quota))
        advice = f"More threads only wait for each other: export OMP_NUM_THREADS={threads}"
        return Finding("warning", what, value, advice)
    if slurm is not None and slurm.isdigit():
        value += f", SLURM_CPUS_PER_TASK={slurm}"
        if int(slurm) < count:
            advice = f"The job asked for {slurm}; keep to them: export OMP_NUM_THREADS={slurm}"
            return Finding("warning", what, value, advice)
    return Finding("ok", what, value)


def _memory(found: tuple[int | None, int | None], allowed: Limits) -> Finding:
    total, free = found
    if total is None:
        return Finding("ok", "Memory", "unknown on this system")
    value = f"{total / GIB:.1f} GiB"
    if allowed.memory is not None and allowed.memory < total:
        value = f"{allowed.memory / GIB:.1f} GiB allowed (container or job) of {value}"
        total = allowed.memory
        free = min(left for left in (free, allowed.left) if left is not None)
    least = total
    if free is not None:
        value += f", {free / GIB:.1f} GiB available"
        least = min(total, free)
    if least < LITTLE_MEMORY:
        advice = "Close other programs, or use one worker and small tiles: --workers 1."
        return Finding("warning", "Memory", value, advice)
    return Finding("ok", "Memory", value)


def _variable(name: str, value: str) -> Finding:
    advice = _surprise(name, value)
    return Finding("warning" if advice else "ok", name, value or "empty", advice)


def _surprise(name: str, value: str) -> str:
    """What is wrong with the value of a variable; empty where nothing is."""
    if name == "OMP_NUM_THREADS":
        if not value.isdigit() or int(value) < 1:
            return "It is no number of threads: unset OMP_NUM_THREADS"
        if int(value) > processors():
            return f"More threads than processors are slower: export OMP_NUM_THREADS={processors()}"
    if name == "CUDA_VISIBLE_DEVICES" and value.strip() in ("", "-1", "NoDevFiles"):
        return "It hides all GPUs: unset CUDA_VISIBLE_DEVICES"
    if name == "TRITON_INTERPRET" and value == "1":
        return "Kernels run in an interpreter, thousands of times slower: unset TRITON_INTERPRET"
    if name == "CUDA_LAUNCH_BLOCKING" and value == "1":
        return "The GPU waits after each step: unset CUDA_LAUNCH_BLOCKING"
    if name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "TMPDIR"):
        place = Path(value)
        if place.exists() and not os.access(place, os.W_OK):
            return f"This folder cannot be written: unset {name}, or choose another."
    return ""

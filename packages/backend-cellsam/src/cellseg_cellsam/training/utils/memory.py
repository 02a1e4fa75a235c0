"""How much memory a training takes, on its GPU and in its process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellseg.errors import DeviceError

_MIB = 2**20


class GPUMonitor:
    """Measures memory where it is asked to; nothing runs in between.

    Args:
        device: ``auto`` (the first CUDA device, else an Apple GPU, else the CPU), ``cpu``,
            ``cuda``, ``cuda:1`` or ``mps``.
        write: gets each line that is to be shown.

    Raises:
        DeviceError: there is no such device; it is found when the memory is first measured.
    """

    def __init__(self, device: str = "auto", write: Callable[[str], object] = print) -> None:
        self.device = device
        self._write = write

    def memory(self) -> dict[str, Any]:
        """What is in use now.

        Returns:
            ``device``, its name as torch has it, and in MiB ``process`` (the memory of this
            process that is in main memory) and ``process_peak`` (the most that it was). On a GPU
            of NVIDIA also ``name``, ``allocated`` (tensors of this process), ``reserved`` (what
            torch keeps for them), ``peak`` (the most that was allocated since ``reset_peak``),
            ``free`` and ``total`` (of the whole GPU, other processes included); on one of Apple
            ``allocated`` and ``reserved``. What the system does not tell is left out.
        """
        import torch

        from cellseg.torch.devices import resolve_device

        device = resolve_device(self.device)
        found: dict[str, Any] = {"device": str(device)}
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            found |= {
                "name": torch.cuda.get_device_name(device),
                "allocated": torch.cuda.memory_allocated(device) / _MIB,
                "reserved": torch.cuda.memory_reserved(device) / _MIB,
                "peak": torch.cuda.max_memory_allocated(device) / _MIB,
                "free": free / _MIB,
                "total": total / _MIB,
            }
        elif device.type == "mps":
            found |= {
                "allocated": torch.mps.current_allocated_memory() / _MIB,
                "reserved": torch.mps.driver_allocated_memory() / _MIB,
            }
        return found | _process()

    def print_memory_summary(self, title: str = "") -> dict[str, Any]:
        """Write one line about the memory.

        Args:
            title: what the line begins with, such as the moment.

        Returns:
            The numbers, as ``memory`` gives them.
        """
        found = self.memory()
        self._write((f"{title}: " if title else "") + describe(found))
        return found

    def reset_peak(self) -> None:
        """Let the peak of the GPU count from here.

        Raises:
            DeviceError: there is no NVIDIA GPU; only those count a peak that can be reset.
        """
        import torch

        from cellseg.torch.devices import resolve_device

        device = resolve_device(self.device)
        if device.type != "cuda":
            raise DeviceError(
                f"{device}: only an NVIDIA GPU has a peak that can be reset.",
                hint="The peak of the process is that since it began.",
            )
        torch.cuda.reset_peak_memory_stats(device)


def describe(found: dict[str, Any]) -> str:
    """One line on what ``GPUMonitor.memory`` gave."""
    process = []
    if "process" in found:
        process.append(f"the process has {found['process']:.0f} MiB in main memory")
    if "process_peak" in found:
        process.append(f"had {found['process_peak']:.0f} MiB at most")
    rest = ", ".join(process)
    if "allocated" not in found:
        return f"no GPU is used; {rest or 'the system does not tell the memory of a process'}"
    parts = [f"{found['allocated']:.0f} MiB allocated", f"{found['reserved']:.0f} MiB reserved"]
    if "peak" in found:
        parts.append(f"{found['peak']:.0f} MiB at most")
    if "total" in found:
        parts.append(f"{found['free']:.0f} of {found['total']:.0f} MiB free")
    name = f" ({found['name']})" if "name" in found else ""
    return f"{found['device']}{name}: {', '.join(parts)}" + (f"; {rest}" if rest else "")


def _process() -> dict[str, float]:
    """The memory of this process in MiB, as far as the system tells it."""
    found = {}
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        lines = []
    names = {"VmRSS:": "process", "VmHWM:": "process_peak"}
    for words in (line.split() for line in lines):
        if words and words[0] in names:
            found[names[words[0]]] = int(words[1]) / 1024
    if "process_peak" not in found and sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["process_peak"] = peak / (_MIB if sys.platform == "darwin" else 1024)
    return found

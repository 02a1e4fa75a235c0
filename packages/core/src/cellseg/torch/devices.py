"""Which device to compute on, and what to say when it is not there or too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch  # noqa: TID253

from cellseg.errors import DeviceError
from cellseg.memory import out_of_memory


def resolve_device(device: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    ``auto`` is the first CUDA device, else the GPU of an Apple computer, else the CPU.

    Raises:
        DeviceError: there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DeviceError(
            f"--device {device}: there is no such kind of device.",
            hint="Choose auto, cpu, cuda, cuda:1 or mps.",
        ) from None
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f"--device {device}: PyTorch {torch.__version__} finds no CUDA device.",
                hint="See nvidia-smi and cellseg doctor; --device cpu works everywhere.",
            )
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise DeviceError(
                f"--device {device}: there are only {count} CUDA devices, cuda:0 to"
                f" cuda:{count - 1}."
            )
        return torch.device("cuda", found.index or 0)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            f"--device {device}: PyTorch finds no Apple GPU.", hint="Use --device cpu."
        )
    if found.type not in ("cpu", "mps"):
        raise DeviceError(
            f"--device {device}: cellseg computes on cpu, cuda or mps only.",
            hint="Use --device auto.",
        )
    return found


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """What a network computes in for ``32-true``, ``bf16`` or ``fp16``.

    Raises:
        DeviceError: the device cannot.
    """
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError(
            "--precision fp16: a CPU does not compute in it.", hint="Use --precision bf16."
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextmanager
def memory_errors(hint: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into a DeviceError with ``hint``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError("The GPU's memory does not suffice.", hint=hint) from error
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise DeviceError("The computer's memory does not suffice.", hint=hint) from error
        raise


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads on a CPU; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

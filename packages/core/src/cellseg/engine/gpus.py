"""One GPU for each worker process: which there are, and which are taken."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import ConfigError, DeviceError, StorageError
from cellseg.files import locked, storage_errors

_QUESTION = ["--query-gpu=index,uuid", "--format=csv,noheader"]
_ANSWER = 60.0
"""Seconds that the driver may take to answer."""
_PATIENCE = 10.0
"""Seconds to wait for the GPU of a process that is just ending."""
_ANY = ("auto", "cuda")
"""Devices that leave it to us which GPU it is."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that this process may use."""

    index: int
    """What it is called here: ``cuda:INDEX``."""
    uuid: str
    """What it is called everywhere."""


class _Own:
    """The GPU of this process, which it keeps until it ends."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.held = ExitStack()
        self.gpu: Gpu | None = None


_own = _Own()


def visible_gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this computer that CUDA_VISIBLE_DEVICES leaves to this process, as CUDA
    numbers them; none where there is no driver.

    Raises:
        DeviceError: the driver does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *_QUESTION], capture_output=True, text=True, timeout=_ANSWER
        )
    except OSError:
        return []
    except subprocess.TimeoutExpired as error:  # several workers would take the same GPU
        raise DeviceError(
            f"{program} does not answer within {_ANSWER:.0f} s, so nobody knows which GPUs there "
            "are.",
            hint="Mend the driver, or use --device cpu.",
        ) from error
    if done.returncode:  # there is the program, but no driver
        return []
    pairs = [line.partition(",") for line in done.stdout.splitlines() if "," in line]
    known = {index.strip(): uuid.strip() for index, _, uuid in pairs}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(known) if visible is None else visible.split(",")
    found: list[str] = []
    for name in names:
        uuid = _named(name.strip(), known)
        if uuid is None:  # CUDA sees none of those after it either
            break
        found.append(uuid)
    return [Gpu(index, uuid) for index, uuid in enumerate(found)]


def _named(name: str, known: dict[str, str]) -> str | None:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES means: its number, the start of its name, or a
    part of one (MIG)."""
    if name.startswith("MIG-"):
        return name
    if name.startswith("GPU-"):
        fitting = [uuid for uuid in known.values() if uuid.startswith(name)]
        return fitting[0] if len(fitting) == 1 else None
    return known.get(name)


def own_device(device: str) -> str:
    """The device of this worker process: of several GPUs one that no other worker has.

    Args:
        device: what the user asked for; ``auto`` and ``cuda`` become ``cuda:1``, for example. On a
            computer without GPU they stay as they are.

    Raises:
        ConfigError: there are more workers than GPUs.
    """
    if device not in _ANY:
        return device
    with _own.mutex:
        if _own.gpu is None:
            _own.gpu = _take(visible_gpus())
        return device if _own.gpu is None else f"cuda:{_own.gpu.index}"


def _take(gpus: list[Gpu]) -> Gpu | None:
    if not gpus:
        return None
    # Otherwise CUDA counts the fastest GPU first, and nvidia-smi the first one on the bus.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    end = time.monotonic() + _PATIENCE
    while True:
        for gpu in gpus:
            attempt = ExitStack()
            if attempt.enter_context(locked(_lock_file(gpu))):
                _own.held = attempt
                return gpu
            attempt.close()
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    raise ConfigError(
        f"All {len(gpus)} GPU(s) of {socket.gethostname()} are taken by other workers, and each "
        "worker needs one of its own.",
        hint=f"Start at most {len(gpus)} worker(s) there, or use --device cpu.",
    )


def _lock_file(gpu: Gpu) -> Path:
    """The file that stands for a GPU, in a folder where nobody else can put anything."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"cellseg-{user}"
    with storage_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != user:
        raise StorageError(
            f"{folder} belongs to somebody else.", hint="Set TMPDIR to a folder of your own."
        )
    return folder / f"{gpu.uuid.replace('/', '-')}.lock"


def check_device(device: str, workers: int | None) -> None:
    """Refuse what cannot give each worker a GPU of its own.

    Args:
        device: what the user asked for.
        workers: how many this computer is to have; None where they run on others.

    Raises:
        ConfigError: there are fewer GPUs, or all are to use one.
    """
    if device.startswith("cuda:"):
        raise ConfigError(
            f"--device {device}: several workers would share this GPU.",
            hint="With --device cuda each worker takes one of its own"
            + ("." if workers is None else "; or use --workers 1."),
        )
    if workers is None or device not in _ANY:
        return
    gpus = len(visible_gpus())
    if 0 < gpus < workers:
        raise ConfigError(
            f"--workers {workers}: this computer has {gpus} GPU(s), and each worker takes one.",
            hint=f"Use --workers {gpus}; or, to compute without GPUs, --device cpu.",
        )

"""Runs of cellseg that are killed, and looks at what they leave.

Each run is a fork of this process, which has imported everything that a run imports, and done
nothing else: so hundreds of runs take minutes.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
LIMIT = 600.0
"""Seconds after which a run hangs."""


@dataclass(frozen=True)
class Fault:
    """What befalls a run: a signal after some seconds, or at a change of the file system."""

    signal: int = signal.SIGKILL
    seconds: float | None = None
    change: int | None = None
    """The number of the change, from 1, just before which it comes."""
    late: float = 0.0
    """So many seconds after that change, if it is a kill."""

    def __str__(self) -> str:
        when = f"{self.seconds:.3f} s" if self.change is None else f"change {self.change}"
        return f"{signal.Signals(self.signal).name} at {when}" + " and a bit" * bool(self.late)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    seconds: float
    changes: int
    """Of the file system; 0 where it did not live to tell."""
    recorded: tuple[str, ...]
    """Records of tiles and of finished images that it wrote."""
    text: str
    orphans: int = 0
    """Processes that outlived it."""


class Zygote:
    """Starts runs.

    Args:
        folder: for their logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def warm(self, argv: list[str]) -> None:
        """Import what a run imports, without running anything here."""
        names = self._folder / "modules"
        ended = self.run(argv, modules=names)
        if ended.code:
            raise SystemExit(f"{' '.join(argv)} ended with {ended.code}: {ended.text}")
        for name in names.read_text().split():
            with suppress(Exception):  # parts of packages that only exist while they run
                importlib.import_module(name)

    def run(
        self,
        argv: list[str],
        fault: Fault | None = None,
        modules: Path | None = None,
        fresh: bool = False,
    ) -> Ended:
        """One run of the command line, and what befalls it; ``fresh`` in a new interpreter."""
        log, tale = self._folder / "log", self._folder / "tale"
        for file in (log, tale):
            file.write_bytes(b"")
        began = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it is itself
        pid = os.fork()
        if not pid:
            _be(argv, fault, log, tale, modules, fresh)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        status = _wait(pid, began, fault)
        told = tale.read_text().split("\n")
        counts = [int(line[1:]) for line in told if line.startswith("#")]
        return Ended(
            os.waitstatus_to_exitcode(status),
            time.monotonic() - began,
            counts[-1] if counts else 0,
            tuple(line for line in told if line and line[0] != "#"),
            log.read_text(errors="replace"),
            _orphans(pid),
        )

    def ask(self, function: Callable[[], list[str]]) -> list[str]:
        """Call a function in a fork, so that it leaves no threads here; it gives texts."""
        answer = self._folder / "answer"
        pid = os.fork()
        if not pid:
            code = 1
            try:
                answer.write_text(json.dumps(function()))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            return ["the look at it failed"]
        return list(json.loads(answer.read_text()))


def _be(
    argv: list[str],
    fault: Fault | None,
    log: Path,
    tale: Path,
    modules: Path | None,
    fresh: bool,
) -> None:
    """The run itself; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        out = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "cellseg_cli.main", *argv])
        changes = _watch(fault, os.open(tale, os.O_WRONLY | os.O_APPEND))
        from cellseg_cli.main import main

        try:
            main(argv)
        except SystemExit as error:
            code = int(error.code or 0)
        if modules is not None:
            modules.write_text("\n".join(sorted(sys.modules)))
        changes()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            threading._shutdown()  # which waits for threads, as the end of a process does
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch(fault: Fault | None, tale: int) -> Callable[[], None]:
    """Count what changes the file system, and strike when it is time."""
    count = 0

    def changed() -> None:
        nonlocal count
        count += 1
        if fault is None or count != fault.change:
            return
        if fault.late:
            # Nobody handles this signal, so it kills; and it comes in the midst of a long write.
            signal.setitimer(signal.ITIMER_REAL, fault.late)
        else:
            os.kill(os.getpid(), fault.signal)

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(args[0], str) and isinstance(args[2], int) and args[2] & WRITING:
                changed()
        elif event in CHANGES:
            if event == "os.rename":
                name = os.fspath(args[1])
                if name.endswith(".tile") or os.sep + "done" + os.sep in name:
                    os.write(tale, f"{name}\n".encode())
            changed()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        changed()
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(heard)
    return lambda: void(os.write(tale, f"#{count}\n".encode()))


def void(value: object) -> None:
    """Nothing."""


def _wait(pid: int, began: float, fault: Fault | None) -> int:
    """Strike when it is time, and wait for the end."""
    if fault is not None and fault.seconds is not None:
        while time.monotonic() < began + fault.seconds:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(0.001)
        os.kill(pid, fault.signal)
    while time.monotonic() < began + LIMIT:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    raise SystemExit(f"A run hangs after {fault}.")


def _orphans(session: int, patience: float = 20.0) -> int:
    """How many processes of a session outlive its first one for long; these are ended."""
    began = time.monotonic()
    while True:
        left = [pid for pid in _pids() if _session(pid) == session]
        if not left or time.monotonic() > began + patience:
            break
        time.sleep(0.05)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session(pid: int) -> int:
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] == "Z" else int(fields[3])
    return -1


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None] | None]:
    """A file system of its own at a folder, and what sets its size in bytes; None without the
    right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def passing(path: Path) -> bool:
    """Whether a path is one of those that a run may leave half-written, and another one removes."""
    return any(
        part.startswith((".part-", ".old-", ".lock")) or (part[0] == "." and part.endswith(".part"))
        for part in path.parts
    ) or path.name.endswith(("-journal", "-wal", "-shm"))


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(folder: Path) -> list[str]:
    """What is there under its final name and cannot be read."""
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder)
        if passing(name) or not path.is_file():
            continue
        try:
            _read(path)
        except Exception as error:
            found.append(f"{name} is damaged: {type(error).__name__}: {error}")
    return found


def _read(path: Path) -> None:
    """Read all of a file, as what its name says."""
    data = path.read_bytes()
    kind = path.suffix
    if kind in (".json", ".geojson"):
        json.loads(data)
    elif kind == ".jsonl":
        for line in data.decode().split("\n")[:-1]:  # the last one is not finished, or empty
            json.loads(line)
    elif kind == ".yaml":
        import yaml

        yaml.safe_load(data)
    elif kind == ".html":
        assert data.rstrip().endswith(b"</html>"), "it has no end"
    elif kind == ".csv":
        rows = list(csv.reader(data.decode().splitlines()))
        assert data.endswith(b"\n") and len({len(row) for row in rows}) == 1, "rows are cut"
    elif kind == ".tile":
        from cellseg.engine.records import is_whole

        assert is_whole(path), "it is no whole record"
    else:
        _read_binary(path, kind)


def _read_binary(path: Path, kind: str) -> None:
    if kind == ".png":
        import cv2

        assert cv2.imread(str(path)) is not None, "it is no picture"
    elif kind in (".tif", ".tiff"):
        import tifffile

        tifffile.imread(path)
    elif kind in (".h5", ".hdf5"):
        import h5py

        with h5py.File(path) as file:
            file.visititems(lambda name, item: void(item[()] if hasattr(item, "dtype") else 0))
    elif kind == ".safetensors":
        from safetensors.numpy import load_file

        assert load_file(path), "it is empty"
    elif kind == ".ckpt":
        import torch

        torch.load(path, weights_only=True, map_location="cpu")
    elif kind == ".db":
        import sqlite3

        # A copy: a journal that a kill left is rolled back by whoever opens the database next.
        with tempfile.TemporaryDirectory() as folder:
            for file in path.parent.glob(f"{path.name}*"):
                shutil.copy(file, folder)
            with closing(sqlite3.connect(Path(folder) / path.name)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    elif kind == ".onnx":
        import onnx

        onnx.checker.check_model(str(path))
    elif kind in (".zip", ".pt2", ".pt"):
        import zipfile

        assert zipfile.ZipFile(path).testzip() is None


def make_data(base: Path) -> None:
    """Images to train on, and others to segment."""
    import numpy as np
    import tifffile

    from cellseg.synthetic import make_image, write_dataset

    write_dataset(base / "data", 5, size=64, seed=1)
    images = base / "images"
    images.mkdir()
    tifffile.imwrite(images / "big.tif", make_image(5, (160, 150))[0])
    for number in range(3):
        tifffile.imwrite(images / f"small{number}.tif", make_image(number, (60, 50))[0])
    movie = np.stack([make_image(20 + number, (90, 80))[0] for number in range(2)])
    tifffile.imwrite(images / "movie.tif", movie, metadata={"axes": "TYX"})

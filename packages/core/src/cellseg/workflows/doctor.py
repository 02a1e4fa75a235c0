"""What is installed here, whether it works, and what to do where it does not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cellseg.errors import CellsegError, PluginError, UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.specs import BaseWeights, ExporterSpec, Finding, PredictorSpec, TrainerSpec

GIB = 2**30
LITTLE_MEMORY = 4 * GIB
LITTLE_DISK = 5 * GIB
PACKAGES = (
    "cellseg-core", "cellseg-cli", "numpy", "scipy", "scikit-image", "tifffile", "zarr",
    "h5py", "pydantic", "pluggy", "torch", "lightning",
)  # fmt: skip


@dataclass(frozen=True)
class InstalledBackend:
    """One installed backend."""

    name: str
    version: str
    package: str
    trainer: TrainerSpec[Any] | None = None
    predictor: PredictorSpec[Any] | None = None
    exporters: tuple[ExporterSpec[Any], ...] = ()
    error: PluginError | None = None
    """Why it is broken; None where it works."""

    @property
    def summary(self) -> str:
        """One line about it."""
        card = self.trainer or self.predictor
        return card.summary if card else ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its models are for."""
        return tuple(
            sorted({t for card in (self.trainer, self.predictor) if card for t in card.tasks})
        )

    @property
    def weights(self) -> tuple[BaseWeights, ...]:
        """Published weights that it can start from."""
        return self.trainer.weights if self.trainer else ()

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "name": self.name,
            "summary": self.summary,
            "version": self.version,
            "package": self.package,
            "tasks": list(self.tasks),
            "trains": self.trainer is not None,
            "predicts": self.predictor is not None,
            "exports": [card.name for card in self.exporters],
            "broken": str(self.error) if self.error else None,
            "hint": self.error.hint if self.error else None,
        }


@dataclass(frozen=True)
class Diagnosis:
    """All findings about this computer."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether cellseg can work here; warnings do not matter."""
        return all(finding.state != "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def lines(self) -> list[str]:
        """For a terminal: one line each, advice below."""
        marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
        width = max(len(finding.what) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{marks[finding.state]}  {finding.what.ljust(width)}  {finding.value}")
            if finding.advice:
                lines.append(f"{' ' * (width + 11)}{finding.advice}")
        return lines


def installed_backends(plugins: Plugins) -> list[InstalledBackend]:
    """All backends, by name, the broken ones too; imports every plugin.

    Raises:
        PluginError: two plugins clash, which makes the list itself meaningless.
    """
    trainers, predictors = plugins.all(TrainerSpec), plugins.all(PredictorSpec)
    names = sorted({*plugins.names(), *trainers, *predictors})
    return [_backend(plugins, name, trainers.get(name), predictors.get(name)) for name in names]


def installed_backend(plugins: Plugins, name: str) -> InstalledBackend:
    """One backend, by name.

    Raises:
        UnknownPluginError: there is none of that name.
        PluginError: it is broken.
    """
    found = [backend for backend in installed_backends(plugins) if backend.name == name]
    if not found:
        plugins.get(PredictorSpec, name)  # raises, with the nearest name
        raise UnknownPluginError(f"No backend called {name!r}.")
    if found[0].error is not None:
        raise found[0].error
    return found[0]


def diagnose(plugins: Plugins | None = None, directory: Path | None = None) -> Diagnosis:
    """Look at this computer and at what is installed.

    Args:
        plugins: the installed plugins; found by itself if None, and a clash among them is then a
            finding.
        directory: where the user is about to write; by default the working directory.
    """
    return Diagnosis(
        (
            *_system(),
            *_packages(),
            *_devices(),
            *_disk(directory or Path.cwd()),
            *_backends(plugins),
        )
    )


def _backend(
    plugins: Plugins,
    name: str,
    trainer: TrainerSpec[Any] | None,
    predictor: PredictorSpec[Any] | None,
) -> InstalledBackend:
    error = plugins.broken.get(name)
    exporters = plugins.exporters(name) if error is None and trainer else []
    return InstalledBackend(
        name=name,
        version=plugins.version(name),
        package=plugins.package(name),
        trainer=trainer,
        predictor=predictor,
        exporters=tuple(exporters),
        error=error,
    )


def _system() -> Iterable[Finding]:
    yield Finding("ok", "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("ok", "System", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("ok", "Processors", str(_processors()))
    memory = _memory()
    if memory is None:
        yield Finding("ok", "Memory", "unknown on this system")
    elif memory < LITTLE_MEMORY:
        advice = "Use one worker and small tiles: --workers 1."
        yield Finding("warning", "Memory", f"{memory / GIB:.1f} GiB", advice)
    else:
        yield Finding("ok", "Memory", f"{memory / GIB:.1f} GiB")


def _packages() -> Iterable[Finding]:
    for name in PACKAGES:
        try:
            yield Finding("ok", name, version(name))
        except PackageNotFoundError:
            if name == "torch":
                advice = "Backends that train networks bring it, such as cellseg-vista."
                yield Finding("ok", name, f"not installed. {advice}")
            elif name not in ("lightning", "cellseg-cli"):
                yield Finding("problem", name, "not installed", f"uv pip install {name}")


def _devices() -> Iterable[Finding]:
    """What torch can compute on; torch is imported only where it is installed."""
    if find_spec("torch") is None:
        return
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways; all are the finding
        advice = "Reinstall it: uv pip install --force-reinstall torch"
        yield Finding("problem", "torch import", f"{type(error).__name__}: {error}", advice)
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / GIB:.0f} GiB"
            yield Finding("ok", f"cuda:{index}", f"{properties.name}, {memory}")
    elif shutil.which("nvidia-smi"):
        advice = "Update the driver, or install the torch that fits it: see pytorch.org."
        yield Finding(
            "warning", "CUDA", "there is an NVIDIA driver, but torch cannot use it", advice
        )
    else:
        yield Finding("ok", "CUDA", "no NVIDIA GPU: networks run on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("ok", "MPS", "available: --device mps")


def _disk(directory: Path) -> Iterable[Finding]:
    what = "Working directory"
    try:
        free = shutil.disk_usage(directory).free
        with tempfile.NamedTemporaryFile(dir=directory):
            pass
    except OSError as error:
        advice = "Go where you may write, or give --output a path elsewhere."
        yield Finding("problem", what, f"{directory}: {error.strerror}", advice)
        return
    value = f"{directory}: {free / GIB:.1f} GiB free"
    if free < LITTLE_DISK:
        yield Finding("warning", what, value, "Results of large images may not fit.")
    else:
        yield Finding("ok", what, value)


def _backends(plugins: Plugins | None) -> Iterable[Finding]:
    try:
        found = installed_backends(plugins or Plugins())
    except CellsegError as error:
        yield Finding("problem", "Backends", str(error), error.hint or "")
        return
    if not found:
        advice = "Install one, such as: uv pip install cellseg-vista"
        yield Finding("warning", "Backends", "none", advice)
    for backend in found:
        what = f"Backend {backend.name}"
        if backend.error is not None:
            yield Finding("problem", what, str(backend.error), backend.error.hint or "")
        else:
            yield Finding("ok", what, f"{backend.package} {backend.version}".strip())


def _processors() -> int:
    """How many this process may use, which in a container or a job is fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None

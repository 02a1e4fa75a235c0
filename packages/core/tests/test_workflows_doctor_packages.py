"""What the diagnosis says of packages, and what plugins may say of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellseg import diagnosis
from cellseg.specs import Finding
from cellseg.workflows import doctor_packages


def named(findings: Iterable[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def states(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_missing_packages_are_problems_but_torch_and_extras_are_optional(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = diagnosis.version

    def version(name: str) -> str:
        if name in ("torch", "lightning", "tifffile", "optuna"):
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(diagnosis, "version", version)
    found = list(doctor_packages.packages())
    assert named(found, "tifffile").state == "problem"
    assert named(found, "tifffile").advice == "uv pip install tifffile"
    assert named(found, "torch").state == named(found, "extra tune").state == "ok"
    assert 'uv pip install "cellseg-core[tune]"' in named(found, "extra tune").value
    assert "tifffile" not in named(found, "what core needs").value
    assert "cellseg-core" in [f.what for f in found if "tifffile" in f.value], "it needs it"


def test_every_extra_is_explained() -> None:
    from importlib.metadata import metadata

    assert set(metadata("cellseg-core").get_all("Provides-Extra") or ()) == set(doctor_packages.FOR)


def test_versions_that_are_too_old_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = diagnosis.version
    monkeypatch.setattr(diagnosis, "version", lambda n: "0.1" if n == "optuna" else real(n))
    found = list(doctor_packages.packages())
    assert named(found, "extra tune").state == "warning"
    assert "0.1 is installed" in named(found, "extra tune").value


def test_packages_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [f for f in doctor_packages.conflicts() if f.state != "ok"]
    versions = {
        "segment-anything": "1.0",
        "segment-anything-py": "1.0.1",
        "opencv-python": "4.10",
        "opencv-python-headless": "5.0",
        "torch": "2.15.0+cu130",
        "torchvision": "0.29.2+cu121",
    }
    libraries = [SimpleNamespace(name=f"nvidia-cudnn-cu{n}") for n in (12, 13)]
    monkeypatch.setattr(doctor_packages, "installed", versions.get)
    monkeypatch.setattr(doctor_packages, "distributions", lambda: libraries)
    found = list(doctor_packages.conflicts())
    assert states(found) == {
        "segment-anything": "problem",
        "opencv": "warning",
        "CUDA libraries": "warning",
        "torchvision": "problem",
    }
    assert "uv pip uninstall segment-anything" in named(found, "segment-anything").advice
    assert "uv pip uninstall opencv-python &&" in named(found, "opencv").advice


def test_needed_and_optional_packages() -> None:
    assert diagnosis.needed("numpy", "numpy").state == "ok"
    missing = diagnosis.needed("no-such-package", "no_such")
    assert missing.state == "problem" and missing.advice == "uv pip install no-such-package"
    assert diagnosis.needed("numpy", "no_such").state == "problem", "its files are gone"
    there, not_there = (diagnosis.optional(n, n, "--x") for n in ("numpy", "no_such"))
    assert there.state == not_there.state == "ok"
    assert "--x: uv pip install no_such" in not_there.value


def test_folders_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnosis.writable("x", tmp_path, "a") == Finding("ok", "x", str(tmp_path))
    later = diagnosis.writable("x", tmp_path / "b" / "c", "a")
    assert later.state == "ok" and "not made yet" in later.value
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert diagnosis.writable("x", tmp_path, "a").state == "problem"
    assert not list(tmp_path.iterdir())

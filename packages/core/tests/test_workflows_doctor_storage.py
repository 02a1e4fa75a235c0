"""What the diagnosis says of folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellseg.specs import Finding
from cellseg.workflows import doctor_storage


def named(findings: Iterable[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def states(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_a_directory_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    found = list(doctor_storage.storage(tmp_path / "gone", None))
    assert named(found, "Working directory").state == "problem"


def test_an_output_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = list(doctor_storage.storage(tmp_path, tmp_path / "file"))
    assert named(found, "Output").state == "problem"


def test_little_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert next(doctor_storage.folder("x", tmp_path, "advice")).state == "warning"


def test_file_systems_without_locks_and_in_memory_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_storage, "_locks", lambda file: False)
    monkeypatch.setattr(doctor_storage, "file_system", lambda place: "nfs4")
    monkeypatch.setattr(doctor_storage, "LITTLE_DISK", 0)
    found = list(doctor_storage.folder("x", tmp_path, "advice"))
    assert states(found) == {"x": "ok", "x: locks": "warning"}
    assert "several computers" in found[0].value
    monkeypatch.setattr(doctor_storage, "file_system", lambda place: "tmpfs")
    assert next(doctor_storage.folder("x", tmp_path, "advice")).state == "warning"


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    odd = tmp_path / "an odd name"
    odd.mkdir()
    escaped = str(odd).replace(" ", "\\040")
    mounts.write_text(f"a / ext4 rw 0 0\nb {escaped} nfs4 rw 0 0\nc {tmp_path}/an xfs rw 0 0\n")
    assert doctor_storage.file_system(odd, mounts) == "nfs4"
    assert doctor_storage.file_system(tmp_path, mounts) == "ext4"
    assert doctor_storage.file_system(tmp_path, tmp_path / "none") == ""

"""What the diagnosis says of SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg.workflows.doctor_cluster import cluster


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs; no job."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


def sbatch(folder: Path, script: str) -> None:
    (folder / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "sbatch").chmod(0o755)


def test_no_slurm() -> None:
    (found,) = cluster()
    assert found.state == "ok" and "no sbatch" in found.value


def test_slurm_says_its_version(path: Path) -> None:
    sbatch(path, "echo slurm 23.02.6")
    (found,) = cluster()
    assert found.state == "ok" and found.value.startswith("slurm 23.02.6 (")


def test_a_slurm_that_fails_is_a_warning(path: Path) -> None:
    sbatch(path, "exit 3")
    (found,) = cluster()
    assert found.state == "warning" and "fails" in found.value and found.advice


def test_inside_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    found = list(cluster())[-1]
    assert found.what == "inside a job" and found.value.startswith("job 123, partition gpu")

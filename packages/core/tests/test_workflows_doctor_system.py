"""What the diagnosis says of processors, memory and variables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from cellseg import diagnosis
from cellseg.specs import Finding
from cellseg.workflows import doctor_system
from cellseg.workflows.doctor_limits import Limits, limits


def named(findings: Iterable[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def group(root: Path, line: str, **files: str) -> Path:
    """A computer whose control group says this."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    with (root / "proc/self/cgroup").open("a") as file:
        file.write(line + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_control_groups_2_count_from_the_tightest_of_all_above(tmp_path: Path) -> None:
    root = group(
        tmp_path,
        "0::/slurm/job_1/step_0",
        slurm__memory_DOT_max="max\n",
        slurm__job_1__memory_DOT_max="1000\n",
        slurm__job_1__memory_DOT_current="700\n",
        slurm__job_1__memory_DOT_stat="anon 500\ninactive_file 200\n",
        slurm__job_1__step_0__memory_DOT_max="max\n",
        slurm__job_1__cpu_DOT_max="250000 100000\n",
        slurm__job_1__step_0__cpu_DOT_max="max 100000\n",
    )
    assert limits(root) == Limits(memory=1000, left=500, processors=2.5)


def test_limits_of_control_groups_1(tmp_path: Path) -> None:
    root = group(
        tmp_path,
        "4:memory:/docker/x",
        memory__memory_DOT_limit_in_bytes="5000\n",
        memory__memory_DOT_usage_in_bytes="1000\n",
        memory__memory_DOT_stat="total_inactive_file 0\n",
        cpu__docker__x__cpu_DOT_cfs_quota_us="150000\n",
        cpu__docker__x__cpu_DOT_cfs_period_us="100000\n",
        cpu__cpu_DOT_cfs_quota_us="-1\n",
        cpu__cpu_DOT_cfs_period_us="100000\n",
    )
    group(root, "2:cpu,cpuacct:/docker/x")
    found = limits(root)
    assert (found.memory, found.left) == (5000, 4000)
    # "cpu,cpuacct" is often mounted as "cpu", which is where the limit is.
    assert found.processors == 1.5


def test_no_control_groups(tmp_path: Path) -> None:
    assert limits(tmp_path) == Limits()
    huge = group(tmp_path, "4:memory:/", memory__memory_DOT_limit_in_bytes=f"{2**63 - 4096}\n")
    assert limits(huge) == Limits()


def test_processors_and_memory_are_those_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = diagnosis.GIB
    processors, memory = doctor_system._processors, doctor_system._memory
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert processors(8, Limits(), None) == Finding("ok", "Processors", "8 of 64")
    limited = processors(8, Limits(processors=2.5), None)
    assert limited.state == "warning" and "OMP_NUM_THREADS=2" in limited.advice
    loose = processors(64, Limits(), "4")
    assert loose.state == "warning" and "OMP_NUM_THREADS=4" in loose.advice
    assert processors(4, Limits(), "4").state == "ok"

    assert memory((64 * gib, 60 * gib), Limits()).value == "64.0 GiB, 60.0 GiB available"
    job = memory((64 * gib, 60 * gib), Limits(memory=8 * gib, left=5 * gib))
    assert job.state == "ok" and "8.0 GiB allowed" in job.value and "5.0 GiB available" in job.value
    for found, allowed in (
        ((2 * gib, None), Limits()),
        ((64 * gib, gib), Limits()),
        ((64 * gib, 60 * gib), Limits(memory=8 * gib, left=gib)),
    ):
        assert memory(found, allowed).state == "warning"
    assert memory((None, None), Limits()).state == "ok"


def test_memory_and_processors_are_measured() -> None:
    total, free = doctor_system.memory()
    assert total is None or total > 2**27
    assert free is None or total is None or 0 < free <= total
    assert doctor_system.processors() >= 1


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("OMP_NUM_THREADS", "1", "ok"),
        ("OMP_NUM_THREADS", "100000", "warning"),
        ("OMP_NUM_THREADS", "many", "warning"),
        ("CUDA_VISIBLE_DEVICES", "0,1", "ok"),
        ("CUDA_VISIBLE_DEVICES", "", "warning"),
        ("CUDA_VISIBLE_DEVICES", "-1", "warning"),
        ("TRITON_INTERPRET", "1", "warning"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "ok"),
    ],
)
def test_variables(name: str, value: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    found = named(doctor_system.system(), name)
    assert found.state == state and bool(found.advice) == (state != "ok")

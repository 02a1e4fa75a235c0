"""What ``cellseg doctor`` says of SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from cellseg.diagnosis import variable
from cellseg.specs import Finding

_PATIENCE = 20


def cluster() -> Iterator[Finding]:
    """Whether jobs can be submitted from here, and whether this is one."""
    program = shutil.which("sbatch")
    if program is None:
        yield Finding("ok", "SLURM", "no sbatch here: no jobs are submitted from this computer")
    else:
        yield _version(program)
    job = variable("SLURM_JOB_ID")
    if job is not None:
        told = [f"job {job}"]
        for name, what in (
            ("SLURM_JOB_PARTITION", "partition"),
            ("SLURM_JOB_NODELIST", "on"),
            ("SLURM_CPUS_PER_TASK", "processors per task:"),
            ("SLURM_MEM_PER_NODE", "MB of memory:"),
            ("SLURM_JOB_GPUS", "GPUs:"),
        ):
            if value := variable(name):
                told.append(f"{what} {value}")
        yield Finding("ok", "inside a job", ", ".join(told))


def _version(program: str) -> Finding:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        advice = "cellseg submit needs it: ask who runs the cluster."
        return Finding("warning", "SLURM", f"{program} fails: {error}", advice)
    return Finding("ok", "SLURM", f"{done.stdout.strip()} ({os.path.realpath(program)})")

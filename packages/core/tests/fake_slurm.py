"""The programs of SLURM, as far as cellseg uses them: jobs are processes of this computer.

As a module it installs them in a folder; as a program it is one of them.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sacct", "srun")


def install(folder: Path) -> Path:
    """Write the programs; gives the folder to put in front of PATH."""
    place = folder / "bin"
    place.mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in PROGRAMS:
        command = shlex.join([sys.executable, "-S", __file__, name, str(folder)])
        (place / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (place / name).chmod(0o755)
    return place


def running(folder: Path) -> list[str]:
    """The ids of the jobs."""
    return sorted(path.name for path in (folder / "jobs").iterdir() if path.name.isdigit())


def end_all(folder: Path) -> None:
    """End all jobs."""
    for job in running(folder):
        scancel(folder, [job])


def sbatch(folder: Path, words: list[str]) -> None:
    script = Path(words[-1]).read_text()
    if (folder / "refuse").exists():
        sys.exit((folder / "refuse").read_text())
    number = len(list((folder / "jobs").glob("*.sh"))) + 1
    (folder / "jobs" / f"{number}.sh").write_text(script)
    log = re.search(r"#SBATCH --output=(.*)", script)
    output = shlex.split(log[1])[0].replace("%j", str(number)) if log else os.devnull
    with open(output, "a") as file:
        runner = subprocess.Popen(
            [sys.executable, "-S", __file__, "run", str(folder), str(number)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    (folder / "jobs" / str(number)).write_text(str(runner.pid))
    print(f"Submitted batch job {number}")


def run(folder: Path, words: list[str]) -> None:
    """Run a job, again where it was queued again."""
    (number,) = words
    job, again = folder / "jobs" / number, folder / "jobs" / f"{number}.again"
    variables = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    for count in range(9):
        restarts = {"SLURM_RESTART_COUNT": str(count)} if count else {}
        subprocess.run(["bash", f"{job}.sh"], env={**os.environ, **variables, **restarts})
        if not again.exists():
            break
        again.unlink()
    job.unlink(missing_ok=True)


def scancel(folder: Path, words: list[str]) -> None:
    job = folder / "jobs" / words[0]
    if not job.exists():
        sys.exit(f"scancel: error: Invalid job id {words[0]}")
    group = int(job.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            break
        time.sleep(0.5)
    job.unlink(missing_ok=True)


def scontrol(folder: Path, words: list[str]) -> None:
    assert words[0] == "requeue"
    (folder / "jobs" / f"{words[1]}.again").touch()


def squeue(folder: Path, words: list[str]) -> None:
    print("\n".join(running(folder)))


def sacct(folder: Path, words: list[str]) -> None:
    print("JobID|State|NodeList")
    for path in (folder / "jobs").glob("*.sh"):
        state = "RUNNING" if path.with_suffix("").exists() else "COMPLETED"
        print(f"{path.stem}|{state}|here")


def srun(folder: Path, words: list[str]) -> None:
    while words and words[0].startswith("-"):
        name = words.pop(0)
        if name in ("--output", "--error"):
            file = words.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1 if name == "--output" else 2)
    os.execvp(words[0], words)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])

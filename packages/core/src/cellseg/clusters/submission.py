"""Submitting commands as jobs, through submitit: to SLURM, or as a process of this computer."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cellseg.clusters.command import Job
from cellseg.clusters.recipes import Recipe
from cellseg.clusters.slurm import directives_of, missing_library, refuse_without_slurm
from cellseg.errors import DeviceError

Cluster: TypeAlias = Literal["slurm", "local"]
MOST_RESTARTS = 100
"""How often a job may reach its time limit: an end to a job that makes no progress."""
LOCAL = ("walltime", "cpus", "gpus", "threads", "signal", "requeue", "logs")
"""What of a recipe means something on this computer."""


def submit_job(job: Job, recipe: Recipe, cluster: Cluster, logs: Path, name: str) -> Any:
    """Submit a job.

    Args:
        job: what it does.
        recipe: what it asks for.
        cluster: where to.
        logs: the folder for its logs and for what submitit keeps.
        name: what the cluster calls it.

    Returns:
        The job as submitit has it.

    Raises:
        DeviceError: there is no SLURM here, or it does not take the job.
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
    """
    if sys.platform == "win32":
        raise DeviceError("Jobs cannot be submitted from Windows.", hint="Use Linux or macOS.")
    if cluster == "local":
        with _detached():
            return _local(recipe, logs).submit(job)
    refuse_without_slurm("sbatch", "srun", "scontrol")
    executor = _slurm(recipe, logs, name)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        raise DeviceError(
            f"SLURM does not take the job: {str(error).strip()}",
            hint="Look at the recipe; --dry-run shows the script.",
        ) from error


def job_script(recipe: Recipe, logs: Path, name: str) -> str:
    """The script that is given to ``sbatch``.

    Args:
        recipe: what it asks for.
        logs: the folder for its logs.
        name: what the cluster calls it.

    Raises:
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
    """
    executor = _slurm(recipe, logs, name)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "")).strip()


def _library() -> Any:
    """The package, without the handlers by which it logs to stdout."""
    try:
        import submitit
    except ImportError as error:
        raise missing_library(error) from error
    logging.getLogger("submitit").handlers.clear()
    return submitit


def _slurm(recipe: Recipe, logs: Path, name: str) -> Any:
    class Executor(_library().SlurmExecutor):  # type: ignore[misc]
        """One that can be made where there is no SLURM, to show its script."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(logs, max_num_timeout=MOST_RESTARTS)
    executor.update_parameters(
        job_name=name,
        partition=recipe.partition,
        account=recipe.account,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=recipe.cpus,
        mem=recipe.memory,
        time=max(recipe.seconds // 60, 1),  # submitit counts in minutes
        signal_delay_s=recipe.signal,
        wckey=None,
        setup=[*(f"export {n}={v}" for n, v in recipe.environment.items()), *recipe.setup],
        # Since SLURM 22.05 srun does not know of the cores that were asked of sbatch.
        srun_args=[f"--cpus-per-task={recipe.cpus}"],
        additional_parameters={
            "time": recipe.walltime,
            "requeue" if recipe.requeue else "no-requeue": True,
            **directives_of(recipe),
        },
    )
    return executor


def _local(recipe: Recipe, logs: Path) -> Any:
    executor = _library().LocalExecutor(logs, max_num_timeout=MOST_RESTARTS)
    executor.update_parameters(
        timeout_min=recipe.seconds / 60,
        signal_delay_s=recipe.signal,
        gpus_per_node=recipe.gpus,
    )
    return executor


def local_variables(recipe: Recipe) -> dict[str, str]:
    """What a job on this computer gets in its environment: threads, and its share of the GPUs."""
    if recipe.threads is None:
        cores = min(recipe.cpus, os.cpu_count() or 1)
        recipe = recipe.model_copy(update={"threads": cores})
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return recipe.environment
    mine = ",".join(visible.split(",")[: recipe.gpus])
    return recipe.environment | {"CUDA_VISIBLE_DEVICES": mine}


@contextmanager
def _detached() -> Iterator[None]:
    """Within, processes start that outlive this one and its terminal."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    nothing = os.open(os.devnull, os.O_RDWR)
    kept = [os.dup(descriptor) for descriptor in (0, 1, 2)]
    try:
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        yield
    finally:
        for descriptor, old in enumerate(kept):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(nothing)
        for number, handler in before.items():
            signal.signal(number, handler)

"""Workers as SLURM jobs, through dask-jobqueue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellseg.clusters.recipes import Recipe


@contextmanager
def slurm_workers(recipe: Recipe, jobs: int, folder: Path) -> Iterator[str]:
    """Start workers of a Dask cluster as jobs, and end them afterwards.

    Args:
        recipe: what each job asks for; a job is one worker, with one GPU where the recipe has any.
        jobs: how many.
        folder: where their logs go, on a file system that all machines see.

    Yields:
        The address of the scheduler; workers join as their jobs start.

    Raises:
        DeviceError: there is no SLURM here, or it takes no job.
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
    """
    raise NotImplementedError
    yield ""

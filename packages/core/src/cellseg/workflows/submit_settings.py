"""The settings of ``cellseg submit``. Light: the command line builds its help from them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.options import Options


class SubmitSettings(Options):
    """Where a job goes, and what to do with it."""

    panels: ClassVar = {"Job": ("name", "cluster", "dry_run", "wait")}

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What the cluster calls the job. By default cellseg-train and so on."""
    cluster: Literal["slurm", "local"] = "slurm"
    """Where it runs: on a SLURM cluster, or in the background on this computer, where of the recipe
    only walltime, threads, GPUs, signal, requeue and logs count."""
    dry_run: bool = False
    """Only show the script that would be submitted."""
    wait: bool = False
    """Wait for the end of the job, and end as it does."""

    @model_validator(mode="after")
    def _something_to_wait_for(self) -> SubmitSettings:
        if self.dry_run and self.wait:
            raise ValueError("--wait does nothing with --dry-run")
        return self

"""Submit a command as a job that goes on by itself after its time limit or a failing node."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.clusters.command import Job, Restart, shown
from cellseg.clusters.recipes import Recipe, refuse_odd
from cellseg.clusters.submission import job_script, local_variables, submit_job
from cellseg.errors import CellsegError, ConfigError, InterruptedRunError
from cellseg.files import make_folder
from cellseg.runs import FILE as RUN_FILE
from cellseg.workflows.submit_settings import SubmitSettings

LOGS = "cellseg-jobs"
_LEAST_GRACE = 10.0
_SPARE = 30.0
"""Seconds before the limit at which a job must be queued again."""
_DISPLAY = ("--json", "--quiet", "-q", "--verbose", "-v", "-vv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that was submitted, or shown."""

    command: tuple[str, ...]
    cluster: str
    recipe: Recipe
    logs: Path
    job: str | None = None
    """Its id; None where it was only shown."""
    script: str | None = None
    """What was, or would be, given to ``sbatch``."""
    output: Path | None = None
    """What the command prints."""
    errors: Path | None = None
    """Its progress, notes and failures."""
    ended: bool = False
    """Whether it was waited for."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "job": self.job,
            "cluster": self.cluster,
            "command": f"cellseg {shown(self.command)}",
            "recipe": self.recipe.model_dump(mode="json"),
            "logs": str(self.logs),
            "output": None if self.output is None else str(self.output),
            "errors": None if self.errors is None else str(self.errors),
            "script": self.script,
            "ended": self.ended,
        }

    def lines(self) -> list[str]:
        """For people."""
        command = f"cellseg {shown(self.command)}"
        if self.job is None:
            script = [*self.script.splitlines(), ""] if self.script else []
            return [*script, f"It would run: {command}"]
        local = self.cluster == "local"
        stop = "kill" if local else "scancel"
        where = "as a process of this computer" if local else self.recipe.brief()
        return [
            f"Job {self.job}, {where}: {command}",
            f"Log:     {self.errors}",
            f"Results: {self.output}",
            "It has ended." if self.ended else f"Stop it: {stop} {self.job}",
        ]


def submit(
    command: Sequence[str],
    program: Sequence[str],
    recipe: Recipe,
    settings: SubmitSettings | None = None,
    *,
    restart: Restart | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Submission:
    """Submit a command of cellseg as a job.

    Args:
        command: the words after ``cellseg``; they have been checked.
        program: what to start cellseg with.
        recipe: what the job asks for.
        settings: where it goes, and what to do with it.
        restart: how the command goes on after it was stopped; None where it begins anew.
        interrupted: asked while waiting; True leaves the job alone.

    Raises:
        DeviceError: there is no SLURM here, or it does not take the job.
        ConfigError: the logs cannot be where they are asked for.
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
        InterruptedRunError: ``interrupted()`` said so.
        CellsegError: with ``settings.wait``, of the kind that the command ended with.
    """
    how = settings or SubmitSettings()
    logs = (recipe.logs or Path(LOGS)).absolute()
    try:
        refuse_odd(logs)
    except ValueError as error:
        raise ConfigError(str(error), hint="Give another folder with --logs.") from error
    name = how.name or f"cellseg-{command[0]}"
    words, slurm = tuple(command), how.cluster == "slurm"
    script = job_script(recipe, logs, name) if slurm else None
    if how.dry_run:
        return Submission(
            command=words, cluster=how.cluster, recipe=recipe, logs=logs, script=script
        )
    make_folder(logs)
    job = Job(
        program=tuple(program),
        command=words,
        folder=Path.cwd(),
        state=logs / f"{name}-{uuid.uuid4().hex[:8]}.json",
        restart=restart,
        variables={} if slurm else local_variables(recipe),
        grace=max(recipe.signal - _SPARE, _LEAST_GRACE),
        requeue=recipe.requeue,
    )
    submitted = submit_job(job, recipe, how.cluster, logs, name)
    if how.wait:
        _wait(submitted, job, interrupted)
    return Submission(
        command=words,
        cluster=how.cluster,
        recipe=recipe,
        logs=logs,
        job=str(submitted.job_id),
        script=script,
        output=submitted.paths.stdout,
        errors=submitted.paths.stderr,
        ended=how.wait,
    )


def restart_of(
    command: Sequence[str],
    *,
    output: Path | None = None,
    work: Path | None = None,
    resume: bool = False,
    shard: bool = False,
) -> Restart | None:
    """How a command goes on after it was stopped; None where the same command is given again.

    Args:
        command: the words after ``cellseg``.
        output: what ``train``, ``tune`` and ``cross-validate`` write.
        work: where ``predict`` and ``embed`` keep what is in progress.
        resume: the command itself goes on with something.
        shard: it is a share of a prediction, which goes on by itself.
    """
    from cellseg.workflows.cross_validate_folds import FILE as FOLDS_FILE
    from cellseg.workflows.tune_request import FILE as SEARCH_FILE

    name, *rest = command
    going_on = (name, "--resume", *rest)
    if name in ("train", "tune") and output is not None:
        display = [word for word in rest if word in _DISPLAY]
        file = output.absolute() / (RUN_FILE if name == "train" else SEARCH_FILE)
        return Restart(file, ("resume", str(output), *display))
    if name == "cross-validate" and output is not None and not resume:
        return Restart(output.absolute() / FOLDS_FILE, going_on)
    if name in ("predict", "embed") and work is not None and not (resume or shard):
        return Restart(work.absolute() / "request.json", going_on)
    return None


def _wait(submitted: Any, job: Job, interrupted: Callable[[], bool]) -> None:
    """Wait for a job; raises what its command ended with."""
    while not submitted.done():
        if interrupted():
            raise InterruptedRunError(
                "Stopped waiting.", hint=f"Job {submitted.job_id} goes on by itself."
            )
        time.sleep(0.2)
    error = submitted.exception()
    if error is None:
        return
    known = job.known()
    kinds: dict[int, type[CellsegError]] = {k.exit_code: k for k in CellsegError.__subclasses__()}
    kind = kinds.get(known.get("code", 1), CellsegError)
    last = "\n".join(known.get("last") or str(error).splitlines()[-10:])
    raise kind(
        f"Job {submitted.job_id} failed: cellseg {job.command[0]} ended with:\n{last}",
        hint=f"See {submitted.paths.stderr}",
    )

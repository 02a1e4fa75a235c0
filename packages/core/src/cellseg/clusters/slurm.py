"""Workers as SLURM jobs, through dask-jobqueue."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellseg.clusters.recipes import Recipe, refuse_odd
from cellseg.errors import ConfigError, DeviceError, PluginError
from cellseg.files import make_folder, storage_errors

NAME = "cellseg-worker"
_EVERY = 10.0
"""Seconds between two looks at the jobs."""
_DEATH_TIMEOUT = 300
"""Seconds after which a worker that finds no scheduler ends."""
_MOST_FAILURES = 3
"""How often a job may end in a row before its worker joined."""
_START = 120.0
"""Seconds that SLURM may take to accept the jobs."""
_ANSWER = 60.0
"""Seconds that SLURM may take to say which jobs there are."""
_TAIL = 10
_LOADER = "distributed.client.security-loader"
_security: dict[str, Any] = {}
"""How to speak with each scheduler of this process."""


@contextmanager
def slurm_workers(recipe: Recipe, jobs: int, folder: Path) -> Iterator[str]:
    """Start workers of a Dask cluster as jobs, and end them afterwards.

    A job that ends (at its time limit, with its node) is submitted again. Scheduler and workers
    encrypt what they say, and listen to nobody without the key, which lies among the logs as long
    as they run, for the user alone. A ``distributed.Client`` of this process finds it by itself.

    Args:
        recipe: what each job asks for; a job is one worker, with one GPU where the recipe has any.
        jobs: how many.
        folder: where their logs go, on a file system that all machines see; ``recipe.logs``, where
            it is given, goes before.

    Yields:
        The address of the scheduler; workers join as their jobs start.

    Raises:
        DeviceError: there is no SLURM here, it takes no job, or all jobs end before they join.
        ConfigError: the recipe asks for several GPUs, of which a worker would use one.
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
    """
    check_workers(recipe)
    logs = _logs(recipe, folder)
    _, cluster_class = _library()
    import dask

    make_folder(logs)
    with _certificate(logs) as file:
        security = _speaking(file)
        refused: list[str] = []
        cluster = cluster_class(
            job_cls=_job_class(refused),
            name=NAME,
            security=security,
            scheduler_options={"dashboard": False, "dashboard_address": ":0"},
            **_options(recipe, logs, file),
        )
        address = str(cluster.scheduler_address)
        keeper = _Keeper(cluster, jobs, logs, refused)
        _security[address] = security
        try:
            keeper.begin()
            with dask.config.set({_LOADER: f"{__name__}.{security_of.__name__}"}):
                yield address
        except BaseException as error:
            if keeper.failure is not None and keeper.failure is not error:
                raise keeper.failure from error
            raise
        finally:
            keeper.end()
            cluster.close()
            del _security[address]


def check_workers(recipe: Recipe) -> None:
    """Find out whether workers can be had as jobs, before anything is written.

    Raises:
        ConfigError: the recipe asks for several GPUs, of which a worker would use one.
        DeviceError: there is no SLURM here.
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
    """
    _library()
    if recipe.gpus > 1:
        raise ConfigError(
            f"--slurm: the recipe asks for gpus: {recipe.gpus}, and a worker uses one.",
            hint="Ask for gpus: 1 in the recipe, and for more --workers.",
        )
    refuse_without_slurm("sbatch", "squeue", "scancel")


def security_of(info: Mapping[str, Any]) -> Any:
    """How a client of this process speaks with a scheduler; Dask asks for it.

    Args:
        info: with the ``address``.

    Returns:
        A ``distributed.Security``, or None for one that is not of this process.
    """
    return _security.get(info["address"])


@contextmanager
def _certificate(folder: Path) -> Iterator[Path]:
    """A file with a new key and its certificate, which only the user can read."""
    from distributed import Security

    try:
        made: Any = Security.temporary()  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise PluginError(
            "Workers as jobs need the package cryptography, which is not installed.",
            hint="uv pip install cryptography",
        ) from error
    file = folder / f".{NAME}-{uuid.uuid4().hex}.pem"
    with storage_errors(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(made.tls_client_key + made.tls_client_cert)
            yield file
        finally:
            file.unlink(missing_ok=True)


def _speaking(file: Path) -> Any:
    """What all three sides are told of the key."""
    from distributed import Security

    roles = ("client", "scheduler", "worker")
    fields = {f"tls_{role}_{part}": str(file) for role in roles for part in ("cert", "key")}
    security: Any = Security
    return security(require_encryption=True, tls_ca_file=str(file), **fields)


def slurm_script(
    recipe: Recipe,
    folder: Path,
    address: str = "tls://SCHEDULER:8786",
    name: str = NAME,
    certificate: Path | None = None,
) -> str:
    """The script that is submitted for a worker.

    Args:
        recipe: what it asks for.
        folder: where its log goes, if ``recipe.logs`` does not say.
        address: of the scheduler.
        name: of the worker.
        certificate: the file with key and certificate, for an address that begins with ``tls``.

    Raises:
        PluginError: the extra ``cellseg-core[cluster]`` is not installed.
    """
    job_class, _ = _library()
    logs = _logs(recipe, folder)
    options = _options(recipe, logs, certificate or logs / "CERTIFICATE")
    return str(job_class(address, name=name, **options).job_script())


def refuse_without_slurm(*programs: str) -> None:
    """Raise a DeviceError where one of the programs of SLURM is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise DeviceError(
            f"There is no SLURM on this computer: {', '.join(missing)} cannot be found.",
            hint="Type this on a computer from which you submit jobs with sbatch.",
        )


def missing_library(error: ImportError) -> PluginError:
    """The error for the extra that is not installed."""
    return PluginError(
        f"Jobs on clusters need the package {error.name}, which is not installed.",
        hint="uv pip install 'cellseg-core[cluster]'",
    )


def directives_of(recipe: Recipe) -> dict[str, str | bool]:
    """What both kinds of jobs ask for beside partition, account, time, cores and memory."""
    found: dict[str, str | bool] = {}
    for name in ("qos", "constraint", "gres"):
        value = getattr(recipe, name)
        if value is not None:
            found[name] = value
    return found | recipe.directives


def _library() -> tuple[Any, Any]:
    """The class of a job and that of a cluster."""
    try:
        from dask_jobqueue.slurm import SLURMCluster, SLURMJob
    except ImportError as error:
        raise missing_library(error) from error
    return SLURMJob, SLURMCluster


def _job_class(refused: list[str]) -> Any:
    """A job that notes why SLURM refuses it."""
    job_class, _ = _library()

    class Job(job_class):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, security: Any = None, **options: Any) -> None:
            super().__init__(*args, **options)  # the key is among the options, with quotes

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError) as error:
                from distributed.deploy.spec import ProcessInterface

                refused.append(str(error).rpartition("stderr:\n")[2].strip())
                # It counts as lost.
                await ProcessInterface.start(self)  # type: ignore[no-untyped-call]

    return Job


def _logs(recipe: Recipe, folder: Path) -> Path:
    logs = (recipe.logs or folder).absolute()
    try:
        refuse_odd(logs)
    except ValueError as error:
        raise ConfigError(str(error), hint="Give another folder: logs in the recipe.") from error
    return logs


def _options(recipe: Recipe, logs: Path, certificate: Path) -> dict[str, Any]:
    """What dask-jobqueue is told."""
    last = recipe.seconds - recipe.signal
    key = shlex.quote(str(certificate))
    stagger = min(recipe.signal, last // 10)  # so that not all workers end at once
    directives: dict[str, str | bool] = {
        "nodes": "1",
        "output": str(logs / f"{NAME}-%j.log"),
        "no-requeue": True,
        **directives_of(recipe),
    }
    return {
        "queue": recipe.partition,
        "account": recipe.account,
        "walltime": recipe.walltime,
        "cores": 1,
        "processes": 1,
        "job_cpu": recipe.cpus,
        "memory": "1GB",  # only for --memory-limit, which the last one decides
        "job_mem": recipe.memory,
        "job_name": NAME,
        "nanny": False,
        "death_timeout": _DEATH_TIMEOUT,
        "interface": recipe.interface,
        "protocol": "tls://",
        "python": shlex.quote(sys.executable),
        "worker_extra_args": [
            "--no-dashboard",
            *("--memory-limit", "0"),
            *("--tls-ca-file", key, "--tls-cert", key, "--tls-key", key),
            *("--lifetime", f"{last - stagger}s", "--lifetime-stagger", f"{stagger}s"),
        ],
        "job_extra_directives": [written(*each) for each in directives.items()],
        "job_script_prologue": [
            *(f"export {name}={value}" for name, value in recipe.environment.items()),
            *recipe.setup,
        ],
    }


def written(name: str, value: str | bool) -> str:
    """A directive as a script has it."""
    return f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"


class _Keeper:
    """Submits jobs again that ended, as long as some succeed.

    Args:
        cluster: the cluster.
        jobs: how many there should be.
        logs: where their logs are.
        refused: what SLURM said to each job that it refused.
    """

    def __init__(self, cluster: Any, jobs: int, logs: Path, refused: list[str]) -> None:
        self._cluster, self._jobs, self._logs, self._refused = cluster, jobs, logs, refused
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._early: Counter[str] = Counter()
        self._joined: set[str] = set()
        self.failure: DeviceError | None = None

    def begin(self) -> None:
        """Submit the jobs.

        Raises:
            DeviceError: SLURM refuses all of them.
        """
        self._cluster.scale(jobs=self._jobs)
        end = time.monotonic() + _START
        while len(self._cluster.workers) < self._jobs and time.monotonic() < end:
            time.sleep(0.05)
        if not any(job.job_id for job in self._cluster.workers.values()):
            why = self._refused[-1] if self._refused else f"no answer in {_START:.0f} s."
            raise DeviceError(f"SLURM takes no job: {why}", hint="Look at the lines of the recipe.")
        self._thread.start()

    def end(self) -> None:
        """Submit no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        while not self._stop.wait(_EVERY):
            queued = _queued()
            if queued is not None:
                self._look(queued)
            if self.failure is not None:
                self._cluster.sync(self._cluster.scheduler.close)  # clients learn of it by that
                self._cluster.shutdown_scheduler = False
                return

    def _look(self, queued: set[str]) -> None:
        """Replace the jobs that are gone; but not for ever those that end at once."""
        jobs = dict(self._cluster.workers)
        here = {worker["name"] for worker in self._cluster.scheduler_info["workers"].values()}
        for name in here & jobs.keys():
            self._joined.add(jobs[name].job_id)
            self._early[name] = 0
        gone = [n for n, job in jobs.items() if n not in here and job.job_id not in queued]
        left = [name for name in gone if self._early[name] < _MOST_FAILURES]
        # SLURM may refuse a job now, and take it when others have ended.
        early = [n for n in left if jobs[n].job_id not in self._joined]
        self._early.update(n for n in early if jobs[n].job_id or not here)
        if early and not here and self._early.total() >= max(_MOST_FAILURES, self._jobs):
            self.failure = self._failed(jobs[early[-1]].job_id)
            return
        self._cluster.sync(self._forget, left)
        self._cluster.scale(jobs=self._jobs)

    async def _forget(self, names: list[str]) -> None:
        for name in names:
            self._cluster.workers.pop(name, None)

    def _failed(self, job: str | None) -> DeviceError:
        if job is None:
            return DeviceError(f"SLURM takes no more jobs: {self._refused[-1]}")
        log = self._logs / f"{NAME}-{job}.log"
        lines = log.read_text(errors="replace").splitlines()[-_TAIL:] if log.is_file() else []
        said = "\n".join(lines) or "It wrote no log."
        return DeviceError(
            f"{self._early.total()} jobs ended before they joined; the last, {job}, with:\n{said}",
            hint=f"See {log}; and look at the lines of the recipe.",
        )


def _queued() -> set[str] | None:
    """The ids of the user's jobs that wait or run; None where SLURM does not say."""
    try:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i"],
            capture_output=True,
            text=True,
            timeout=_ANSWER,
        )
    except subprocess.TimeoutExpired:
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None

"""Several processes that segment tiles, on this computer or on others: a cluster of Dask."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.engine.cluster_flow import Crew, Flow
from cellseg.engine.cluster_units import Batches, Lanes, Source
from cellseg.engine.cluster_worker import Sent, versions
from cellseg.engine.gpus import check_device
from cellseg.engine.items import Item, Recipe, TileRef, sendable
from cellseg.engine.local_workers import local_workers, quiet_level, warm_up
from cellseg.engine.state import WorkDir
from cellseg.engine.worker import Outcome
from cellseg.errors import ConfigError, DeviceError, PluginError
from cellseg.files import storage_errors, write_atomic
from cellseg.locations import is_remote
from cellseg.options import Options
from cellseg.outputs.formats import Output

_CONNECT = 10.0
"""Seconds that a scheduler may take to answer."""
_HANDED_ON = ("CELLSEG_OFFLINE", "CELLSEG_MIRROR")
"""Variables that workers get as they are here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Where tiles are segmented."""

    workers: int = 1
    """Processes of this computer, or jobs; 1 without a scheduler and jobs is this process."""
    scheduler: str | None = None
    """Address of a cluster that runs already."""
    slurm: str | None = None
    """A recipe of jobs."""

    @property
    def here(self) -> bool:
        """Whether it is this process alone."""
        return self.workers == 1 and self.scheduler is None and self.slurm is None

    @property
    def local(self) -> bool:
        """Whether it is several processes of this computer."""
        return self.workers > 1 and self.scheduler is None and self.slurm is None

    def warm_up(self) -> None:
        """Begin to start them, while this process does something else."""
        if self.local:
            warm_up()

    def check(self, device: str) -> None:
        """Find out whether they can be had, before anything is written.

        Raises:
            ConfigError: there are fewer GPUs than workers; or the recipe is wrong.
            DeviceError: no scheduler answers, or there is no SLURM.
        """
        if self.here:
            return
        check_device(device, self.workers if self.local else None)
        if self.slurm is not None:
            from cellseg.clusters.recipes import read_recipe
            from cellseg.clusters.slurm import check_workers

            check_workers(read_recipe(self.slurm))
        if self.scheduler is not None:
            with connected(self.scheduler):
                pass


@contextmanager
def cluster(
    recipe: Recipe, items: Sequence[Item], machines: Machines, stopped: Callable[[], bool]
) -> Iterator[Cluster]:
    """A cluster that helps with a prediction.

    Args:
        recipe: how to segment.
        items: all images.
        machines: where.
        stopped: asked now and then; True means begin nothing more.

    Raises:
        PluginError: the backend or the reader cannot be sent to another process.
        DeviceError: there is no such cluster.
    """
    sent = _packed(recipe, items)
    with ExitStack() as stack:
        if machines.scheduler is not None:
            client = stack.enter_context(connected(machines.scheduler))
        elif machines.slurm is not None:
            from cellseg.clusters.recipes import read_recipe
            from cellseg.clusters.slurm import slurm_workers

            jobs = slurm_workers(
                read_recipe(machines.slurm), machines.workers, recipe.work / "logs"
            )
            client = stack.enter_context(connected(stack.enter_context(jobs)))
        else:
            client = stack.enter_context(local_workers(machines.workers))
        yield stack.enter_context(
            Cluster(client, sent, items, recipe.work, stopped, machines.local)
        )


class Cluster(AbstractContextManager["Cluster"]):
    """The workers of a cluster; a ``run.Runner``. Use it as a context.

    Each worker opens the images and loads the predictor by itself, also those that join later.
    What is lost with one is done again by another.

    Args:
        client: of the cluster.
        sent: the pickled recipe and items.
        items: all images.
        work: the work directory.
        stopped: whether to begin nothing more.
        local: whether the workers are processes of this computer.
    """

    def __init__(
        self,
        client: Any,
        sent: bytes,
        items: Sequence[Item],
        work: Path,
        stopped: Callable[[], bool],
        local: bool,
    ) -> None:
        name = uuid.uuid4().hex
        folder = work.absolute() / "workers" / name
        environment = {n: os.environ[n] for n in _HANDED_ON if n in os.environ}
        self._sent = Sent(name, versions(), folder, environment, sent)
        self._stopped = stopped
        address = str(client.scheduler.address)
        self._crew = Crew(
            client, address, local, name, items, WorkDir(work), folder, itertools.count()
        )

    def __enter__(self) -> Cluster:
        """Tell the workers."""
        from cellseg.engine.cluster_plugin import Predicting

        with storage_errors(self._crew.folder):
            self._crew.folder.mkdir(parents=True)
        write_atomic(self._crew.folder / self._sent.name, self._sent.name)
        self._forget_others()
        try:
            self._crew.client.register_plugin(Predicting(self._sent), self._called())
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"A worker of {self._crew.address} cannot load cellseg: {error}",
                hint="Install the same version of cellseg on all machines.",
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        """Let the workers forget it."""
        client = self._crew.client
        if not self._crew.local and client.status == "running":  # those of this computer end now
            with suppress(Exception):  # the scheduler may go just now; all is written
                client.unregister_worker_plugin(self._called())
        shutil.rmtree(self._crew.folder, ignore_errors=True)
        with suppress(OSError):  # of others
            self._crew.folder.parent.rmdir()

    def tiles(self, units: Iterator[list[TileRef]]) -> Iterator[Outcome]:
        """Do batches; their outcomes come as they are ready."""
        yield from self._flow(Batches(units), self._stopped)

    def lanes(
        self, lanes: Sequence[Sequence[TileRef]], stopped: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """Do lanes side by side, each a few tiles at a time; outcomes come as they are ready.

        A lane ends with the first tile that fails.
        """
        yield from self._flow(Lanes(lanes), stopped)

    def _flow(self, source: Source, stopped: Callable[[], bool]) -> Iterator[Outcome]:
        flow = Flow(self._crew, source, stopped)
        flow.start()
        try:
            while (got := flow.got.get()) is not None:
                if isinstance(got, BaseException):
                    raise got
                yield got
        finally:
            flow.close()

    def _called(self) -> str:
        """The name of what tells the workers; it says whose it is."""
        return f"cellseg-{self._crew.client.id}-{self._sent.name}"

    def _forget_others(self) -> None:
        """Free what predictions left on the workers that were killed."""
        if not self._crew.local:
            with suppress(Exception):  # a matter of tidiness
                for name in self._crew.client.run_on_scheduler(_left_over):
                    self._crew.client.unregister_worker_plugin(name)


def _left_over(dask_scheduler: Any) -> list[str]:
    """Runs on the scheduler: what clients left on the workers that are gone."""
    clients = [f"cellseg-{client}-" for client in dask_scheduler.clients]
    names = [name for name in dask_scheduler.worker_plugins if name.startswith("cellseg-Client-")]
    return [name for name in names if not name.startswith(tuple(clients))]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of the scheduler at an address.

    Raises:
        ConfigError: it is no address, or the key is missing that it asks for.
        DeviceError: nobody answers.
    """
    import distributed

    dask: Any = distributed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other versions are refused where they matter
            client = dask.Client(address, timeout=_CONNECT, set_as_default=False)
    except ValueError as error:
        raise ConfigError(
            f"{address}: is no address of a scheduler: {error}",
            hint="It looks like tcp://10.0.0.5:8786.",
        ) from error
    except TypeError as error:  # for an address that begins with tls
        raise ConfigError(
            f"{address}: Dask knows no key and certificate to speak with this scheduler: {error}",
            hint="Name them in Dask's settings: distributed.comm.tls (ca-file, client.key, "
            "client.cert).",
        ) from error
    except (OSError, TimeoutError) as error:
        raise DeviceError(
            f"No scheduler answers at {address}.",
            hint="Start one with: dask scheduler; it says its address.",
        ) from error
    level = quiet_level()
    silence = dask.utils.silence_logging_cmgr(level) if level else nullcontext()
    try:
        with silence:
            yield client
    finally:
        client.close(timeout=_CONNECT)


def _packed(recipe: Recipe, items: Sequence[Item]) -> bytes:
    """The recipe and the items as workers get them: with paths that hold in any folder."""
    recipe = replace(
        recipe,
        images=_absolute(recipe.images),
        work=_absolute(recipe.work),
        reader_options=_absolutes(recipe.reader_options),
        job=replace(
            recipe.job,
            model=None if recipe.job.model is None else _absolute(recipe.job.model),
            options=_absolutes(recipe.job.options),
        ),
    )
    chosen = [
        replace(item, outputs=tuple(map(_absolute_output, item.outputs)))
        for item in sendable(items)
    ]
    try:
        return pickle.dumps((recipe, chosen))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PluginError(
            f"The backend {recipe.predictor.name!r} or the reader {recipe.reader.name!r} "
            f"cannot be sent to another process: {error}",
            hint="Their functions must stand at the top of a module; or use --workers 1.",
        ) from error


def _absolute(path: Path) -> Path:
    return path if is_remote(path) else path.absolute()


def _absolute_output(output: Output) -> Output:
    container = None if output.container is None else _absolute(output.container)
    return replace(output, path=_absolute(output.path), container=container)


def _absolutes(options: Options) -> Options:
    """Options whose paths hold in any folder."""
    paths = {n: _absolute(v) for n, v in options if isinstance(v, Path) and not v.is_absolute()}
    return options.model_copy(update=paths) if paths else options

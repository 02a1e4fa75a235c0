"""Train a model, and go on with a training that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError, DeviceError, PluginError, WeightsError
from cellseg.events import Emit, Event, Note, Progress, Resumed
from cellseg.files import remove
from cellseg.locations import location, refuse_remote
from cellseg.locks import WAIT, refuse_busy, sole
from cellseg.normalise import Normaliser
from cellseg.options import Options, parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, overview, reader_for
from cellseg.runs import FILE as RUN_FILE
from cellseg.runs import Request, RunDir
from cellseg.specs import DatasetSpec, TrainerSpec
from cellseg.splits import Splits
from cellseg.workflows.aliases import sorted_out
from cellseg.workflows.example_settings import UNSPLIT
from cellseg.workflows.train_data import Material, material_of, refuse_idle, with_epochs
from cellseg.workflows.train_session import Session, tidy
from cellseg.workflows.train_settings import TrainSettings

MOST_KINDS = 5
"""How many kinds of images are described at most when a training starts."""


def train(
    plugins: Plugins,
    backend: str,
    data: Path,
    out: Path,
    *,
    settings: TrainSettings | None = None,
    reader_options: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunDir:
    """Start a training run in the new directory ``out``; everything is checked before it exists.

    What the trainer itself refuses before its first step leaves nothing either.

    Args:
        plugins: where to find the backend and the reader.
        backend: name of a trainer.
        data: images with labels, as some reader understands them.
        out: the run directory to make.
        settings: core's options.
        reader_options: options of the reader, by name.
        options: options of the backend, by name; also any others under the names that the backend
            has for them (``Spec.aliases``).
        emit: gets each event, after the run has recorded it.
        interrupted: asked after each step; True stops the training with its state saved.

    Raises:
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    refuse_remote(out, "the run directory")
    spec = plugins.get(TrainerSpec, backend)
    settings, given, own = sorted_out(
        spec, settings or TrainSettings(), reader_options or {}, options or {}
    )
    chosen = parse(spec.options, own)
    settings = with_epochs(spec, settings, chosen)
    if (out / RUN_FILE).exists():
        refuse_busy(out, RunDir(out).lock)
    RunDir.check_free(out)
    reader = reader_for(plugins, data, settings.reader)
    read = parse(reader.options, unaliased(given, reader.aliases))
    refuse_clashes(settings, read, chosen)
    refuse_idle(spec, settings, read)
    material = material_of(plugins, spec, data, settings, reader.name, read)
    plan = Plan.of(plugins, spec, data, settings, (reader, read), chosen, material)
    return begin(plugins, plan, out, emit, interrupted)


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that is checked, and has not begun."""

    request: Request
    settings: TrainSettings
    options: Options
    material: Material

    @classmethod
    def of(
        cls,
        plugins: Plugins,
        spec: TrainerSpec[Any],
        data: Path,
        settings: TrainSettings,
        reading: tuple[DatasetSpec[Any], Options],
        options: Options,
        material: Material,
    ) -> Plan:
        """Measure what is to be measured on the images, and write everything down."""
        if spec.examples:
            settings = settings.model_copy(update={"epochs": 1})
        reader, read = reading
        request = Request(
            backend=spec.name,
            backend_version=plugins.version(spec.name),
            cellseg_version=_version(),
            data=data.absolute(),
            settings=_resolved(settings),
            reader=reader.name,
            reader_options=read.model_dump(mode="json"),
            options=options.model_dump(mode="json"),
            normaliser=Normaliser.fit(settings, material.labelled).model_dump(mode="json"),
            examples=material.digest,
        )
        return cls(request, settings, options, material)


def begin(
    plugins: Plugins,
    plan: Plan,
    out: Path,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> RunDir:
    """Make the run directory and train.

    Args:
        plugins: where to find the backend.
        plan: what to do.
        out: the run directory to make.
        emit: gets each event, after the run has recorded it.
        interrupted: asked after each step; True stops the training with its state saved.

    Raises:
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    request, material = plan.request, plan.material
    config = {"backend": request.backend, **request.settings}
    if material.examples:
        config = {name: value for name, value in config.items() if name not in UNSPLIT}
    config |= {**request.reader_options, **request.options, "reader": request.reader}
    for line in overview([*material.train, *material.val])[:MOST_KINDS]:
        emit(Note(f"Images: {line}"))
    for note in material.notes:
        emit(Note(note))
    with sole(out, RunDir(out).lock, emit=emit):
        run = RunDir.create(out, request, config, material.splits)
        session = Session(plugins, run, request, plan.settings, plan.options, material)
        _go_or_forget(session, emit, interrupted)
    return run


def _go_or_forget(session: Session, emit: Emit, interrupted: Callable[[], bool]) -> None:
    """Train; what only the trainer knows to be wrong leaves nothing, as if it were known before."""
    began = False

    def told(event: Event) -> None:
        nonlocal began
        began = began or isinstance(event, Progress)
        emit(event)

    try:
        session.go(told, interrupted)
    except (ConfigError, DataError, DeviceError, WeightsError):
        if not began:
            remove(session.run.path)
        raise


def resume(
    plugins: Plugins,
    run: Path,
    *,
    epochs: int | None = None,
    device: str | None = None,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunDir:
    """Continue a run from its last checkpoint, with the options and the splits that it has.

    A run that was stopped before its first checkpoint starts again; a finished one is left as it
    is, unless ``epochs`` asks for more.

    Args:
        plugins: where to find the backend and the reader.
        run: the run directory.
        epochs: a new total, those already done included.
        device: where to go on, if elsewhere.
        emit: gets each event, after the run has recorded it.
        interrupted: asked after each step; True stops the training with its state saved.

    Raises:
        ConfigError: ``epochs`` for a fast development run, which cannot be trained longer.
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    directory = RunDir(run)
    request = directory.request()
    spec = plugins.get(TrainerSpec, request.backend)
    if _finished(directory, request, spec, epochs, emit):
        if directory.lock.exists():
            tidy(directory)  # the process that finished it was killed before it had reported
        return directory
    with sole(run, directory.lock, hint=WAIT, emit=emit):
        changes: dict[str, object] = {"epochs": epochs or _epochs_so_far(directory, request)}
        if device is not None:
            changes["device"] = device
        settings = parse(TrainSettings, {**request.settings, **changes}, str(run))
        chosen = parse(spec.options, request.options, str(run))
        material = _material_again(plugins, directory)
        session = Session(plugins, directory, request, settings, chosen, material)
        session.go(emit, interrupted, again=True)
    return directory


def _finished(
    run: RunDir,
    request: Request,
    spec: TrainerSpec[Any],
    epochs: int | None,
    emit: Emit,
) -> bool:
    """Whether all that is asked for is done; says so."""
    planned = _epochs_so_far(run, request)
    finished = (run.model / BUNDLE_FILE).exists()
    name = run.path
    if finished and request.options.get("fast_dev_run"):
        if epochs is not None:
            raise ConfigError(
                f"{name} is a fast development run: it cannot be trained longer.",
                hint="Start a new run without --fast-dev-run.",
            )
        emit(Note(f"{name} is a fast development run, and finished."))
        return True
    if spec.examples and epochs is not None:
        raise ConfigError(
            f"--epochs does nothing with {request.backend}: it learns from examples, in one go.",
            hint="Leave it out.",
        )
    if finished and spec.examples:
        emit(Note(f"{name} is finished."))
        return True
    if finished and (epochs is None or epochs <= planned):
        emit(Note(f"{name} is finished: all {planned} epochs are done. --epochs N trains longer."))
        return True
    return False


def samples_of(plugins: Plugins, run: RunDir) -> tuple[list[Sample], list[Sample]]:
    """What a run trains and validates on, read as it reads it, and divided as its splits say.

    Args:
        plugins: where to find the reader.
        run: started before; it need not be finished.

    Returns:
        Without labels, and no validation images, where it learned from examples.

    Raises:
        DataError: this is no run, or its data is gone or has changed.
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    request = run.request()
    if not request.examples:
        material = _material_again(plugins, run)
        return list(material.train), list(material.val)
    reader = reader_for(plugins, request.data, request.reader)
    images = open_dataset(plugins, request.data, reader.name, request.reader_options, False)
    names = set(Splits.load(run.splits).train)
    return [replace(sample, labels=None) for sample in images if sample.name in names], []


def _material_again(plugins: Plugins, run: RunDir) -> Material:
    request, where = run.request(), str(run.path)
    settings = parse(TrainSettings, request.settings, where)
    spec = plugins.get(TrainerSpec, request.backend)
    reader = reader_for(plugins, request.data, request.reader)
    read = parse(reader.options, request.reader_options, where)
    material = material_of(plugins, spec, request.data, settings, reader.name, read, run.splits)
    if material.digest != request.examples:
        raise DataError(
            f"{where}: the examples, or the images they lie in, have changed since it began.",
            hint="Start a new run.",
        )
    return material


def refuse_clashes(*groups: Options) -> None:
    """Core's, the reader's and the backend's options share one command line: no name twice.

    Raises:
        PluginError: two groups have an option of one name.
    """
    seen: dict[str, str] = {}
    for group in groups:
        owner = type(group).__name__
        for name in type(group).model_fields:
            if name in seen:
                raise PluginError(f"{owner} and {seen[name]} both have an option {name!r}.")
            seen[name] = owner


def _resolved(settings: TrainSettings) -> dict[str, Any]:
    """The settings with paths that mean the same from any working directory."""
    values = settings.model_dump(mode="json")
    for name in ("val", "splits", "examples"):
        if values[name] is not None:
            values[name] = str(location(values[name]).absolute())
    return values


def _epochs_so_far(run: RunDir, request: Request) -> int:
    asked = [e.epochs for e in run.events() if isinstance(e, Resumed) and e.epochs]
    epochs = asked[-1] if asked else request.settings.get("epochs")
    if not isinstance(epochs, int):
        raise ConfigError(f"{run.path}/run.json does not say for how many epochs to train.")
    return epochs


def _version() -> str:
    from importlib.metadata import version

    return version("cellseg-core")

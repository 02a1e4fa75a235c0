"""Finds the predictor options that suit labelled images best, and keeps them with the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.bundle import Bundle
from cellseg.data import Sample
from cellseg.engine.segment import halved_tiling
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    PluginError,
    StorageError,
    UsageError,
)
from cellseg.events import Emit, Note
from cellseg.files import remove_leftovers, write_atomic
from cellseg.locks import LOCK, WAIT, refuse_busy, sole
from cellseg.memory import free_memory, memory_is_to_blame, out_of_memory
from cellseg.normalise import normalised
from cellseg.options import Options, parse, unaliased
from cellseg.parts import whole_of
from cellseg.plugins import Plugins
from cellseg.prompting import from_one_root
from cellseg.readers import AUTO, open_dataset, overview, reader_for
from cellseg.runs import FILE as RUN_FILE
from cellseg.runs import RunDir
from cellseg.specs import CalibrateJob, DatasetSpec, PredictorSpec
from cellseg.workflows.calibrate_settings import CalibrateSettings
from cellseg.workflows.models import (
    as_trained,
    check_images,
    is_volumetric,
    predictor_for,
    tiling_for,
)
from cellseg.workflows.predict_objects import normaliser_of
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import MOST_KINDS, samples_of

_SHOWN = 5
"""Names that a message lists at most."""


@dataclass(frozen=True)
class Calibration:
    """What was found, and where it went."""

    backend: str
    options: Mapping[str, Any]
    """The predictor options that differ from the defaults of the backend on purpose: those found,
    those given, and those that the model had and keeps. As JSON has them."""
    before: Mapping[str, Any]
    """What each of them was to start from."""
    images: int
    written: Path | None
    """The file that holds them now; None for a dry run."""

    def lines(self) -> list[str]:
        """What the command prints."""
        rows = []
        for name, value in self.options.items():
            before = "unset" if self.before[name] is None else self.before[name]
            rows.append(f"{name}: {value}" + ("" if before == value else f" (was {before})"))
        where = f"Written to {self.written}" if self.written else "Nothing is written (--dry-run)."
        return [*rows, where]

    def to_dict(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {
            "backend": self.backend,
            "options": dict(self.options),
            "before": dict(self.before),
            "images": self.images,
            "written": str(self.written) if self.written else None,
        }


def calibrate(
    plugins: Plugins,
    settings: CalibrateSettings,
    *,
    model: Path | None = None,
    data: Path | None = None,
    options: Mapping[str, object] | None = None,
    reader_options: Mapping[str, object] | None = None,
    emit: Emit,
) -> Calibration:
    """Find the predictor options that suit labelled images best.

    The backend searches; core brings the images as prediction would, normalised as the model's
    bundle says, and keeps what is found: in the bundle, whose other fields stay as they are, or in
    ``settings.output``.

    Args:
        plugins: the installed plugins.
        settings: core's options.
        model: a run or a model; without one, the published weights of ``settings.backend``.
        data: labelled images; without them, the validation images of the run.
        options: predictor options that stay as they are; they are kept with those found.
        reader_options: of the reader of ``data``.
        emit: gets notes, such as the scores before and after.

    Raises:
        UsageError: there is no model, no images, or nowhere to write to.
        ConfigError: the backend has no calibration, or options are wrong.
        DataError: the images cannot be used, or the model was trained on them.
        PluginError: the backend finds options that its predictor does not take.
        DeviceError: not even small tiles fit into memory.
    """
    given, reading = dict(options or {}), dict(reader_options or {})
    directory, bundle = Bundle.find(model) if model is not None else (None, None)
    _check_usage(settings, model, data, reading)
    like = PredictSettings(model=model, backend=settings.backend, polarity=settings.polarity)
    predictor = predictor_for(plugins, like, bundle)
    if predictor.calibrate is None:
        able = [s.name for s in plugins.all(PredictorSpec).values() if s.calibrate is not None]
        raise ConfigError(
            f"The backend {predictor.name!r} has no calibration.",
            hint=f"Backends that have one: {', '.join(sorted(able)) or 'none'}.",
        )
    given = unaliased(given, predictor.aliases)
    stored = bundle.predict if bundle is not None else {}
    start = parse(predictor.options, predictor.options.over(stored, given), predictor.name)
    normaliser = normaliser_of(like, bundle)
    tiling = tiling_for(like, bundle, predictor, is_volumetric(predictor, bundle))
    target = _target(settings, directory)
    run = _run_of(directory)
    home = run.path if run is not None else directory
    into = home if not settings.dry_run and settings.output is None else None
    if into is not None:
        refuse_busy(into, into / LOCK, WAIT)
    if data is not None:
        reader = reader_for(plugins, data, settings.reader)
        reading = unaliased(reading, reader.aliases)
        samples = _labelled(plugins, data, reader, reading, bundle)
        _check_leaks(plugins, run, bundle, samples, data, emit)
        check_images(samples, data, bundle)
    else:
        assert model is not None
        samples = _held_back(plugins, model, run)
        check_images(samples, model, bundle)
    for line in overview(samples)[:MOST_KINDS]:
        emit(Note(f"Images: {line}"))
    job: CalibrateJob[Any] = CalibrateJob(
        options=start,
        given=frozenset(given),
        samples=[normalised(sample, normaliser) for sample in samples],
        tiling=tiling,
        device=settings.device,
        model=directory,
    )
    found = _found(predictor, job, emit)
    kept = _kept(predictor, stored, given, found, start)
    before = start.model_dump(mode="json")
    if not settings.dry_run:
        if settings.output is not None:
            channels = {name: reading[name] for name in ("channels",) if name in reading}
            polarity = {"polarity": settings.polarity} if settings.polarity else {}
            _write_config(target, predictor.name, {**polarity, **channels, **kept})
        else:
            assert directory is not None and into is not None
            with sole(into, into / LOCK, hint=WAIT, emit=emit):
                remove_leftovers(directory, {BUNDLE_FILE})
                Bundle.load(directory).model_copy(update={"predict": kept}).save(directory)
    return Calibration(
        backend=predictor.name,
        options=kept,
        before={name: before[name] for name in kept},
        images=len(samples),
        written=None if settings.dry_run else target,
    )


def _found(
    predictor: PredictorSpec[Any], job: CalibrateJob[Any], emit: Emit
) -> Mapping[str, object]:
    """What the backend finds; in smaller tiles where the memory does not suffice.

    Raises:
        DeviceError: not even small tiles fit.
    """
    assert predictor.calibrate is not None
    while True:
        try:
            return predictor.calibrate(job, emit)
        except Exception as error:
            smaller = halved_tiling(job.tiling) if memory_is_to_blame(error) else None
            if smaller is None and out_of_memory(error):
                raise DeviceError(
                    "The memory does not suffice, not even for small tiles.",
                    hint="Free the device's memory, or use another one with --device.",
                ) from error
            if smaller is None:
                raise
        free_memory()
        size = " x ".join(map(str, smaller.core))
        emit(Note(f"Out of memory: once more, with tiles of {size} voxels."))
        job = replace(job, tiling=smaller)


def _check_usage(
    settings: CalibrateSettings,
    model: Path | None,
    data: Path | None,
    reading: Mapping[str, object],
) -> None:
    if model is None:
        if settings.backend is None:
            raise UsageError(
                "Which model? Neither a run nor --backend is given.",
                hint="cellseg calibrate RUN, or cellseg calibrate DATA --backend NAME -o FILE.yaml "
                "for published weights.",
            )
        if data is None:
            raise UsageError("Which images? Give labelled ones.")
        if settings.output is None and not settings.dry_run:
            raise UsageError(
                "There is no model to keep what is found.",
                hint="Give -o FILE.yaml, for cellseg predict --config; or --dry-run to see it.",
            )
    if data is None and (reading or settings.reader != AUTO):
        raise UsageError(
            "The images are those of the run, and are read as in its training.",
            hint="Leave out --reader and the options of the reader, or give other images.",
        )


def _target(settings: CalibrateSettings, directory: Path | None) -> Path:
    """The file to write, if it can be written."""
    if settings.output is not None:
        if settings.output.exists():
            raise DataError(f"{settings.output} exists already.", hint="Choose another --output.")
        folder = next(one for one in settings.output.absolute().parents if one.exists())
        if not folder.is_dir():
            raise StorageError(f"{folder} is a file, not a folder.")
        if not os.access(folder, os.W_OK):
            raise StorageError(f"{folder}: cannot be written: permission denied.")
        return settings.output
    if directory is None:
        return Path()
    if not settings.dry_run and not os.access(directory, os.W_OK):
        raise StorageError(
            f"{directory}: cannot be written: permission denied.",
            hint="Keep what is found in a file with -o FILE.yaml.",
        )
    return directory / BUNDLE_FILE


def _run_of(directory: Path | None) -> RunDir | None:
    """The run that a model is in, whether the run was named or the model itself."""
    if directory is None:
        return None
    run = RunDir(directory.resolve().parent)
    own = run.model == directory.resolve() and (run.path / RUN_FILE).exists()
    return run if own else None


def _held_back(plugins: Plugins, model: Path, run: RunDir | None) -> list[Sample]:
    """The images that a run validated on."""
    if run is None:
        raise DataError(
            f"{model} is a model without its run: it has no images of its own.",
            hint=f"Give labelled images: cellseg calibrate {model} DATA",
        )
    _, val = samples_of(plugins, run)
    if not val:
        raise DataError(
            f"The run {model} kept no images for validation.",
            hint=f"Give others, with labels: cellseg calibrate {model} DATA",
        )
    return val


def _labelled(
    plugins: Plugins,
    data: Path,
    reader: DatasetSpec[Any],
    reading: Mapping[str, object],
    bundle: Bundle | None,
) -> list[Sample]:
    wanted = as_trained(reading, reader, bundle)
    return list(open_dataset(plugins, data, reader.name, wanted, labelled=True))


def _check_leaks(
    plugins: Plugins,
    run: RunDir | None,
    bundle: Bundle | None,
    samples: Sequence[Sample],
    data: Path,
    emit: Emit,
) -> None:
    """Refuse the images that the model was trained on; say so where only the names are theirs."""
    trained: dict[str, set[str]] = {}
    for name in map(whole_of, bundle.trained_on if bundle is not None else ()):
        trained.setdefault(_last(name), set()).add(name)
    alike = [
        s for s in samples if any(from_one_root(s.name, n) for n in trained.get(_last(s.name), ()))
    ]
    if not alike:
        return
    if run is not None and run.request().data.exists():
        seen: dict[Path, list[str]] = {}
        for one in samples_of(plugins, run)[0]:
            if one.path is not None:
                seen.setdefault(one.path.resolve(), []).append(whole_of(one.name))
        known = [
            sample.name
            for sample in alike
            if sample.path is not None
            and any(from_one_root(sample.name, n) for n in seen.get(sample.path.resolve(), ()))
        ]
        if known:
            raise DataError(
                f"{data}: the model was trained on {_listed(known)}.",
                hint="What suits these need not suit new images. Leave DATA out to use the "
                "run's own validation images, or give others.",
            )
    emit(
        Note(
            f"The names of {len(alike)} image(s) are also those of training images: "
            f"{_listed([sample.name for sample in alike])}. If they are the same, what suits them "
            "need not suit new images."
        )
    )


def _kept(
    predictor: PredictorSpec[Any],
    stored: Mapping[str, object],
    given: Mapping[str, object],
    found: Mapping[str, object],
    start: Options,
) -> dict[str, Any]:
    """The options to keep: valid, and with none changed that the user gave."""
    wrong = f"The calibration of {predictor.name!r}"
    for name in given:
        if name in found and found[name] != getattr(start, name):
            raise PluginError(f"{wrong} changes {name!r}, which was given.")
    try:
        together = predictor.options.over(stored, {**found, **given})
        parsed = parse(predictor.options, together)
    except ConfigError as error:
        raise PluginError(f"{wrong} finds options that are not allowed: {error}") from error
    values = parsed.model_dump(mode="json")
    return {name: values[name] for name in together}


def _write_config(target: Path, backend: str, options: Mapping[str, Any]) -> None:
    import yaml

    text = yaml.safe_dump({"backend": backend, **options}, sort_keys=False, allow_unicode=True)
    write_atomic(target, f"# Found by cellseg calibrate, for cellseg predict --config.\n{text}")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )

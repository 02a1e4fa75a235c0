"""What ``cellseg embed`` is asked for: all is resolved and checked before any work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.bundle import Bundle
from cellseg.data import Tiling
from cellseg.embeddings.units import Unit
from cellseg.engine.items import Item, item_name, make_items
from cellseg.engine.numbering import numbered
from cellseg.engine.state import WorkDir
from cellseg.errors import ConfigError, DataError
from cellseg.normalise import Normaliser
from cellseg.options import Options, flag, parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import open_readable, reader_for
from cellseg.specs import DatasetSpec, PredictJob, PredictorSpec
from cellseg.workflows.embed_images import Selection, select
from cellseg.workflows.embed_labels import (
    Found,
    inside_images,
    labels_at,
    labels_inside,
    labels_of_samples,
    refuse_none,
)
from cellseg.workflows.embed_settings import EmbedSettings
from cellseg.workflows.models import (
    as_trained,
    identity_of,
    is_volumetric,
    predictor_for,
    tiling_for,
)
from cellseg.workflows.output_folder import output_folder
from cellseg.workflows.predict_objects import normaliser_of
from cellseg.workflows.readable import refuse_nothing, refuse_numbers, usable

_FREE = {"output", "overwrite", "batch_size", "device", "resume"}
"""Settings that may change when an embedding is resumed: they do not change its results."""
_IDLE = ("labels", "class_key", "class_names", "label_kind")
"""Options of readers that do nothing where the labels are read from somewhere else."""
_FILES = (".parquet", ".csv", ".json", ".zarr", ".h5", ".tif")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that an embedding needs."""

    settings: EmbedSettings
    images: Path
    output: Path
    predictor: PredictorSpec[Any]
    job: PredictJob[Any]
    bundle: Bundle | None
    backend_version: str
    reader: DatasetSpec[Any]
    reading: Options
    normaliser: Normaliser
    tiling: Tiling
    selection: Selection
    units: Sequence[Unit]
    """Of the selected images; those whose labels cannot be used have none."""
    problems: Sequence[tuple[Item, DataError]]
    """Images whose labels cannot be used."""
    unreadable: Mapping[str, str]
    """Images that cannot be used themselves, and why, by name or path."""
    identity: Mapping[str, object]
    """What must be the same when it is resumed."""


def resolve(
    plugins: Plugins,
    images: Path,
    settings: EmbedSettings,
    options: Mapping[str, object],
    reader_options: Mapping[str, object],
) -> Request:
    """Look everything up; nothing is written.

    Raises:
        CellsegError: something is missing, or does not go together.
    """
    output = output_folder(settings.output, _FILES, "there are several tables")
    model, bundle = Bundle.find(settings.model) if settings.model is not None else (None, None)
    predictor = predictor_for(plugins, settings, bundle)
    if predictor.embed is None:
        raise _cannot(plugins, predictor.name)
    normaliser = normaliser_of(settings, bundle)
    volumetric = is_volumetric(predictor, bundle)
    # What was calibrated is for finding objects, which are given here.
    wanted = unaliased(options, predictor.aliases)
    parsed = parse(predictor.options, wanted, predictor.name)
    tiling = tiling_for(settings, bundle, predictor, volumetric)
    reader = reader_for(plugins, images, settings.reader)
    given = unaliased(reader_options, reader.aliases)
    parsed_reading = parse(reader.options, as_trained(given, reader, bundle), reader.name)
    if settings.labels is not None:
        for name in _IDLE:
            if name in given:
                raise ConfigError(
                    f"{flag(name)} of the reader {reader.name!r} does nothing: --labels says "
                    "where the labels are.",
                    hint="Leave one of them out.",
                )
    elsewhere = settings.labels is not None
    together = not elsewhere and not inside_images(reader)
    samples, unreadable = open_readable(reader, images, parsed_reading, together)
    if not together:
        samples = [replace(sample, classes=()) for sample in samples]
    items = make_items(usable(samples, images, None, unreadable), tiling, volumetric, unreadable)
    refuse_nothing(items, unreadable)
    refuse_numbers("most_images", settings.most_images, unreadable)
    selection = _fitting(select(items, settings), images, bundle, unreadable)
    if settings.labels is not None:
        options_read = parsed_reading.model_dump()
        found = labels_at(plugins, images, settings.labels, options_read, selection.items)
    elif together:
        found = labels_of_samples(selection.items)
    else:
        found = labels_inside(parsed_reading, selection.items)
    refuse_none(images, selection.items, found)
    pairs = list(zip(selection.items, found, strict=True))
    identity = settings.model_dump(mode="json", exclude=_FREE)
    identity |= identity_of(images, (predictor, model, bundle), reader, parsed, parsed_reading)
    return Request(
        settings=settings,
        images=images,
        output=output,
        predictor=predictor,
        job=PredictJob(options=parsed, device=settings.device, model=model),
        bundle=bundle,
        backend_version=plugins.version(predictor.name),
        reader=reader,
        reading=parsed_reading,
        normaliser=normaliser,
        tiling=tiling,
        selection=selection,
        units=_units(pairs),
        problems=[(item, one.problem) for item, one in pairs if one.problem is not None],
        unreadable=unreadable,
        identity=identity,
    )


def _fitting(
    chosen: Selection, images: Path, bundle: Bundle | None, unreadable: dict[str, str]
) -> Selection:
    """The selected images that the model takes."""
    frames = [frame for item in chosen.items for frame in item.frames]
    names = {item_name(frame) for frame in usable(frames, images, bundle, unreadable)}
    return Selection([item for item in chosen.items if item.name in names], chosen.left_out)


def renumbered(request: Request, work: WorkDir) -> Request:
    """The request with the numbers that its units have had since the work began.

    Raises:
        ConfigError: these are not the images that the work began with.
        DataError: an image of these can be read no longer.
    """
    begin: dict[str, int] = {}
    number = 0
    for item in numbered(work, request.selection.items, request.unreadable):
        begin[item.name] = number
        number += len(item.frames)
    units = [replace(one, number=begin[one.image] + (one.frame or 0)) for one in request.units]
    return replace(request, units=units)


def _cannot(plugins: Plugins, name: str) -> ConfigError:
    able = sorted(c.name for c in plugins.all(PredictorSpec).values() if c.embed is not None)
    return ConfigError(
        f"The backend {name!r} gives no vectors to embed objects with.",
        hint=f"Backends that do: {', '.join(able)}." if able else "No installed backend does.",
    )


def _units(pairs: Sequence[tuple[Item, Found]]) -> list[Unit]:
    """One for each frame; the numbers do not depend on which images have labels."""
    units: list[Unit] = []
    number = 0
    for item, found in pairs:
        if found.problem is None:
            frames = zip(item.frames, found.labels, strict=True)
            for at, (sample, labels) in enumerate(frames):
                frame = at if item.movie else None
                units.append(Unit(number + at, item.name, frame, sample, labels, item.plan))
        number += len(item.frames)
    return units

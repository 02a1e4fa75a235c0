"""Which files a prediction writes, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cellseg.data import Dataset
from cellseg.engine.items import Item
from cellseg.errors import ConfigError, DataError, UsageError
from cellseg.locations import is_remote
from cellseg.outputs.formats import (
    SUFFIXES,
    TRACKED,
    Format,
    Output,
    output_for,
    output_inside,
    probabilities_beside,
)
from cellseg.workflows.output_folder import refuse_file
from cellseg.workflows.predict_settings import PredictSettings

_FILES = (".tif", ".tiff", ".h5", ".hdf5", ".csv", ".parquet", ".geojson", ".png", ".zarr")
_WITH_VOXELS: tuple[Format, ...] = ("tiff", "hdf5", "ome-zarr")


def formats_for(settings: PredictSettings, samples: Dataset) -> tuple[Format, ...]:
    """What to write.

    Raises:
        UsageError: no folder is given and the images are no OME-Zarr, or it is a file; or none of
            the formats can hold what is asked for.
        ConfigError: outlines are to be simplified, and none are written.
    """
    output = settings.output
    if output is not None:
        refuse_file(output, _FILES, "each image gets its files there", " --format tiff")
        formats = tuple(dict.fromkeys(settings.format)) or _usual(output)
        _refuse_at_address(output, formats)
        if settings.output_probs and not set(formats) & set(_WITH_VOXELS):
            raise UsageError(
                f"--output-probs: --format {formats[0]} cannot hold probabilities.",
                hint=f"Add one of: {', '.join('--format ' + name for name in _WITH_VOXELS)}",
            )
        _refuse_smoothing(settings, formats)
        return formats
    from cellseg.ome.write import is_image

    if samples and samples[0].path is not None:
        _refuse_at_address(samples[0].path, ())
    for sample in samples:
        if sample.path is None or _container(sample.path, sample.name, is_image) is None:
            raise UsageError(
                "Where to? --output is missing.",
                hint="Give --output FOLDER; only labels of OME-Zarr images can go into the "
                "images themselves.",
            )
    others = [f for f in settings.format if f != "ome-zarr"]
    if others:
        raise UsageError(
            f"--format {others[0]} needs --output: only OME-Zarr labels go into the images."
        )
    _refuse_smoothing(settings, ())
    return ("ome-zarr",)


def outputs_for(
    item: Item, formats: Sequence[Format], settings: PredictSettings
) -> tuple[Output, ...]:
    """Where the outputs of an image go.

    Raises:
        DataError: its name would lead out of the folder.
        UsageError: no folder is given, and the image is no OME-Zarr.
    """
    outputs = tuple(
        replace(output, smoothing=settings.smoothing or 0.0)
        if output.format == "geojson"
        else output
        for output in _labels_for(item, formats, settings)
    )
    if not settings.output_probs:
        return outputs
    beside = (probabilities_beside(output) for output in outputs)
    return (*outputs, *(output for output in beside if output is not None))


def page_for(item: Item) -> Path | None:
    """Where the report of a movie's tracks goes: beside its outputs, in the output folder."""
    if not item.tracked or item.outputs[0].container is not None:
        return None
    first = item.outputs[0]
    name = first.path.name.removesuffix(SUFFIXES[first.format])
    return first.path.with_name(f"{name}_tracks.html")


def refuse_trackless(items: Sequence[Item], formats: Sequence[Format]) -> None:
    """Raise a ConfigError where a format is for tracks, and an image has none."""
    wanted = next((format for format in formats if format in TRACKED), None)
    without = next((item for item in items if not item.tracked), None)
    if wanted is None or without is None:
        return
    what = "is no movie" if not without.movie else "is segmented frame by frame"
    raise ConfigError(
        f"--format {wanted} is for tracks, and {without.name} {what}.",
        hint="Write another format, and link the labels with cellseg track."
        if without.movie
        else "Write another format.",
    )


def refuse_collisions(items: Sequence[Item]) -> None:
    """Raise a DataError where two images would be written to one place."""
    owners: dict[Path, str] = {}
    for item in items:
        for path in item.files:
            other = owners.setdefault(path, item.name)
            if other != item.name:
                raise DataError(
                    f"{path}: would be written twice, for {other} and for {item.name}.",
                    hint="Rename one of the images, or segment them one after the other into "
                    "different folders.",
                )


def _usual(output: Path) -> tuple[Format, ...]:
    return ("ome-zarr",) if is_remote(output) else ("tiff", "csv")


def _refuse_at_address(place: Path, formats: Sequence[Format]) -> None:
    """Raise a UsageError where results cannot be written to an address, or not in a format."""
    if not is_remote(place):
        return
    if str(place).startswith("http"):
        raise UsageError(
            f"{place}: nothing can be written by http.",
            hint="Write elsewhere with --output: a folder, or an address such as s3://bucket/name.",
        )
    other = next((format for format in formats if format != "ome-zarr"), None)
    if other is not None:
        raise UsageError(
            f"--format {other}: only OME-Zarr can be written to {place}.",
            hint="Leave --format out, or write to a folder of this computer.",
        )


def _refuse_smoothing(settings: PredictSettings, formats: Sequence[Format]) -> None:
    """Raise a ConfigError where outlines are to be simplified, and none are written."""
    if settings.smoothing is not None and "geojson" not in formats:
        raise ConfigError(
            "--smoothing is for outlines, and none of the formats has them.",
            hint="Add --format geojson (beside --format tiff or others), or leave it out.",
        )


def _labels_for(
    item: Item, formats: Sequence[Format], settings: PredictSettings
) -> tuple[Output, ...]:
    if settings.output is not None:
        return tuple(
            output_for(f, settings.output, item.name, settings.label_name) for f in formats
        )
    from cellseg.ome.write import is_image

    path = item.frames[0].path
    container = _container(path, item.name, is_image) if path is not None else None
    if container is None:  # formats_for has refused this already
        raise UsageError(f"{item.name}: --output is missing.")
    return (output_inside(container, settings.label_name),)


def _container(path: Path, name: str, is_image: Callable[[Path], bool]) -> Path | None:
    """The OME-Zarr image of a sample: its path, or in a plate a field below it."""
    for candidate in (path, path / name):
        if candidate.is_dir() and is_image(candidate):
            return candidate
    return None

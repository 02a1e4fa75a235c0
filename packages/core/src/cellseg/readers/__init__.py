"""Reading images: choosing a reader for a path, and opening it. Importing this costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.data import Dataset, Sample
from cellseg.errors import DataError, UnreadableImagesError
from cellseg.locations import collapsed, is_remote, refuse_remote, remembered
from cellseg.options import Options, parse, unaliased
from cellseg.readers.origins import with_origins
from cellseg.readers.stored import NONE
from cellseg.specs import DatasetSpec

if TYPE_CHECKING:
    from cellseg.plugins import Plugins

AUTO = "auto"


def reader_for(plugins: Plugins, path: Path, name: str = AUTO) -> DatasetSpec[Any]:
    """The reader called ``name``; ``auto`` means the only one that recognises ``path``.

    Raises:
        DataError: the path does not exist, or none or several readers recognise it.
        UnknownPluginError: there is no reader of that name.
    """
    with remembered():
        return _reader_for(plugins, path, name)


def _reader_for(plugins: Plugins, path: Path, name: str) -> DatasetSpec[Any]:
    refuse_missing(path)
    far = is_remote(path)
    if name != AUTO:
        reader = plugins.get(DatasetSpec, name)
        if not reader.remote:
            refuse_remote(path, f"what the reader {name!r} reads")
        return reader
    readers = plugins.all(DatasetSpec)
    readers = {name: reader for name, reader in readers.items() if reader.remote or not far}
    fitting = [reader for reader in readers.values() if reader.recognises(path)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(sorted(reader.name for reader in fitting))
        raise DataError(
            f"{path}: could be read as {names}.",
            hint=f"Choose one: --reader {fitting[0].name}",
        )
    if far:
        raise DataError(
            f"{path}: is no OME-Zarr image or plate, nor a folder of images; other formats are "
            "read from this computer alone.",
            hint="Give the address of an OME-Zarr image or plate, or of the folder that they are "
            "in where the store can list it.",
        )
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: is empty: the file has 0 bytes.")
    listed = "; ".join(f"{reader.name}: {reader.summary}" for reader in readers.values())
    what = "holds no images that" if path.is_dir() else "is no image that"
    raise DataError(
        f"{path}: {what} a reader recognises.", hint=f"Readers ({listed}): choose with --reader."
    )


def refuse_missing(path: Path) -> None:
    """Raise a DataError where nothing is at a path or an address."""
    if path.exists():
        return
    hint = None
    if collapsed(path):
        hint = "Path() joins the slashes of an address: give cellseg.locations.location('...')."
    elif is_remote(path):
        hint = "Is it the whole address of an OME-Zarr, up to .zarr?"
    raise DataError(f"{path}: there is no such file or folder.", hint=hint)


def open_dataset(
    plugins: Plugins,
    path: Path,
    reader: str,
    options: Mapping[str, object],
    labelled: bool,
) -> Dataset:
    """The samples at ``path``, lazy, in a stable order, each with labels if ``labelled``.

    Args:
        plugins: where to find the reader.
        path: file, folder or container.
        reader: name of a reader, or ``auto``.
        options: options of the reader, by name.
        labelled: look for ground truth; an image without it is an error. Then images that
            ``cellseg augment`` made have the source of what they were made from.

    Raises:
        ConfigError: an option is unknown or not allowed.
        DataError: nothing is there, something is damaged, or labels are missing or do not fit.
    """
    spec = reader_for(plugins, path, reader)
    given = unaliased(options, spec.aliases)
    samples = spec.open(path, parse(spec.options, given, f"reader {spec.name}"), labelled)
    if not samples:
        raise DataError(f"{path}: holds no images.")
    if labelled and spec.name != "collection":  # which opens each of its data sets by this function
        samples = with_origins(path, samples)
    counts = Counter(sample.name for sample in samples)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{path}: several images are called {', '.join(twice)}.")
    for sample in samples if labelled else ():
        _check_labels(path, sample)
    return samples


def open_readable(
    reader: DatasetSpec[Any], path: Path, options: Options, labelled: bool = False
) -> tuple[Dataset, dict[str, str]]:
    """The samples at ``path`` that can be read, and what is wrong with the others.

    Args:
        reader: that opens the path.
        path: file, folder or container.
        options: of the reader.
        labelled: look for ground truth.

    Returns:
        The samples, in the order of the reader; and problems, by the name or path of an image.

    Raises:
        ConfigError: an option does not fit the files.
        DataError: nothing can be read.
    """
    try:
        return reader.open(path, options, labelled), {}
    except UnreadableImagesError as error:
        return error.samples, dict(error.problems)


def describe(samples: Sequence[Sample]) -> list[str]:
    """A line for each image or movie: its axes as understood, sizes, type, spacing, channels."""
    frames = Counter(sample.source for sample in samples if sample.frame is not None)
    lines = []
    for sample in samples:
        if sample.frame is None:
            lines.append(f"{sample.name}: {_description(sample)}")
        elif frames.get(sample.source):
            name = sample.name.rpartition("#")[0] or sample.name
            count = frames.pop(sample.source)
            lines.append(f"{name}: {count} frames of {_description(sample)}")
    return lines


def overview(samples: Sequence[Sample]) -> list[str]:
    """The same for many images at once: how many there are of each kind, most first."""
    kinds = Counter(_description(sample) for sample in samples)
    return [f"{count} x {kind}" for kind, count in kinds.most_common()]


def _description(sample: Sample) -> str:
    channels, *space = sample.image.shape
    axes = getattr(sample.image, "axes", "CZYX").replace(NONE, "")
    dropped = getattr(sample.image, "dropped", "")
    notes = [", ".join(sample.channels)] if sample.channels else []
    notes += [dropped] if dropped else []
    return (
        f"axes {axes}, {' x '.join(map(str, space))} (z, y, x), {sample.image.dtype}, "
        f"{' x '.join(f'{size:.4g}' for size in sample.spacing)} µm, "
        f"{channels} channel{'s' if channels != 1 else ''}"
        f"{' (' + '; '.join(notes) + ')' if notes else ''}"
    )


def _check_labels(path: Path, sample: Sample) -> None:
    """What every reader owes, those of other packages included."""
    name = f"{sample.path or path}: {sample.name}"
    if sample.labels is None:
        raise DataError(f"{name} has no labels.")
    if tuple(sample.labels.shape) != tuple(sample.image.shape[1:]):
        raise DataError(
            f"{name}: the labels {getattr(sample.labels, 'where', '')} are {sample.labels.shape}, "
            f"the image is {sample.image.shape[1:]} (z, y, x)."
        )
    if sample.labels.dtype.kind not in "ui":
        raise DataError(f"{name}: labels are {sample.labels.dtype}, not integers.")

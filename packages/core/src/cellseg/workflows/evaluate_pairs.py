"""Finds which predicted label image belongs to which true one, whatever they are stored in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cellseg.data import LazyArray, Sample, Spacing
from cellseg.errors import DataError, UnreadableImagesError
from cellseg.locations import is_remote, remembered
from cellseg.options import parse
from cellseg.outputs.formats import PROBABILITIES
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.readers.folder import label_image, stem
from cellseg.readers.options import ReaderOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import IMAGE_SUFFIXES, is_zarr_node, ome_attributes
from cellseg.readers.view import samples_of
from cellseg.specs import DatasetSpec
from cellseg.workflows.evaluate_settings import EvaluateSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LabelImage:
    """One label image, or one frame of a movie of them."""

    name: str
    """Relative to the path that was searched, without the extension; ``#3`` for frame 3."""
    labels: LazyArray
    """``(z, y, x)``, integers, 0 is background."""
    path: Path
    """The file or container it is in."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Voxel size in micrometres, ``(z, y, x)``."""


@dataclass(frozen=True, slots=True)
class LabelPair:
    """A predicted label image and the true one."""

    prediction: LabelImage
    truth: LabelImage

    @property
    def name(self) -> str:
        """What the truth is called."""
        return self.truth.name


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which label images to take from a path."""

    role: str
    """What messages call them."""
    path: Path
    key: str | None
    """Name of the labels inside OME-Zarr images, or key in other containers."""
    suffix: str | None
    """End of the names, which is cut off."""
    axes: str | None
    key_flag: str
    """How the user gives ``key``."""


@dataclass(frozen=True, slots=True)
class _OneChannel:
    """An image ``(1, z, y, x)`` as labels ``(z, y, x)``."""

    image: LazyArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype

    @property
    def chunks(self) -> tuple[int, ...] | None:
        chunks = getattr(self.image, "chunks", None)
        return chunks[1:] if chunks else None

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        block: NDArray[Any] = self.image[(slice(0, 1), *key)][0]
        return block


def label_pairs(
    plugins: Plugins, prediction: Path, truth: Path, settings: EvaluateSettings
) -> list[LabelPair]:
    """Open the label images of both sides and match them by name; nothing is read yet.

    Each side is a label file, a folder of label files (subfolders included), a folder with
    ``labels/`` in it, an OME-Zarr image or plate or a folder of images, a label image inside one,
    or Zarr or HDF5 files with labels by key. One image against one image needs no equal names.

    Args:
        plugins: where to find the readers.
        prediction: what was predicted.
        truth: what is right.
        settings: keys, suffixes and axes.

    Raises:
        DataError: a path holds no label images, some have no partner (all are listed), or two that
            belong together differ in shape.
    """
    wanted = Wanted(
        "prediction",
        prediction,
        settings.prediction_key,
        settings.prediction_suffix,
        settings.axes,
        "--prediction-key",
    )
    predicted = label_images(plugins, wanted)
    wanted = Wanted(
        "truth",
        truth,
        settings.truth_key,
        settings.truth_suffix,
        settings.axes,
        "--truth-key",
    )
    true = label_images(plugins, wanted)
    folders = _is_folder(prediction) or _is_folder(truth)
    if not folders and _one_source(predicted, true):
        pairs = [LabelPair(p, t) for p, t in zip(predicted, true, strict=True)]
    else:
        where = f"{prediction} and {truth}"
        pairs = _matched(where, predicted, true, settings.allow_missing_truth)
    for pair in pairs:
        ours, theirs = pair.prediction.labels.shape, pair.truth.labels.shape
        if ours != theirs:
            raise DataError(
                f"{pair.prediction.path} and {pair.truth.path} differ in shape: the prediction of "
                f"{pair.name} is {_size(ours)}, the truth {_size(theirs)}.",
                hint="Are both of one resolution? --axes states axes that were not understood.",
            )
    return pairs


def _matched(
    where: str, predicted: list[LabelImage], true: list[LabelImage], allow_missing_truth: bool
) -> list[LabelPair]:
    ours = {image.name: image for image in predicted}
    theirs = {image.name: image for image in true}
    missing = [name for name in theirs if name not in ours]
    spare = [name for name in ours if name not in theirs]
    if missing or (spare and not allow_missing_truth):
        parts = []
        if missing:
            parts.append(f"truth without a prediction: {', '.join(missing)}")
        if spare:
            parts.append(f"predictions without truth: {', '.join(spare)}")
        hint = "A pair has one name; --prediction-suffix and --truth-suffix are cut off first."
        if spare and not missing:
            hint += " To leave these predictions out, give --allow-missing-truth."
        if any("man_track" in name for name in theirs):
            hint += " Tracks of the Cell Tracking Challenge are scored with --ctc."
        raise DataError(
            f"{where}: {len(missing) + len(spare)} label images have no partner; "
            f"{'; '.join(parts)}.",
            hint=hint,
        )
    return [LabelPair(ours[name], image) for name, image in theirs.items()]


def _one_source(predicted: list[LabelImage], true: list[LabelImage]) -> bool:
    """Whether it is one image against one, or one movie against one of the same length."""
    movies = ({_movie(image) for image in images} for images in (predicted, true))
    return len(predicted) == len(true) and all(len(names) == 1 for names in movies)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not is_zarr_node(path)


def _movie(image: LabelImage) -> str:
    name, mark, frame = image.name.rpartition("#")
    return name if mark and frame.isdecimal() else image.name


def label_images(
    plugins: Plugins, wanted: Wanted, problems: Problems | None = None
) -> list[LabelImage]:
    """All label images at a path, whatever they are stored in; nothing is read yet.

    Args:
        plugins: where to find the readers.
        wanted: which.
        problems: gets those that cannot be read; without it, they are an error.

    Raises:
        DataError: there are none, two have one name, or some are no label images.
    """
    with remembered():
        if problems is None:
            problems = Problems()
            found = _label_images(plugins, wanted, problems)
            problems.refuse()
            return found
        found = _label_images(plugins, wanted, problems)
        if not found:
            problems.refuse()
        return found


def _label_images(plugins: Plugins, wanted: Wanted, problems: Problems) -> list[LabelImage]:
    path = wanted.path
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder, wanted as the {wanted.role}.")
    if is_remote(path):
        found = _of_folder if _is_folder(path) else _of_place
        return _with_suffix(found(plugins, wanted, problems), wanted)
    if _is_folder(path):
        folder = path / "labels" if (path / "labels").is_dir() else path
        files = _label_files(folder, wanted.suffix)
        if files:
            opened: list[LabelImage] = []
            for name, file in files.items():
                with problems.kept(name):
                    opened += _of_file(name, file, wanted)
            return opened
        return _with_suffix(_of_folder(plugins, wanted, problems), wanted)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _of_file(stem(path).removesuffix(wanted.suffix or ""), path, wanted)
    return _with_suffix(_of_container(plugins, path, wanted, problems), wanted)


def _with_suffix(images: list[LabelImage], wanted: Wanted) -> list[LabelImage]:
    """Those images whose names end as the user says, without that end."""
    suffix = wanted.suffix or ""
    kept = []
    for image in images:
        movie = _movie(image)
        if movie.endswith(suffix):
            frame = image.name.removeprefix(movie)
            kept.append(replace(image, name=movie.removesuffix(suffix) + frame))
    if not kept:
        raise DataError(f"{wanted.path}: no name of a label image ends in {suffix}.")
    return kept


def _label_files(folder: Path, suffix: str | None) -> dict[str, Path]:
    """Label files in a folder and its subfolders, by name, sorted; Zarr containers are left alone.

    Raises:
        DataError: two files have one name.
    """
    named: dict[str, Path] = {}
    for file in sorted(_walk(folder)):
        if file.suffix.lower() not in IMAGE_SUFFIXES or not stem(file).endswith(suffix or ""):
            continue
        labels = file.name.replace(PROBABILITIES + ".", ".")
        if labels != file.name and file.with_name(labels).exists():
            continue  # what predict --output-probs wrote beside the labels
        name = stem(file).removesuffix(suffix or "")
        name = (file.parent.relative_to(folder) / name).as_posix()
        if name in named:
            raise DataError(
                f"{named[name]} and {file} have one name: {name!r}.",
                hint="Keep one of them, or rename it.",
            )
        named[name] = file
    return named


def _walk(folder: Path) -> Iterator[Path]:
    """All files in a folder and its subfolders, but for hidden ones and those of Zarr."""
    for one in _folders(folder):
        yield from (e for e in one.iterdir() if e.is_file() and not e.name.startswith("."))


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and not is_zarr_node(entry):
            yield from _folders(entry)


def _of_file(name: str, path: Path, wanted: Wanted) -> list[LabelImage]:
    options = parse(ReaderOptions, {"axes": wanted.axes})
    samples = samples_of(name, label_image(path), None, options, path)
    return [_single_channel(sample, path) for sample in samples]


def _of_folder(plugins: Plugins, wanted: Wanted, problems: Problems) -> list[LabelImage]:
    """Label images of all containers in a folder and its subfolders."""
    root = wanted.path
    readers = list(plugins.all(DatasetSpec).values())
    if is_remote(root):
        readers = [reader for reader in readers if reader.remote]
    folders = [one for one in _folders(root) if any(r.recognises(one) for r in readers)]
    images: list[LabelImage] = []
    for folder in folders or [root]:
        below = PurePosixPath(folder.as_posix().removeprefix(root.as_posix()).strip("/"))
        for image in _of_container(plugins, folder, wanted, problems):
            images.append(replace(image, name=(below / image.name).as_posix()))
    return images


def _of_place(plugins: Plugins, wanted: Wanted, problems: Problems) -> list[LabelImage]:
    return _of_container(plugins, wanted.path, wanted, problems)


def _of_container(
    plugins: Plugins, path: Path, wanted: Wanted, problems: Problems
) -> list[LabelImage]:
    """Label images through a reader: by key, or as the labels of its images."""
    reader = reader_for(plugins, path)
    known = reader.options.model_fields
    given: dict[str, object] = {"axes": wanted.axes, "allow_missing_chunks": True}
    by_key = "raw_key" in known
    # A path into a container, such as image.zarr/labels/nuclei, is labels and has none.
    are_labels = by_key or (is_zarr_node(path) and "image-label" in ome_attributes(path))
    if by_key:
        given["raw_key"] = wanted.key or "labels"
    elif wanted.key is not None and not are_labels:
        given["label"] = wanted.key
        if "label" not in known:
            raise DataError(
                f"{path}: labels have no names in what {reader.name} reads.",
                hint=f"Leave {wanted.key_flag} out.",
            )
    options = {name: value for name, value in given.items() if name in known}
    try:
        samples = open_dataset(plugins, path, reader.name, options, labelled=not are_labels)
    except UnreadableImagesError as error:
        problems.add(error, str(path))
        samples = error.samples
    except DataError as error:
        if error.hint is None:
            raise
        ours = re.sub(r"--(raw-key|label)\b(?!-)", wanted.key_flag, error.hint)
        raise DataError(str(error), hint=ours) from error
    if are_labels:
        return [_single_channel(sample, path) for sample in samples]
    return [
        LabelImage(sample.name, sample.labels, sample.path or path, sample.spacing)
        for sample in samples
        if sample.labels is not None
    ]


def _single_channel(sample: Sample, path: Path) -> LabelImage:
    where = sample.path or path
    if sample.image.shape[0] != 1:
        raise DataError(
            f"{where}: has {sample.image.shape[0]} channels; a label image has one.",
            hint="Save labels as one integer a pixel: 0 for background, 1, 2, 3, ... for objects.",
        )
    if sample.image.dtype.kind not in "iu":
        raise DataError(
            f"{where}: is {sample.image.dtype}; labels are integers.",
            hint="If the values are whole numbers, save them as uint16 or uint32.",
        )
    return LabelImage(sample.name, _OneChannel(sample.image), where, sample.spacing)


def _size(shape: tuple[int, ...]) -> str:
    kept = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return " x ".join(map(str, kept))

"""NIfTI images with their labels: one file, folders, and nnU-Net data sets such as MitoEM2.

An nnU-Net data set (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) is a folder with
``imagesTr/NAME_0000.nii.gz`` (one file a channel), ``labelsTr/NAME.nii.gz`` and ``dataset.json``,
which names the classes. A ``split.json`` beside it, as MitoEM2 has one, says which validate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellseg.classes import MOST_CLASSES
from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.readers.components import Components, Rim
from cellseg.readers.composed import ClassLabels, Layer
from cellseg.readers.nifti_file import nifti_image, stacked
from cellseg.readers.options import NiftiOptions
from cellseg.readers.problems import Problems, damaged
from cellseg.readers.recognise import NIFTI_SUFFIXES, nnunet_folders, read_json
from cellseg.readers.stored import Stored
from cellseg.readers.view import samples_of

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_MITO = ("mito", "mitochondria", "mitochondrion")
_NAMES = {name: "mitochondria" for name in _MITO} | {
    f"{name} boundary": "mito boundary" for name in _MITO
}
"""One name for what data sets of mitochondria call by several."""


@dataclass(frozen=True, slots=True)
class _Table:
    """What a ``dataset.json`` says."""

    names: tuple[str, ...] = ()
    """The classes, ``background`` first; empty where nothing names them."""
    values: tuple[int, ...] = ()
    """Their numbers in the label images, without the background's."""
    unknown: int | None = None
    rim: Rim | None = None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Folder:
    """Images and labels that belong together."""

    images: Path
    labels: Path | None
    table: _Table = field(default_factory=_Table)
    splits: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""


def open_nifti(path: Path, options: NiftiOptions, labelled: bool) -> list[Sample]:
    """The images of a file, a folder, or one or more nnU-Net data sets, sorted by name.

    Label images are ids of objects or, with classes named by ``dataset.json``, maps of these
    classes, whose connected components become objects. A class called boundary beside just one
    other is the rim of that one's objects.

    Raises:
        ConfigError: maps of classes without a ``dataset.json`` that names them.
        DataError: files without a partner, or that do not fit each other or their ``dataset.json``.
        PluginError: nibabel is not installed.
    """
    if path.is_file():
        return _single(path, options, labelled)
    folders = _folders(path, options, labelled)
    tables = {folder.table.names for folder in folders}
    if labelled and len(tables) > 1:
        raise DataError(
            f"{path}: the data sets in it have different classes.",
            hint="Read them as a collection: --reader collection",
        )
    problems = Problems()
    samples: list[Sample] = []
    for folder in folders:
        with problems.kept(str(folder.images)):
            samples += _samples(folder, options, labelled, problems)
    problems.refuse(samples)
    return samples


def _single(path: Path, options: NiftiOptions, labelled: bool) -> list[Sample]:
    if not labelled:
        return samples_of(_stem(path), _image([path], options, ()), None, options, path)
    if options.labels is None:
        raise DataError(
            f"{path}: which file holds its labels?", hint="Name it: --labels labels.nii.gz"
        )
    truth = _beside(path.parent, options.labels)
    if not truth.is_file():
        raise DataError(f"{truth}: there is no such file.")
    return _labelled(_stem(path), [path], truth, _Table(), options)


def _folders(path: Path, options: NiftiOptions, labelled: bool) -> list[_Folder]:
    found = nnunet_folders(path)
    if found:
        if options.labels is not None:
            raise ConfigError("--labels: an nnU-Net data set has its labels in labelsTr/.")
        return [
            _Folder(
                images=one / "imagesTr",
                labels=one / "labelsTr",
                table=_table(one),
                splits=_splits(one),
                prefix="" if one == path else f"{one.name}/",
            )
            for one in found
        ]
    images = path / "images" if (path / "images").is_dir() else path
    labels = _beside(path, options.labels or "labels")
    if labelled and not labels.is_dir():
        raise DataError(
            f"{path}: has no folder {labels.name}/ with label images.", hint="Name it with --labels"
        )
    return [_Folder(images, labels, _table(path))]


def _samples(
    folder: _Folder, options: NiftiOptions, labelled: bool, problems: Problems
) -> list[Sample]:
    truths = {}
    if labelled and folder.labels is not None:
        truths = {_stem(file): file for file in _files(folder.labels)}
    groups = _groups(folder.images, set(truths))
    if not groups:
        raise DataError(f"{folder.images}: holds no NIfTI files.")
    if labelled:
        _refuse_lonely(folder, set(groups), set(truths))
    samples: list[Sample] = []
    for name, files in groups.items():
        label = f"{folder.prefix}{name}"
        with problems.kept(label):
            if labelled:
                made = _labelled(label, files, truths[name], folder.table, options)
            else:
                image = _image(files, options, folder.table.channels)
                made = samples_of(label, image, None, options, files[0])
            split = folder.splits.get(name) if labelled else None
            samples += [replace(sample, split=split) for sample in made]
    return samples


def _labelled(
    name: str, files: list[Path], truth: Path, table: _Table, options: NiftiOptions
) -> list[Sample]:
    kind = options.label_kind
    if kind == "semantic" and not table.names:
        raise ConfigError(
            f"--label-kind semantic: no dataset.json names the classes in {truth}.",
            hint='Write one: {"labels": {"background": 0, "nucleus": 1}}',
        )
    image = _image(files, options, table.channels)
    labels = nifti_image(truth, options.voxel_unit, labels=True)
    if labels.pixels.shape != image.pixels.shape == labels.pixels.shape[::-1]:
        # One volume of MitoEM2 was published so.
        labels = replace(labels, axes=labels.axes[::-1])
    made = samples_of(name, image, labels, options, files[0])
    return [_with_classes(sample, truth, table, kind) for sample in made]


def _with_classes(sample: Sample, truth: Path, table: _Table, kind: str) -> Sample:
    if not table.names:
        return sample
    assert sample.labels is not None
    modified = truth.stat().st_mtime_ns
    if kind == "instance":  # ids say nothing of classes, so all are of the first
        layer = Layer(sample.labels, 1, modified=modified)
        return replace(sample, labels=ClassLabels((layer,)), classes=table.names)
    components = Components(
        sample.labels, table.values, table.unknown, table.rim, sample.spacing, modified
    )
    return replace(sample, labels=components, classes=table.names)


def _image(files: list[Path], options: NiftiOptions, names: tuple[str, ...]) -> Stored:
    images = [nifti_image(file, options.voxel_unit) for file in files]
    return stacked(images, names if len(names) == len(images) else ())


def _refuse_lonely(folder: _Folder, images: set[str], truths: set[str]) -> None:
    parts = []
    if images - truths:
        parts.append(f"images without labels: {', '.join(sorted(images - truths))}")
    if truths - images:
        parts.append(f"labels without an image: {', '.join(sorted(truths - images))}")
    if parts:
        raise DataError(
            f"{folder.images.parent}: files have no partner; {'; '.join(parts)}.",
            hint="An image NAME.nii.gz, or NAME_0000.nii.gz with its channels, has the labels "
            "NAME.nii.gz.",
        )


def _groups(folder: Path, truths: set[str]) -> dict[str, list[Path]]:
    """The files of each image: one, or its channels in their order.

    Args:
        folder: with the files.
        truths: names of label images; a file with labels of its own is no channel of another.

    Raises:
        DataError: a channel is missing.
    """
    files = _files(folder)
    parts = {file: _CHANNEL.fullmatch(_stem(file)) for file in files}
    if not all(parts.values()) or any(_stem(file) in truths for file in files):
        return {_stem(file): [file] for file in files}
    groups: dict[str, list[Path]] = {}
    for file, part in parts.items():
        assert part is not None
        group = groups.setdefault(part[1], [])
        if int(part[2]) != len(group):
            raise DataError(
                f"{folder}: {part[1]} has no channel {len(group):04d}, but {file.name}.",
                hint="NAME_0000, NAME_0001, ... are the channels of one image. If these are images "
                "of their own, name them otherwise.",
            )
        group.append(file)
    return groups


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.")
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(NIFTI_SUFFIXES) and not file.name.startswith(".")
    )


def _stem(path: Path) -> str:
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[:-4]


def _beside(folder: Path, name: str) -> Path:
    given = Path(name).expanduser()
    return folder / given if (folder / given).exists() or not given.exists() else given


def _table(folder: Path) -> _Table:
    """The classes and channels that ``dataset.json`` names, in either version of the format."""
    where = folder / "dataset.json"
    found = read_json(where)
    if found is None:
        return _Table()
    with damaged(str(where)):
        numbers = _numbers(where, found.get("labels", {}))
        channels = found.get("channel_names", found.get("modality", {}))
        named = tuple(str(channels[key]) for key in sorted(channels, key=int))
    unknown = numbers.pop("ignore", None)
    objects = sorted((value, name) for name, value in numbers.items() if value != 0)
    if not objects:
        return _Table(channels=named)
    names = _renamed([name for _, name in objects])
    if len(names) > MOST_CLASSES or len(set(names)) < len(names) or "background" in names:
        raise DataError(f"{where}: has {len(names)} classes; it needs 1 to {MOST_CLASSES} names.")
    values = tuple(value for value, _ in objects)
    return _Table(("background", *names), values, unknown, _rim(names), named)


def _numbers(where: Path, labels: Mapping[str, Any]) -> dict[str, int]:
    """The number of each class."""
    if labels and all(str(key).isdecimal() for key in labels):  # as version 1 has it
        return {str(name): int(number) for number, name in labels.items()}
    if any(isinstance(value, list) for value in labels.values()):
        raise DataError(f"{where}: its classes overlap (regions), which cannot be read.")
    return {str(name): int(value) for name, value in labels.items()}


def _renamed(names: list[str]) -> list[str]:
    """Class names in one spelling."""
    plain = [name.lower().replace("_", " ").replace("-", " ").strip() for name in names]
    if len(plain) == 2 and "boundary" in plain and any(name in _MITO for name in plain):
        plain[plain.index("boundary")] = "mito boundary"
    known = {*_NAMES, *_NAMES.values()}
    return [
        _NAMES.get(low, low) if low in known else name
        for low, name in zip(plain, names, strict=True)
    ]


def _rim(names: list[str]) -> Rim | None:
    bounds = [at for at, name in enumerate(names, 1) if "boundary" in name.lower()]
    if len(names) != 2 or len(bounds) != 1:
        return None
    return Rim(bounds[0], 3 - bounds[0])


def _splits(folder: Path) -> dict[str, str]:
    """Which images train and which validate, as the first entry of ``split.json`` has it."""
    where = folder / "split.json"
    if not where.is_file():
        return {}
    with damaged(str(where)):
        entries = json.loads(where.read_bytes())
        first = entries[0] if isinstance(entries, list) else entries
        return {str(name): part for part in ("train", "val") for name in first.get(part, ())}

"""Arrays by key in Zarr and HDF5 containers: one volume, several, or split into train and val."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.readers.composed import Classified
from cellseg.readers.hdf5_links import linked, refuse_bombs
from cellseg.readers.options import Hdf5Options, KeyOptions, ReaderOptions, ZarrOptions
from cellseg.readers.problems import Problems, damaged
from cellseg.readers.recognise import (
    HDF5_SUFFIXES,
    is_zarr_node,
    ome_attributes,
    zarr_attributes,
    zarrs_in,
)
from cellseg.readers.stored import UNKNOWN, Stored, micrometres
from cellseg.readers.view import samples_of
from cellseg.readers.zarr_array import ZarrArray, zarr_array

_MOST_NODES, _DEEPEST = 1_000_000, 64
"""Groups and arrays of an HDF5 file, and groups in each other."""
Tree: TypeAlias = "Mapping[str, Tree | Stored]"
"""The groups and arrays of a container."""

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_LABELS = ("label", "labels")
_LETTERS = {"time": "T", "channel": "C", "channels": "C", "depth": "Z", "height": "Y", "width": "X"}
_SIZES = {"element_size_um": "um", "voxel_size_um": "um", "voxel_size_nm": "nm"}


@dataclass(frozen=True, slots=True)
class Hdf5Dataset:
    """One data set of an HDF5 file."""

    file: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...] | None = None
    """Shape of what is decoded at once; None where pixels lie in one piece."""

    @property
    def where(self) -> str:
        """The file and the key."""
        return f"{self.file}:{self.key}"

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read one block."""
        with damaged(self.where):
            status = os.stat(self.file)
            file = _opened(self.file, status.st_mtime_ns, status.st_ino, os.getpid())
            dataset = file[self.key]
            refuse_bombs(self.where, dataset, key)
            return np.asarray(dataset[key])


@dataclass(frozen=True, slots=True)
class _Volume:
    name: str
    raw: Stored
    labels: Stored | None
    split: str | None = None
    classes: Stored | None = None
    """The class of each voxel, beside the ids in ``labels``."""


# A handle per process, because a forked one would share its place in the file.
@lru_cache(maxsize=16)
def _opened(file: str, modified: int, inode: int, process: int) -> Any:
    import h5py

    return h5py.File(file, "r")


def open_zarr(path: Path, options: ZarrOptions, labelled: bool) -> list[Sample]:
    """The volumes of a Zarr container, or of all containers in a folder."""
    containers = [path] if is_zarr_node(path) else zarrs_in(path)
    strict = not options.allow_missing_chunks
    return _samples(path, containers, partial(_zarr_tree, strict=strict), options, labelled)


def open_hdf5(path: Path, options: Hdf5Options, labelled: bool) -> list[Sample]:
    """The volumes of an HDF5 file, or of all such files in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in HDF5_SUFFIXES)
    return _samples(path, files, hdf5_tree, options, labelled)


def _samples(
    path: Path,
    files: Sequence[Path],
    tree_of: Callable[[Path], Tree | Stored],
    options: ZarrOptions | Hdf5Options,
    labelled: bool,
) -> list[Sample]:
    problems = Problems()
    samples: list[Sample] = []
    for file in files:
        with problems.kept(file.stem):
            for volume in _volumes(file, tree_of(file), options, labelled):
                parts = (file.stem if file != path else "", volume.name)
                name = "/".join(part for part in parts if part) or file.stem
                with problems.kept(name):
                    made = samples_of(name, volume.raw, volume.labels, options, file)
                    if volume.classes is not None:
                        made = _classified(file, made, volume, options, options)
                    samples += [replace(sample, split=volume.split) for sample in made]
    problems.refuse(samples)
    return samples


def _volumes(file: Path, tree: Tree | Stored, keys: KeyOptions, labelled: bool) -> list[_Volume]:
    if isinstance(tree, Stored):
        if labelled:
            raise DataError(f"{file}: is a single array, without labels.")
        return [_Volume("", tree, None)]
    problems = Problems()
    found: list[_Volume] = []
    if _at(tree, keys.raw_key) is None and (splits := [name for name in tree if name in _SPLITS]):
        for name in splits:
            branch = tree[name]
            if isinstance(branch, Stored):
                raise DataError(f"{file}: {name} is an array; expected a group.", hint=_keys(tree))
            for volume in _search(f"{file}:{name}", branch, keys, labelled, problems):
                joined = f"{name}/{volume.name}" if volume.name else name
                found.append(replace(volume, name=joined, split=_SPLITS[name]))
    else:
        found = _search(str(file), tree, keys, labelled, problems)
    problems.refuse()
    if not found:
        raise DataError(
            f"{file}: has no array {keys.raw_key!r}.", hint=f"Name it with --raw-key. {_keys(tree)}"
        )
    return found


def _search(
    where: str, tree: Tree, keys: KeyOptions, labelled: bool, problems: Problems
) -> list[_Volume]:
    """The volumes under a group: of itself, or else of the groups in it."""
    raw = _at(tree, keys.raw_key)
    if raw is None:
        found: list[_Volume] = []
        lonely: list[str] = []
        for name, child in tree.items():
            if isinstance(child, Stored):
                continue
            inner = _search(f"{where}/{name}", child, keys, labelled, problems)
            for volume in inner:
                joined = f"{name}/{volume.name}" if volume.name else name
                found.append(replace(volume, name=joined))
            if not inner and _at(child, keys.raw_key) is None and _has_labels(child, keys):
                lonely.append(name)
        if labelled and found and lonely:
            problems.add(
                DataError(f"{where}: labels without {keys.raw_key!r} in: {', '.join(lonely)}."),
                where,
            )
        return found
    labels = None
    if labelled:
        with problems.kept(where):
            labels = _labels(where, tree, keys)
        if labels is None:
            return []
    classes = None
    if labelled and keys.class_key is not None:
        with problems.kept(where):
            classes = _class_map(where, tree, keys.class_key, raw)
        if classes is None:
            return []
    if isinstance(raw, Stored):
        if labels is not None and not isinstance(labels, Stored):
            problems.add(DataError(f"{where}: its labels are a group; expected an array."), where)
            return []
        truth = _lenient(labels) if labels is not None else None
        return [_Volume("", raw, truth, classes=classes)]
    return _by_name(where, raw, labels, problems)


def _class_map(where: str, tree: Tree, key: str, raw: Tree | Stored) -> Stored:
    """The array with the class of each voxel."""
    found = array_of(tree, key)
    if found is None:
        raise DataError(
            f"{where}: has no array {key!r}.",
            hint=f"Name the classes with --class-key. {_keys(tree)}",
        )
    if not isinstance(raw, Stored):
        raise DataError(f"{where}: --class-key needs one image, not a group of them.")
    return _lenient(found)


def _classified(
    file: Path, samples: list[Sample], volume: _Volume, options: ReaderOptions, keys: KeyOptions
) -> list[Sample]:
    """The samples with their classes in their ids."""
    maps = samples_of("", volume.raw, volume.classes, options, file)
    names = keys.classes
    made = []
    for sample, kinds in zip(samples, maps, strict=True):
        assert sample.labels is not None and kinds.labels is not None
        modified = file.stat().st_mtime_ns
        labels = Classified(sample.labels, kinds.labels, len(names), modified)
        made.append(replace(sample, labels=labels, classes=("background", *names)))
    return made


def _lenient(labels: Stored) -> Stored:
    """Labels whose chunks that are not on disk are background."""
    if isinstance(labels.pixels, ZarrArray):
        return replace(labels, pixels=replace(labels.pixels, strict=False))
    return labels


def _by_name(
    where: str, raw: Tree, labels: Tree | Stored | None, problems: Problems
) -> list[_Volume]:
    """Volumes of a group of images, each with the labels of its name."""
    images = {name: node for name, node in raw.items() if isinstance(node, Stored)}
    if labels is None:
        return [_Volume(name, image, None) for name, image in images.items()]
    truths = {} if isinstance(labels, Stored) else labels
    lonely = [n for n in images if not isinstance(truths.get(n), Stored)]
    orphans = [n for n in truths if n not in images]
    if lonely or orphans:
        problems.add(
            DataError(
                f"{where}: arrays without a partner; images without labels: "
                f"{', '.join(lonely) or 'none'}; labels without an image: "
                f"{', '.join(orphans) or 'none'}."
            ),
            where,
        )
    pairs = ((name, image, truths.get(name)) for name, image in images.items())
    return [
        _Volume(n, image, _lenient(truth)) for n, image, truth in pairs if isinstance(truth, Stored)
    ]


def _labels(where: str, tree: Tree, keys: KeyOptions) -> Tree | Stored:
    if keys.label_key is not None:
        node = _at(tree, keys.label_key)
        if node is None:
            raise DataError(
                f"{where}: has no array {keys.label_key!r}.",
                hint=f"Name the labels with --label-key. {_keys(tree)}",
            )
        return node
    parent = keys.raw_key.rpartition("/")[0]
    names = [f"{parent}/{name}" if parent else name for name in _LABELS]
    found = {name: node for name in names if (node := _at(tree, name)) is not None}
    if len(found) != 1:
        count = "both " + " and ".join(found) if found else f"neither {' nor '.join(names)}"
        raise DataError(f"{where}: has {count}.", hint=f"Name one with --label-key. {_keys(tree)}")
    return next(iter(found.values()))


def _has_labels(tree: Tree, keys: KeyOptions) -> bool:
    names = (keys.label_key,) if keys.label_key is not None else _LABELS
    return any(_at(tree, name) is not None for name in names)


def _at(tree: Tree, key: str) -> Tree | Stored | None:
    node: Tree | Stored | None = tree
    for part in key.strip("/").split("/"):
        node = None if node is None or isinstance(node, Stored) else node.get(part)
    return node


def _keys(tree: Tree) -> str:
    return f"It has: {', '.join(_paths(tree)) or 'nothing'}."


def _paths(tree: Tree, prefix: str = "") -> list[str]:
    paths = []
    for name, node in tree.items():
        paths += [prefix + name] if isinstance(node, Stored) else _paths(node, f"{prefix}{name}/")
    return paths


def _zarr_tree(path: Path, strict: bool) -> Tree | Stored:
    array = zarr_array(path, strict=strict)
    if array is not None:
        with damaged(str(path)):
            return _stored(array, zarr_attributes(path), list(array.dimensions))
    if "multiscales" in ome_attributes(path):
        from cellseg.ome.read import levels

        return levels(path, strict=strict)[0]
    return {child.name: _zarr_tree(child, strict) for child in zarrs_in(path)}


def array_of(tree: Tree, key: str) -> Stored | None:
    """The array under ``key``; None where there is none."""
    node = _at(tree, key)
    return node if isinstance(node, Stored) else None


def hdf5_array(path: Path, key: str) -> Stored:
    """One array of an HDF5 file.

    Raises:
        DataError: the file is damaged, or has no such array.
    """
    tree = hdf5_tree(path)
    found = array_of(tree, key)
    if found is None:
        raise DataError(f"{path}: has no array {key!r}.", hint=_keys(tree))
    return found


def hdf5_tree(path: Path) -> Tree:
    """The groups and arrays of an HDF5 file; only their headers are read.

    Raises:
        DataError: the file is damaged.
    """
    import h5py

    found = 0

    def walk(group: Any, prefix: str, above: tuple[Any, ...]) -> Tree:
        nonlocal found
        tree: dict[str, Tree | Stored] = {}
        for name in group:
            node, key = linked(path, group, name), f"{prefix}/{name}"
            found += 1
            if found > _MOST_NODES or len(above) > _DEEPEST:
                raise DataError(f"{path}: has too many groups and arrays in each other.")
            if isinstance(node, h5py.Group):
                if node not in above:  # a link may lead back
                    tree[name] = walk(node, key, (*above, node))
            elif isinstance(node, h5py.Dataset) and node.shape is not None:
                if node.dtype.names is None:
                    pixels = Hdf5Dataset(str(path), key, node.shape, node.dtype, node.chunks)
                    names = [dimension.label for dimension in node.dims]
                    tree[name] = _stored(pixels, dict(node.attrs), names)
        return tree

    with damaged(str(path)), h5py.File(path, "r") as file:
        return walk(file, "", (file["/"],))


def _stored(pixels: Any, attributes: Mapping[str, Any], names: list[str | None]) -> Stored:
    """An array with the axes and voxel size that its attributes state, by several habits.

    ``axes`` (text or a list), ``axistags`` (ilastik), named dimensions (zarr 3, xarray, HDF5);
    ``element_size_um``, ``voxel_size_um``, ``voxel_size_nm`` (z, y, x).
    """
    count = len(pixels.shape)
    stated = attributes.get("axes")
    if stated is None and "axistags" in attributes:
        stated = [tag["key"] for tag in json.loads(attributes["axistags"])["axes"]]
    if stated is None:
        stated = names if any(names) else ()
    axes = "".join(_letter(name) for name in stated)
    spacing: dict[str, float] = {}
    for name, unit in _SIZES.items():
        if name in attributes:
            sizes = [micrometres(float(value), unit) for value in np.ravel(attributes[name])]
            pairs = zip("ZYX"[-len(sizes) :], sizes, strict=len(sizes) <= 3)
            spacing = {axis: size for axis, size in pairs if size is not None}
            if len(axes) != count and count == len(sizes) <= 3:
                axes = "ZYX"[-count:]  # a size for each axis: all of them are in space
    return Stored(pixels, axes if len(axes) == count else UNKNOWN * count, spacing)


def _letter(name: object) -> str:
    text = name.decode() if isinstance(name, bytes) else str(name or "")
    letter = _LETTERS.get(text.lower(), text.upper())
    return letter if letter in ("T", "C", "Z", "Y", "X", "S") else UNKNOWN

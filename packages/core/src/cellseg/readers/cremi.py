"""CREMI: neurons and synaptic clefts of the fly brain, in HDF5 files of one layout.

The layout is that of https://cremi.org/data: ``volumes/raw``, ``volumes/labels/neuron_ids`` and
``volumes/labels/clefts``; attributes ``resolution`` and, of labels that cover only a part of a
padded image, ``offset``, both ``(z, y, x)`` in nm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellseg.classes import UNKNOWN
from cellseg.data import ZYX, LazyArray, Sample, Spacing
from cellseg.errors import ConfigError, DataError
from cellseg.parts import Crop
from cellseg.readers.composed import ClassLabels, Layer
from cellseg.readers.containers import array_of, hdf5_tree
from cellseg.readers.options import ReaderOptions
from cellseg.readers.problems import Problems, damaged
from cellseg.readers.recognise import HDF5_SUFFIXES
from cellseg.readers.stored import Stored
from cellseg.readers.view import samples_of

CLASSES = ("background", "neuron", "cleft")
RAW, NEURONS, CLEFTS = "volumes/raw", "volumes/labels/neuron_ids", "volumes/labels/clefts"
_NOTHING = 0xFFFFFFFFFFFFFFFF
"""Background among the clefts; among the neurons, a voxel that nobody labelled."""


def open_cremi(path: Path, options: ReaderOptions, labelled: bool) -> list[Sample]:
    """The volume of one file, or of each file in a folder; images are cut to their labelled part.

    Clefts, where a file has them, lie over the neurons.

    Raises:
        ConfigError: axes that the volumes do not have.
        DataError: a file has no image or no neurons, or its attributes do not fit it.
    """
    if options.axes not in (None, "ZYX"):
        raise ConfigError(f"--axes {options.axes}: the volumes of CREMI are ZYX.")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in HDF5_SUFFIXES)
        if not files:
            raise DataError(f"{path}: holds no HDF5 files.", hint="cellseg data get cremi")
    problems = Problems()
    samples: list[Sample] = []
    for file in files:
        with problems.kept(file.stem):
            samples += _samples(file, options, labelled)
    problems.refuse(samples)
    return samples


def _samples(file: Path, options: ReaderOptions, labelled: bool) -> list[Sample]:
    tree = hdf5_tree(file)
    raw, spacing = _array(file, array_of(tree, RAW), RAW)
    if raw is None or spacing is None:
        raise DataError(
            f"{file}: has no {RAW}, so it is no file of CREMI.",
            hint="For other HDF5 files: --reader hdf5 --raw-key KEY",
        )
    name = file.stem
    made = samples_of(name, raw, None, options, file)
    if not labelled:
        return [replace(sample, classes=CLASSES) for sample in made]
    (sample,) = made
    neurons, size = _array(file, array_of(tree, NEURONS), NEURONS)
    if neurons is None or size is None:
        raise DataError(
            f"{file}: has no {NEURONS}.",
            hint="The test volumes of CREMI (A+, B+, C+) have no labels: move them elsewhere.",
        )
    modified = file.stat().st_mtime_ns
    layers = [Layer(_labels(neurons, file), 1, unknown=(_NOTHING, UNKNOWN), modified=modified)]
    start = _start(file, NEURONS, size)
    clefts, cleft_size = _array(file, array_of(tree, CLEFTS), CLEFTS)
    if clefts is not None and cleft_size is not None:
        if _start(file, CLEFTS, cleft_size) != start or (
            clefts.pixels.shape != neurons.pixels.shape
        ):
            raise DataError(f"{file}: {CLEFTS} and {NEURONS} do not cover the same voxels.")
        over = Layer(_labels(clefts, file), 2, background=(_NOTHING,), modified=modified)
        layers.append(over)
    if any(abs(a - b) > 1e-6 * a for a, b in zip(size, spacing, strict=True)):
        raise DataError(f"{file}: {NEURONS} and {RAW} differ in resolution: {size} and {spacing}.")
    truth = ClassLabels(tuple(layers))
    image = _cut(file, sample.image, start, truth.shape)
    return [replace(sample, image=image, labels=truth, classes=CLASSES)]


def _cut(file: Path, image: LazyArray, start: ZYX, extent: Sequence[int]) -> LazyArray:
    """The part of an image that the labels cover."""
    size = image.shape[1:]
    if any(at < 0 or at + n > m for at, n, m in zip(start, extent, size, strict=True)):
        raise DataError(
            f"{file}: the labels do not lie within the image: {tuple(extent)} voxels from {start}, "
            f"in {tuple(size)} (z, y, x)."
        )
    for axis, (at, n, m) in enumerate(zip(start, extent, size, strict=True)):
        if n < m:
            image = Crop(image, axis, at, at + n)
    return image


def _labels(stored: Stored, file: Path) -> LazyArray:
    """An array of ids as ``(z, y, x)``."""
    if stored.pixels.dtype.kind not in "ui":
        raise DataError(f"{stored.where}: labels are {stored.pixels.dtype}, not integers.")
    (sample,) = samples_of("", stored, stored, ReaderOptions(), file)
    assert sample.labels is not None
    return sample.labels


def _array(file: Path, stored: Stored | None, key: str) -> tuple[Stored | None, Spacing | None]:
    """An array of the file with its axes and voxel size, in µm."""
    if stored is None:
        return None, None
    if len(stored.pixels.shape) != 3:
        raise DataError(f"{stored.where}: is no volume: its shape is {stored.pixels.shape}.")
    sizes = _attribute(file, key, "resolution")
    if sizes is None or min(sizes) <= 0:
        raise DataError(
            f"{stored.where}: does not say its resolution.",
            hint="Set its attribute resolution: z, y and x in nm, such as 40, 4, 4.",
        )
    depth, height, width = (size / 1000 for size in sizes)
    spacing = {"Z": depth, "Y": height, "X": width}
    return replace(stored, axes="ZYX", spacing=spacing), (depth, height, width)


def _start(file: Path, key: str, spacing: Spacing) -> ZYX:
    """Where the labels begin in the image, in voxels."""
    offset = _attribute(file, key, "offset") or (0.0, 0.0, 0.0)
    steps = [at / 1000 / size for at, size in zip(offset, spacing, strict=True)]
    depth, height, width = (round(step) for step in steps)
    if any(abs(step - round(step)) > 0.01 for step in steps):
        raise DataError(f"{file}:{key}: its offset {offset} nm is no whole number of voxels.")
    return depth, height, width


def _attribute(file: Path, key: str, name: str) -> tuple[float, float, float] | None:
    import h5py

    with damaged(f"{file}:{key}"), h5py.File(file, "r") as opened:
        values: Any = opened[key].attrs.get(name)
        if values is None:
            return None
        depth, height, width = (float(value) for value in values)
        return depth, height, width

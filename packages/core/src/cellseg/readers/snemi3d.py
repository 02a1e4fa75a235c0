"""SNEMI3D: neurites of mouse cortex, two volumes, in the file names that the field gives them.

AC4 is the volume to train on and AC3 the one to test on. Images and paper: Kasthuri et al. 2015,
doi:10.1016/j.cell.2015.06.054.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.readers.composed import ClassLabels, Layer
from cellseg.readers.options import ReaderOptions
from cellseg.readers.problems import Problems
from cellseg.readers.recognise import HDF5_SUFFIXES, TIFF_SUFFIXES, snemi3d_files
from cellseg.readers.stored import Stored
from cellseg.readers.view import samples_of

CLASSES = ("background", "neuron")
KEY = "main"
"""The data set in the HDF5 files."""
_SPACING = {"Z": 0.03, "Y": 0.006, "X": 0.006}


@dataclass(frozen=True, slots=True)
class _Volume:
    name: str
    split: str
    images: tuple[str, ...]
    """What its image file may be called, and each its label file in ``labels``."""
    labels: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    """Images that were published without labels."""


_VOLUMES = (
    _Volume("AC4", "train", ("AC4_inputs", "train-input"), ("AC4_labels", "train-labels")),
    _Volume(
        "AC3",
        "val",
        ("AC3_inputs", "test-input"),
        ("AC3_labels", "test-labels"),
        frozenset({"test-input"}),
    ),
)


def open_snemi3d(path: Path, options: ReaderOptions, labelled: bool) -> list[Sample]:
    """AC4 and AC3, those that are there; with both, AC4 trains and AC3 validates.

    The challenge's ``test-input`` has no labels of its own; without them it is left out where
    labels are asked for.

    Raises:
        ConfigError: axes that the volumes do not have.
        DataError: neither is there, a file has no partner, or one volume is there twice.
    """
    if options.axes not in (None, "ZYX"):
        raise ConfigError(f"--axes {options.axes}: the volumes of SNEMI3D are ZYX.")
    if not path.is_dir():
        raise DataError(f"{path}: is no folder.", hint="Name the folder that AC4_inputs.h5 is in.")
    found = snemi3d_files(path)
    problems = Problems()
    samples: list[Sample] = []
    for volume in _VOLUMES:
        with problems.kept(volume.name):
            samples += _samples(path, volume, found, options, labelled)
    problems.refuse(samples)
    if not samples:
        raise DataError(
            f"{path}: holds no volume of SNEMI3D{' with labels' if labelled else ''}.",
            hint="Expected AC4_inputs.h5 and AC4_labels.h5, or train-input.tif and "
            "train-labels.tif; AC3 likewise. Get them: cellseg data get snemi3d",
        )
    both = len({sample.split for sample in samples}) == 2
    return samples if both else [replace(sample, split=None) for sample in samples]


def _samples(
    path: Path, volume: _Volume, found: dict[str, Path], options: ReaderOptions, labelled: bool
) -> list[Sample]:
    images = [name for name in volume.images if name in found]
    lonely = [
        f"{found[truth].name} is there, {name} is not"
        for name, truth in zip(volume.images, volume.labels, strict=True)
        if truth in found and name not in found
    ]
    if labelled and lonely:
        raise DataError(f"{path}: a file has no partner: {'; '.join(lonely)}.")
    if len(images) > 1:
        names = " and ".join(found[name].name for name in images)
        raise DataError(f"{path}: {names} are both {volume.name}.", hint="Keep one of them.")
    if not images:
        return []
    name = images[0]
    truth = volume.labels[volume.images.index(name)]
    if labelled and truth not in found:
        if name in volume.optional:
            return []
        raise DataError(
            f"{found[name]}: has no partner {truth}{found[name].suffix}.",
            hint="Put it beside the image.",
        )
    labels = _stored(found[truth]) if labelled else None
    made = samples_of(volume.name, _stored(found[name]), labels, options, found[name])
    modified = found[truth].stat().st_mtime_ns if labelled else 0
    return [
        replace(
            sample,
            labels=ClassLabels((Layer(sample.labels, 1, modified=modified),))
            if sample.labels is not None
            else None,
            classes=CLASSES,
            split=volume.split,
        )
        for sample in made
    ]


def _stored(path: Path) -> Stored:
    if path.suffix.lower() in HDF5_SUFFIXES:
        from cellseg.readers.containers import hdf5_array

        stored = hdf5_array(path, KEY)
    else:
        from cellseg.readers.tiff import tiff_image

        assert path.suffix.lower() in TIFF_SUFFIXES
        stored = tiff_image(path)
    kept = [i for i, n in enumerate(stored.pixels.shape) if n != 1]
    if len(kept) != 3 and len(stored.pixels.shape) != 3:
        raise DataError(f"{path}: is no volume: its shape is {stored.pixels.shape}.")
    places = kept if len(kept) == 3 else range(3)
    letters = dict(zip(places, "ZYX", strict=True))
    axes = "".join(letters.get(i, "1") for i in range(len(stored.pixels.shape)))
    return replace(stored, axes=axes, spacing=_SPACING, channels=(), alpha=False, colours=False)

"""The rules for one image and its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.checks.findings import FileVerdict, Finding, Level, listed
from cellseg.checks.images import ImageFigures, measure_image
from cellseg.checks.labels import LabelFigures, measure_labels
from cellseg.checks.limits import Limits
from cellseg.classes import SHIFT
from cellseg.data import LazyArray, Sample
from cellseg.errors import DataError

SPECK = 3
"""Voxels: the parts of a photograph, or the seams of a JPEG, are rarely larger."""
CLASSES = 5
"""More ids than this are instances, however many pieces they are in."""
PIECES = 4
"""Pieces of an id, on average, from which so few ids are classes."""
UINT32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Examined:
    """A verdict, and what is needed to compare the file with the others."""

    verdict: FileVerdict
    sample: Sample
    image: ImageFigures | None = None
    labels: LabelFigures | None = None


def examine(sample: Sample, limits: Limits, split: str = "") -> Examined:
    """Read one sample block by block and judge it; a damaged file is a finding, not an error."""
    findings: list[Finding] = []
    labels = image = None
    fits = sample.labels is not None and sample.labels.shape == sample.image.shape[1:]
    if sample.labels is not None and not fits:
        findings.append(_shape(sample, sample.labels))
    if sample.labels is not None and sample.labels.dtype.kind not in "biu":
        findings.append(
            Finding(
                "labels-not-integers",
                "error",
                f"The labels are {sample.labels.dtype}, not integers.",
                "Give a label image: 0 for background and one whole number for each object.",
            )
        )
    elif sample.labels is not None:
        try:
            labels = measure_labels(sample.labels)
            told = _labels(labels, sample.labels, limits, sample.classes)
            # A frame has only some of the ids of its movie.
            findings += [f for f in told if f.code != "ids-gaps" or sample.tracks is None]
        except DataError as error:
            findings.append(unreadable(error))
    try:
        usable = sample.labels if fits and labels is not None else None
        image = measure_image(sample.image, usable)
        findings += _image(image, sample.image, labels, limits)
    except DataError as error:
        findings.append(unreadable(error))
    verdict = FileVerdict(sample.name, sample.path, split, tuple(findings))
    return Examined(_with_figures(verdict, sample, image, labels), sample, image, labels)


def unreadable(error: DataError) -> Finding:
    """What a reader says against a file."""
    return Finding("unreadable", "error", str(error), error.hint or "Mend the file or remove it.")


def _with_figures(
    verdict: FileVerdict, sample: Sample, image: ImageFigures | None, labels: LabelFigures | None
) -> FileVerdict:
    figures: dict[str, int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]]
    figures = {
        "shape": tuple(int(n) for n in sample.image.shape),
        "dtype": str(sample.image.dtype),
        "spacing": tuple(sample.spacing),
        "channels": tuple(sample.channels),
    }
    if labels is not None:
        figures["objects"] = len(labels.ids)
        if sample.classes:
            kinds = np.minimum(_kinds(labels.ids), len(sample.classes))
            counts = np.bincount(kinds, minlength=len(sample.classes))
            figures["classes"] = sample.classes
            figures["class_objects"] = _ints(counts[: len(sample.classes)])
        if labels.unknown:
            figures["unknown"] = labels.unknown / labels.voxels
        if len(labels.ids):
            figures["median_size"] = int(np.median(labels.sizes))
            figures["median_extent"] = _ints(np.median(labels.extents, axis=0))
            figures["largest_extent"] = _ints(labels.extents.max(axis=0))
    if image is not None:
        figures["low"] = tuple(channel.low for channel in image.channels)
        figures["high"] = tuple(channel.high for channel in image.channels)
        if labels is not None and len(labels.ids):
            figures["polarity"] = tuple(str(channel.polarity) for channel in image.channels)
    return FileVerdict(verdict.name, verdict.path, verdict.split, verdict.findings, figures)


def _ints(values: NDArray[np.generic]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _shape(sample: Sample, labels: LazyArray) -> Finding:
    image, truth = tuple(sample.image.shape[1:]), tuple(labels.shape)
    hint = "Labels must have the size of their image, pixel for pixel."
    if truth == (image[0], image[2], image[1]):
        hint = "Width and height are swapped: transpose one of them."
    return Finding(
        "shape", "error", f"The labels are {_size(truth)}, but the image is {_size(image)}.", hint
    )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape) + " (z y x)"


def _kinds(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class in each id; plain ids are of class 1."""
    kinds: NDArray[np.int64] = np.maximum(ids >> SHIFT, 1)
    return kinds


def _shown(ids: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """The first few ids; with classes as ``neuron 3``."""
    if not classes:
        return listed(ids.tolist())
    kinds, numbers = _kinds(ids), ids & ((1 << SHIFT) - 1)
    names = [classes[kind] if kind < len(classes) else f"class {kind}" for kind in kinds.tolist()]
    return listed([f"{name} {number}" for name, number in zip(names, numbers, strict=True)])


def _labels(
    found: LabelFigures, labels: LazyArray, limits: Limits, classes: tuple[str, ...]
) -> Iterator[Finding]:
    """What is wrong with the ids, most serious first."""
    if not len(found.ids):
        yield Finding(
            "no-objects",
            "warning",
            "Nothing is labelled in this image.",
            "Fine if there is nothing in it; else label it or leave it out.",
        )
        return
    yield from _values(found, labels.dtype)
    if classes:
        yield from _unnamed(found, classes)
    kind = _not_instances(found, limits, classes)
    if kind is not None:
        yield kind
        return
    yield from _gaps(found, classes)
    yield from _cut(found, classes)
    yield from _sizes(found, limits, classes)


def _unnamed(found: LabelFigures, classes: tuple[str, ...]) -> Iterator[Finding]:
    kinds = _kinds(found.ids)
    beyond = sorted(set(kinds[kinds >= len(classes)].tolist()))
    if beyond:
        yield Finding(
            "class-unnamed",
            "error",
            f"There are objects of class {listed(beyond)}, but the classes end at "
            f"{len(classes) - 1} ({listed(classes, 16)}).",
            "The reader must name each class.",
        )


def _gaps(found: LabelFigures, classes: tuple[str, ...]) -> Iterator[Finding]:
    if found.ids[0] <= 0:
        return
    kinds = _kinds(found.ids) if classes else np.ones(len(found.ids), np.int64)
    told = []
    for kind in np.unique(kinds).tolist():
        ids = found.ids[kinds == kind] & ((1 << SHIFT) - 1) if classes else found.ids
        if int(ids.max()) > len(ids):
            of = f" of {classes[kind]}" if kind < len(classes) else ""
            told.append(f"{len(ids)} ids{of}, up to {int(ids.max())}")
    if told:
        yield Finding("ids-gaps", "note", f"{'; '.join(told)}: some numbers are not used.")


def _values(found: LabelFigures, dtype: np.dtype[np.generic]) -> Iterator[Finding]:
    lowest, highest = int(found.ids[0]), int(found.ids[-1])
    wrapped = dtype.kind == "u" and lowest < 0  # beyond what int64 holds
    if lowest < 0 and not wrapped:
        yield Finding(
            "labels-negative",
            "error",
            f"Ids go down to {lowest}.",
            "Use 0 for background and for what is not to be learnt.",
        )
    if wrapped or highest > UINT32:
        yield Finding(
            "labels-too-large",
            "error",
            f"Ids go beyond {UINT32}.",
            "Renumber the objects 1, 2, 3, …: skimage.segmentation.relabel_sequential.",
        )


def _not_instances(found: LabelFigures, limits: Limits, classes: tuple[str, ...]) -> Finding | None:
    """Masks, class maps and pictures: integers, but no instance labels."""
    count = len(found.piece_sizes)
    if count >= 100 and np.median(found.piece_sizes) <= SPECK:
        return Finding(
            "labels-picture",
            "error",
            f"The labels fall into {count} pieces, most of {SPECK} pixels or fewer: "
            "a photograph, or labels saved as JPEG?",
            "Give a label image stored without loss (TIFF, PNG, Zarr).",
        )
    largest = np.zeros(len(found.ids), np.int64)
    np.maximum.at(largest, found.piece_ids, found.piece_sizes)
    real = found.piece_sizes >= np.maximum(limits.min_instance_size, largest[found.piece_ids] / 20)
    parts = np.bincount(found.piece_ids[real], minlength=len(found.ids))
    if len(found.ids) == 1 and parts[0] >= 3:
        return Finding(
            "labels-binary",
            "error",
            f"All {parts[0]} objects have the same id ({_shown(found.ids, classes)}): this is a "
            "mask.",
            "Number the objects, for instance with skimage.measure.label, and part those that "
            "touch by hand.",
        )
    if 1 < len(found.ids) <= CLASSES and parts.mean() >= PIECES:
        return Finding(
            "labels-classes",
            "error",
            f"Only {len(found.ids)} ids ({_shown(found.ids, classes)}) for {parts.sum()} objects: "
            "these look like classes.",
            "Give each object an id of its own.",
        )
    return None


def _cut(found: LabelFigures, classes: tuple[str, ...]) -> Iterator[Finding]:
    cut = np.flatnonzero(found.pieces > 1)
    if len(cut):
        share = np.bincount(found.piece_ids, weights=found.piece_sizes)
        largest = np.zeros(len(found.ids), np.int64)
        np.maximum.at(largest, found.piece_ids, found.piece_sizes)
        specks = int(np.count_nonzero((share - largest)[cut] <= 0.05 * share[cut]))
        told = f", {specks} of them only by specks" if specks else ""
        yield Finding(
            "ids-cut",
            "warning",
            f"{len(cut)} of {len(found.ids)} ids are in several pieces{told} "
            f"(ids {_shown(found.ids[cut], classes)}).",
            "Remove the specks, and give parts that are objects of their own new ids.",
        )


def _sizes(found: LabelFigures, limits: Limits, classes: tuple[str, ...]) -> Iterator[Finding]:
    biggest = int(np.argmax(found.sizes))
    share = found.sizes[biggest] / found.voxels
    name = _shown(found.ids[biggest : biggest + 1], classes)
    if len(found.ids) > 1 and share > 0.5:
        yield Finding(
            "background",
            "warning",
            f"Id {name} covers {share:.0%} of the image.",
            "If it is the background, set it to 0.",
        )
    tiny = np.flatnonzero((found.sizes < limits.min_instance_size) & ~found.at_rim)
    if len(tiny):
        yield Finding(
            "tiny-objects",
            "warning",
            f"{len(tiny)} of {len(found.ids)} objects have fewer than {limits.min_instance_size} "
            f"voxels (ids {_shown(found.ids[tiny], classes)}).",
            "Remove them if they are slips of the pen; else lower --min-instance-size.",
        )
    patch = np.array([limits.patch_depth, limits.patch_size, limits.patch_size])
    if limits.patch_depth == 1:
        patch[0] = np.iinfo(np.int64).max  # flat patches see every object as a slice
    large = np.flatnonzero((found.extents > patch).any(axis=1))
    if len(large):
        reach = found.extents[large].max(axis=0)
        grow = [f"--patch-size {_round_up(int(reach[1:].max()))}"] * bool(
            (reach[1:] > limits.patch_size).any()
        )
        if limits.patch_depth > 1 and reach[0] > limits.patch_depth:
            grow.append(f"--patch-depth {_round_up(int(reach[0]))}")
        yield Finding(
            "larger-than-patch",
            "warning",
            f"{len(large)} of {len(found.ids)} objects are larger than a training patch, up to "
            f"{_size(reach.tolist())} (ids {_shown(found.ids[large], classes)}).",
            f"Train with {' '.join(grow)}, or on smaller images.",
        )


def _round_up(length: int) -> int:
    return -(-length // 32) * 32


def _image(
    found: ImageFigures, image: LazyArray, labels: LabelFigures | None, limits: Limits
) -> Iterator[Finding]:
    bad = sum(channel.not_finite for channel in found.channels)
    if bad:
        share = bad / (np.prod([float(n) for n in image.shape]))
        yield Finding(
            "not-finite",
            "error",
            f"{bad} pixels ({share:.2g} of all) are NaN or infinite.",
            "Replace them, for instance with numpy.nan_to_num, or crop them away.",
        )
    constant = [c for c, channel in enumerate(found.channels) if channel.constant]
    if len(constant) == len(found.channels):
        # Objects that the image does not show would teach the model to invent.
        level: Level = "error" if labels is not None and len(labels.ids) else "warning"
        yield Finding(
            "constant",
            level,
            f"The image is empty: all its pixels are {found.channels[0].low:g}.",
            "Leave it out." if level == "warning" else "Its labels belong to another image?",
        )
    elif constant:
        yield Finding(
            "constant",
            "warning",
            f"Channel {listed(constant)} is empty: all its pixels are equal.",
            "Leave it out with --channels.",
        )
    for c, channel in enumerate(found.channels):
        if channel.at_high > limits.max_saturated and not channel.constant:
            yield Finding(
                "saturated",
                "warning",
                f"{channel.at_high:.1%} of the pixels of channel {c} are at the brightest value, "
                f"{channel.high:g}.",
                "Detail is lost where the camera was saturated: expose less, if you can.",
            )

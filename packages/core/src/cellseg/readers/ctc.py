"""Sequences of the Cell Tracking Challenge: images, truth, and the tracks in it.

Format: Maška et al., Nature Methods 2023, doi:10.1038/s41592-023-01879-y.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from cellseg.data import LazyArray, Sample
from cellseg.errors import DataError
from cellseg.parts import Crop
from cellseg.readers.ctc_folders import Kind, Sequence, frames, numbered, sequences, single
from cellseg.readers.options import CtcOptions, ReaderOptions
from cellseg.readers.problems import Problems
from cellseg.readers.stored import UNKNOWN, Stored, known_axes
from cellseg.readers.tiff import tiff_image
from cellseg.readers.view import View, samples_of
from cellseg.track_files import read_ctc_table
from cellseg.tracks import Lineage, Track, faults

Pieces: TypeAlias = Mapping[tuple[int, int | None], LazyArray]
"""Segmentation truth by frame and plane, None being the whole frame; each ``(z, y, x)``."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a sequence holds that can be used, and what is wrong with the rest."""

    samples: list[Sample]
    problems: list[DataError]
    missing: list[DataError]
    """Frames without an image or without truth."""


def open_ctc(path: Path, options: CtcOptions, labelled: bool) -> list[Sample]:
    """The frames of all sequences at ``path``, sequence by sequence.

    Frames are counted from 0, whatever the number of the first file is. Samples of the
    segmentation truth are stills: it is of single frames or planes, and its ids are no tracks. With
    ``labelled``, sequences in ``test`` are left out where there are others.

    Raises:
        DataError: there is no sequence, frames are missing, a table of tracks contradicts itself,
            or images and truth do not fit.
    """
    problems = Problems()
    samples: list[Sample] = []
    for sequence in chosen(path, labelled):
        opened = open_sequence(sequence, options, labelled)
        contradictions = _contradictions(sequence, opened.samples)
        wrong = (*opened.missing, *opened.problems, *contradictions)
        for problem in wrong:
            problems.add(problem, sequence.name)
        if not wrong:  # a movie that lacks a frame is no movie
            samples += opened.samples
    problems.refuse(samples)
    return samples


def chosen(path: Path, labelled: bool) -> list[Sequence]:
    """The sequences at ``path`` that have images; of trees with ``labelled`` those not in ``test``.

    Raises:
        DataError: there are none.
    """
    found = [one for one in sequences(path) if one.images is not None]
    if not found and path.is_dir():
        one = single(path)
        found = [one] if one.images is not None else []
    if not found:
        raise DataError(
            f"{path}: holds no sequence of the Cell Tracking Challenge.",
            hint="Expected images in 01/t000.tif, ... and truth in 01_GT/TRA/man_track000.tif, ...",
        )
    kept = [one for one in found if one.split != "test"] if labelled else found
    return kept or found


def open_sequence(sequence: Sequence, options: CtcOptions, labelled: bool) -> Opened:
    """The frames of one sequence that can be used, with what is wrong with the others."""
    assert sequence.images is not None
    try:
        images = frames(sequence.images, "image")
        shift = min(images)
        masks = _masks(sequence, options) if labelled else {}
    except DataError as problem:
        return Opened([], [problem], [])
    missing = _missing(sequence, images, masks, options, labelled)
    problems: list[DataError] = []
    tracks = None
    if labelled and options.ctc_labels != "seg":
        try:
            tracks = tracks_of(sequence, shift)
        except DataError as problem:
            problems.append(problem)
    split = sequence.split if sequence.split in ("train", "val") else None
    samples: list[Sample] = []
    pairs = list(masks.items()) if labelled else [((number, None), None) for number in images]
    for (number, plane), mask in pairs:
        if number not in images:
            continue
        try:
            sample = _sample(sequence.name, images[number], mask, options, plane)
        except DataError as problem:
            problems.append(problem)
            continue
        if options.ctc_labels == "seg" and labelled:
            name = f"{sequence.name}/{images[number].stem}"
            name += "" if plane is None else f"_z{plane:03}"
            samples.append(replace(sample, name=name, source=sequence.name, split=split))
            continue
        frame = number - shift
        samples.append(
            replace(
                sample,
                name=f"{sequence.name}#{frame}",
                source=sequence.name,
                frame=frame,
                split=split,
                tracks=tracks,
            )
        )
    return Opened(samples, problems, missing)


def tracks_of(sequence: Sequence, shift: int) -> Lineage:
    """The tracks of the truth, their frames counted from 0 as those of the samples.

    Args:
        sequence: with its truth.
        shift: the number of the first image.

    Raises:
        DataError: there is no table, or it cannot be read.
    """
    if sequence.table is None:
        raise DataError(f"{sequence.where}: has no folder {sequence.where.name}_GT with its truth.")
    return shifted(read_ctc_table(sequence.table), shift)


def shifted(lineage: Lineage, shift: int) -> Lineage:
    """A lineage whose frames are the numbers of files, with the first one, ``shift``, as frame 0.

    Some sets number their files from 1 and the frames of their tables from 0; these are told by a
    track that begins before the first number.
    """
    if not shift or any(track.begin < shift for track in lineage.tracks):
        return lineage
    return Lineage(
        tuple(Track(t.id, t.begin - shift, t.end - shift, t.parent) for t in lineage.tracks)
    )


def frame_image(path: Path) -> Stored:
    """One frame in a TIFF file: an axis that the file does not name, or calls time, is depth.

    Raises:
        DataError: it is no image, or damaged.
    """
    stored = tiff_image(path)
    pairs = zip(stored.axes, stored.pixels.shape, strict=True)
    depth = [i for i, (axis, length) in enumerate(pairs) if length > 1 and axis in UNKNOWN + "TZ"]
    if len(depth) != 1:
        return stored
    return replace(stored, axes=stored.axes[: depth[0]] + "Z" + stored.axes[depth[0] + 1 :])


def frame_labels(path: Path) -> View:
    """The labels of one frame, ``(z, y, x)``, as they are stored.

    Raises:
        DataError: they are no labels, or damaged.
    """
    stored = frame_image(path)
    view = View(stored.pixels, known_axes(stored), None)
    if "C" in view.axes or "S" in view.axes or view.dtype.kind not in "ui":
        raise DataError(
            f"{path}: holds {view.dtype} pixels with the axes {view.axes}, not labels.",
            hint="Masks have one whole number a voxel: 0 for background, else the track.",
        )
    return view


def _sample(
    name: str, image: Path, mask: Path | None, options: ReaderOptions, plane: int | None
) -> Sample:
    stored = tiff_image(image) if options.axes else frame_image(image)
    if plane is None:
        labels = None if mask is None else frame_image(mask)
        made = samples_of(name, stored, labels, options, image)
    else:
        made = samples_of(name, stored, None, options, image)
    if len(made) != 1:
        raise DataError(
            f"{image}: holds {len(made)} frames; each file of a sequence is one frame.",
            hint="Read movies in one file with --reader tiff.",
        )
    sample = made[0]
    if plane is None:
        return sample
    assert mask is not None
    depth, height, width = sample.image.shape[1:]
    truth = frame_labels(mask)
    if not plane < depth or truth.shape != (1, height, width):
        raise DataError(
            f"{mask}: is {truth.shape} (z, y, x) of plane {plane}, but the image is "
            f"{sample.image.shape[1:]}."
        )
    return replace(sample, image=Crop(sample.image, 0, plane, plane + 1), labels=truth)


def _masks(sequence: Sequence, options: CtcOptions) -> dict[tuple[int, int | None], Path]:
    """The label files that the user wants, by frame and plane."""
    kind = options.ctc_labels
    parent = sequence.silver if kind == "st" else sequence.gold
    folder = f"{sequence.where.name}{'_ST' if kind == 'st' else '_GT'}"
    inner = "TRA" if kind == "tra" else "SEG"
    names: Kind = "man_track" if kind == "tra" else "man_seg"
    masks = {} if parent is None else numbered(parent / inner, names)
    if not masks:
        others = [("tra", sequence.gold, "TRA"), ("seg", sequence.gold, "SEG")]
        others += [("st", sequence.silver, "SEG")]
        there = [name for name, place, sub in others if place and (place / sub).is_dir()]
        there = [f"--ctc-labels {name}" for name in there if name != kind]
        raise DataError(
            f"{sequence.where}: has no truth in {folder}/{inner}.",
            hint=f"There is other truth: {' or '.join(there)}"
            if there
            else f"Expected {names}000.tif and so on there, or leave the sequence out.",
        )
    return masks


def _missing(
    sequence: Sequence,
    images: Mapping[int, Path],
    masks: Mapping[tuple[int, int | None], Path],
    options: CtcOptions,
    labelled: bool,
) -> list[DataError]:
    """Gaps in the numbers of the images, and images and masks without a partner."""
    found = []
    numbers = set(images)
    gaps = set(range(min(numbers), max(numbers) + 1)) - numbers
    if gaps:
        found.append(
            DataError(
                f"{sequence.where}: images of {listed(gaps)} are missing.",
                hint="Add them, or number the frames without gaps.",
            )
        )
    if not labelled:
        return found
    truths = {number for number, _ in masks}
    where = next(iter(masks.values())).parent
    if options.ctc_labels != "seg" and numbers - truths:
        found.append(
            DataError(
                f"{where}: masks of {listed(numbers - truths)} are missing.",
                hint="Add them, empty ones where nothing is to be seen, or leave the sequence out.",
            )
        )
    if truths - numbers - gaps:
        found.append(
            DataError(
                f"{where}: masks of {listed(truths - numbers - gaps)} have no image.",
                hint="Add the images, or remove these masks and correct the table.",
            )
        )
    return found


def _contradictions(sequence: Sequence, samples: list[Sample]) -> Iterable[DataError]:
    tracks = samples[0].tracks if samples else None
    wrong = [fault for fault in faults(tracks) if fault.breaks] if tracks is not None else []
    if wrong:
        yield DataError(
            f"{sequence.table}: {' '.join(fault.message for fault in wrong)}",
            hint="cellseg check-data lists all that is wrong.",
        )


def listed(numbers: Iterable[int], most: int = 5) -> str:
    """``frames 3, 4, 7``: the first few, and how many more there are."""
    known = sorted(numbers)
    shown = ", ".join(map(str, known[:most]))
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"frame{'s' if len(known) > 1 else ''} {shown}{more}"

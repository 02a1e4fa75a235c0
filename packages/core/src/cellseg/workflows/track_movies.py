"""Which label images are the frames of which movie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from cellseg.data import LazyArray, Sample, Spacing
from cellseg.errors import DataError
from cellseg.locations import is_remote
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.readers.ctc_folders import sequences
from cellseg.readers.problems import Problems
from cellseg.workflows.evaluate_pairs import LabelImage, Wanted, label_images
from cellseg.workflows.track_settings import TrackSettings

_CTC = re.compile(r"_(RES|GT|ST|ERR_SEG)$")
"""Ends of the folders of the Cell Tracking Challenge, behind the name of the movie."""
_MASK = re.compile(r"(mask|man_track|man_seg)_?\d+")
"""Their files, as label images are called."""
_LISTED = 5


@dataclass(frozen=True, slots=True)
class LabelMovie:
    """The label images of one movie, in the order of time."""

    name: str
    frames: tuple[LazyArray, ...]
    """``(z, y, x)`` each, all of one shape."""
    names: tuple[str, ...]
    """What messages call the frames."""
    spacing: Spacing
    """Micrometres, ``(z, y, x)``."""
    files: tuple[Path, ...]
    """The files or containers that the labels are in, each once."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the name of an image says that it belongs."""

    folder: str
    movie: str
    """What its name has around the number; the whole name where frames are numbered with ``#``."""
    number: int | None
    inside: bool
    """Whether one file holds the movie."""

    @classmethod
    def of(cls, name: str) -> _Place:
        movie, mark, number = name.rpartition("#")
        if mark and number.isdecimal():
            return cls("", movie, int(number), True)
        path = PurePosixPath(name)
        folder = path.parent.as_posix() if path.parent.parts else ""
        digits = re.fullmatch(r"(.*?)(\d+)(\D*)", path.name)
        if digits is None:
            return cls(folder, path.name, None, False)
        return cls(folder, f"{digits[1]}*{digits[3]}", int(digits[2]), False)

    @property
    def key(self) -> tuple[str, str, bool]:
        return (self.folder, self.movie, self.inside)


def label_movies(
    plugins: Plugins, labels: Path, settings: TrackSettings
) -> tuple[list[LabelMovie], dict[str, str]]:
    """The movies at a path: stacks, containers, or folders with a file for each frame.

    Frames in files of their own are those whose names differ in their last number alone; they come
    in the order of these numbers. A movie is called as its file, or as the folder of its files.

    Returns:
        The movies; and what is wrong with others, by their names: one of their frames cannot be
        read or is missing, they differ in shape, or it is no movie.

    Raises:
        DataError: there are no label images, or no movie can be used.
    """
    _refuse_data_sets(labels)
    wanted = Wanted("labels", labels, settings.key, settings.suffix, settings.axes, "--key")
    unreadable, problems = Problems(), Problems()
    found = label_images(plugins, wanted, unreadable)
    broken = unreadable.named
    names = [*(image.name for image in found), *broken]
    movies = []
    for name, places in grouped(names, labels, problems).items():
        wrong = [names[place] for place in places if place >= len(found)]
        if wrong:  # a movie that lacks a frame is no movie
            problems.add(DataError(broken[wrong[0]]), name)
            continue
        frames = [found[place] for place in places]
        try:
            _check(name, frames, settings.axes or "")
        except DataError as problem:
            problems.add(problem, name)
            continue
        movies.append(
            LabelMovie(
                name,
                tuple(frame.labels for frame in frames),
                tuple(frame.name for frame in frames),
                frames[0].spacing,
                tuple(dict.fromkeys(frame.path for frame in frames)),
            )
        )
    if not movies:
        problems.refuse()
    return movies, problems.named


def images_of(plugins: Plugins, images: Path, movies: Sequence[LabelMovie]) -> list[list[Sample]]:
    """The images of each movie, frame by frame.

    Raises:
        DataError: a movie has no images, or they do not fit its labels.
    """
    samples = open_dataset(plugins, images, "auto", {}, labelled=False)
    groups = grouped([sample.name for sample in samples], images)
    if len(groups) == len(movies) == 1:
        groups = dict.fromkeys([movies[0].name], next(iter(groups.values())))
    found = []
    for movie in movies:
        if movie.name not in groups:
            raise DataError(
                f"--images {images}: holds no movie called {movie.name}, but "
                f"{', '.join(list(groups)[:_LISTED])}.",
                hint="Where there are several movies, images and labels have the same names.",
            )
        own = [samples[place] for place in groups[movie.name]]
        if len(own) != len(movie.frames):
            raise DataError(
                f"--images {images}: {movie.name} has {len(own)} frames, its labels "
                f"{len(movie.frames)}."
            )
        for sample, labels in zip(own, movie.frames, strict=True):
            if sample.image.shape[1:] != labels.shape:
                raise DataError(
                    f"--images {images}: {sample.name} has the shape {sample.image.shape[1:]}, "
                    f"its labels {labels.shape} (z, y, x)."
                )
        found.append(own)
    return found


def grouped(
    names: Sequence[str], root: Path, problems: Problems | None = None
) -> dict[str, list[int]]:
    """The places of the frames of each movie in ``names``, in the order of time; by its name.

    Args:
        names: relative to ``root``, ``/`` between folders; ``#3`` for frame 3 in a file.
        root: the path that was opened.
        problems: gets movies in which frames are missing, which are left out then.

    Raises:
        DataError: frames are missing in the middle of a movie, or two movies have one name.
    """
    groups: dict[tuple[str, str, bool], list[tuple[int, int]]] = {}
    for place, name in enumerate(names):
        where = _Place.of(name)
        groups.setdefault(where.key, []).append((where.number or 0, place))
    alone = {
        folder: sum(other == folder and not inside for other, _, inside in groups) == 1
        for folder, _, _ in groups
    }
    movies: dict[str, list[int]] = {}
    for (folder, movie, inside), members in groups.items():
        members.sort()
        if inside:
            name = movie
        elif alone[folder] and (len(members) > 1 or _is_mask(names[members[0][1]])):
            name = _title(root / folder if folder else root)
            if len(PurePosixPath(folder).parts) > 1:
                name = (PurePosixPath(folder).parent / name).as_posix()
        elif len(members) == 1:
            name = names[members[0][1]]
        else:
            name = (
                PurePosixPath(folder) / (movie.replace("*", "").strip("_-. ") or "movie")
            ).as_posix()
        try:
            _refuse_holes(name, [number for number, _ in members], [names[p] for _, p in members])
        except DataError as problem:
            if problems is None:
                raise
            problems.add(problem, name)
            continue
        if name in movies:
            raise DataError(f"{root}: two movies would be called {name!r}.", hint="Rename one.")
        movies[name] = [place for _, place in members]
    return movies


def _title(folder: Path) -> str:
    """The name of the movie whose frames are the files of a folder."""
    resolved = folder.resolve()
    if resolved.name in ("TRA", "SEG", "labels"):
        resolved = resolved.parent
    return _CTC.sub("", resolved.name) or "movie"


def _refuse_holes(movie: str, numbers: Sequence[int], names: Sequence[str]) -> None:
    """Raise a DataError unless all steps from frame to frame are the same."""
    steps = [b - a for a, b in pairwise(numbers)]
    if len(set(steps)) < 2:
        return
    least = min(steps)
    if least == 0:
        raise DataError(f"{movie}: two frames have the number {numbers[steps.index(0)]}.")
    at = next(i for i, step in enumerate(steps) if step != least)
    raise DataError(
        f"{movie}: frames are missing between {names[at]} and {names[at + 1]}.",
        hint="Frames are in the order of the last number in their names; where nothing was "
        "segmented, add an image of zeros.",
    )


def _refuse_data_sets(labels: Path) -> None:
    """Raise a DataError for a folder of the Cell Tracking Challenge that is more than labels."""
    if is_remote(labels) or labels.name in ("TRA", "SEG") or labels.name.endswith("_RES"):
        return
    choices = [
        folder
        for one in sequences(labels)
        for folder in (
            one.silver and one.silver / "SEG",
            one.gold and one.gold / "TRA",
        )
        if folder is not None and folder.is_dir()
    ]
    if choices:
        raise DataError(
            f"{labels}: belongs to a data set of the Cell Tracking Challenge, which holds images "
            "and labels of several kinds.",
            hint=f"Name the labels to link: {' or '.join(map(str, choices[:_LISTED]))}",
        )


def _is_mask(name: str) -> bool:
    """Whether the name is that of a mask of the Cell Tracking Challenge, alone a movie too."""
    return _MASK.fullmatch(PurePosixPath(name).name) is not None


def _check(movie: str, frames: Sequence[LabelImage], axes: str) -> None:
    """Raise a DataError unless these are the frames of a movie, which ``axes`` may say of one."""
    first = frames[0]
    if len(frames) < 2 and "T" not in axes.upper() and not _is_mask(first.name):
        raise DataError(
            f"{first.path}: {movie} is a single image of {_size(first)} (z, y, x), no movie.",
            hint="If it is a stack over time, say so: --axes TYX (or TZYX). Frames in files of "
            "their own are numbered: t000.tif, t001.tif, ...",
        )
    for frame in frames:
        if frame.labels.shape != first.labels.shape:
            raise DataError(
                f"{frame.path}: {frame.name} has {_size(frame)} voxels (z, y, x), the frames "
                f"before it {_size(first)}."
            )
        if frame.labels.dtype.kind not in "iu":
            raise DataError(f"{frame.path}: is {frame.labels.dtype}; labels are integers.")


def _size(image: LabelImage) -> str:
    return " x ".join(map(str, image.labels.shape))

"""Points and boxes that show a model which objects to segment, from files of the user.

A CSV table counts pixels from their centres: the first is at 0, as in napari and in our object
tables. GeoJSON counts from their corners: the first spans 0 to 1, as in QuPath and in the GeoJSON
that we write. ``docs/prompts.md`` describes both. This module is light.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from cellseg.data import ZYX, Prompt
from cellseg.errors import DataError
from cellseg.prompt_files import SUFFIXES, Mark, read_marks
from cellseg.texts import did_you_mean

Point: TypeAlias = tuple[float, float, float]

_SHOWN = 5
"""Names that a hint lists at most."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A prompt, and where in its image it belongs."""

    anchor: Point
    """Its first positive point, or else the centre of its box."""
    number: int
    """Its place in the file."""
    prompt: Prompt
    where: str
    """The line or the feature, for messages."""
    plane_known: bool
    frame_known: bool


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts for a number of images. Picklable."""

    placed: Mapping[tuple[str, int], tuple[Placed, ...]] = field(default_factory=dict)
    """By image and frame (0 for a still image), sorted by the anchors' y."""

    @property
    def count(self) -> int:
        """How many objects they show, in all images."""
        return sum(map(len, self.placed.values()))

    def within(self, name: str, frame: int | None, start: ZYX, stop: ZYX) -> tuple[Prompt, ...]:
        """The prompts that belong to a window of an image, in coordinates of the window.

        A prompt belongs where its first positive point lies, or, where it has none, the centre of
        its box; so each belongs to exactly one of the windows that tile an image. Its other points
        outside the window are left out, and its box is clipped.

        Args:
            name: of the image or movie.
            frame: index in its movie (``Sample.frame``); None or 0 for a still image.
            start: first voxel of the window, ``(z, y, x)``.
            stop: end of the window, not part of it.

        Returns:
            In the order of the file; empty where there are none.
        """
        placed = self.placed.get((name, frame or 0), ())
        first, last = (bisect_left(placed, float(end[1]), key=_row) for end in (start, stop))
        found = [one for one in placed[first:last] if _inside(one.anchor, start, stop)]
        found.sort(key=lambda one: one.number)
        return tuple(_cut(one.prompt, start, stop) for one in found)

    def check(self, name: str, shape: ZYX, frames: Collection[int] | None = None) -> None:
        """Refuse the prompts of an image that are not in it, or that do not say where in it.

        Args:
            name: of the image or movie.
            shape: of the image, or of each frame, ``(z, y, x)``.
            frames: the indices of the movie's frames; None for a still image.

        Raises:
            DataError: a point, or the centre of a box without a positive point, lies outside the
                image; a volume's prompt has no z, or a movie's no frame; there is no such frame.
        """
        known = {0} if frames is None else {*frames}
        here = [
            (frame, one)
            for (image, frame), placed in self.placed.items()
            for one in placed
            if image == name
        ]
        for frame, one in sorted(here, key=lambda pair: pair[1].number):
            if not one.frame_known and frames is not None and known != {0}:
                raise DataError(
                    f"{one.where}: {name} is a movie, but the frame is not given.",
                    hint="Add a column frame, or the property frame in GeoJSON; they count from 0.",
                )
            if frame not in known:
                what = "is no movie" if frames is None else f"has the frames {_range(known)}"
                raise DataError(f"{one.where}: is in frame {frame}, but {name} {what}.")
            if not one.plane_known and shape[0] > 1:
                raise DataError(
                    f"{one.where}: {name} has {shape[0]} planes, but z is not given.",
                    hint="Add a column z, or the plane in GeoJSON; they count from 0.",
                )
            for point in (one.anchor, *one.prompt.points):
                if not _inside(point, (0, 0, 0), shape):
                    raise DataError(
                        f"{one.where}: lies outside of {name}: z {point[0]:g}, y {point[1]:g}, "
                        f"x {point[2]:g}, counted from the corner of the first of "
                        f"{shape[0]} x {shape[1]} x {shape[2]} voxels.",
                        hint="Coordinates are in pixels, and y comes before x in tables.",
                    )


def read_prompts(path: Path, names: Sequence[str], movies: Collection[str] = ()) -> Prompts:
    """Read the prompts for a number of images.

    Args:
        path: a CSV table or a GeoJSON file, or a folder of such files named like the images.
        names: of all images and movies that are to be predicted.
        movies: which of them are movies of single planes; of three axes of a napari layer, the
            first is their frame.

    Raises:
        DataError: a file is missing, damaged or too large; a row or a feature is wrong or names no
            image that there is; an object has only negative points, or more than one box.
    """
    matched = ImageNames(tuple(names))
    marks: list[Mark] = []
    if path.is_dir():
        files = files_of(path)
        if not files:
            raise DataError(
                f"{path}: holds no files of prompts.", hint=f"They end in {', '.join(SUFFIXES)}."
            )
        for file in files:
            image = matched.find(file.relative_to(path).as_posix(), str(file))
            for mark in read_marks(file):
                if mark.image is not None and matched.find(mark.image, mark.where) != image:
                    raise DataError(
                        f"{mark.where}: is for {mark.image!r}, but its file is named like {image}."
                    )
                marks.append(replace(mark, image=image))
    else:
        for mark in read_marks(path):
            marks.append(replace(mark, image=matched.of(mark.image, mark.where)))
    groups: dict[tuple[str, int | None, str | int], list[Mark]] = {}
    for number, mark in enumerate(marks):
        if mark.image in movies and mark.frame is None and mark.leading is not None:
            mark = _in_frame(mark, mark.leading)
        own = number if mark.object is None else mark.object
        groups.setdefault((mark.image or "", mark.frame, own), []).append(mark)
    placed: dict[tuple[str, int], list[Placed]] = {}
    for number, ((image, frame, _), members) in enumerate(groups.items()):
        placed.setdefault((image, frame or 0), []).append(_placed(members, number))
    return Prompts({key: tuple(sorted(ones, key=_row)) for key, ones in placed.items()})


def files_of(path: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """The files at a path, sorted: itself, or those in a folder that are not hidden."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.suffix.lower() in suffixes)
    return sorted(file for file in files if not _hidden(file.relative_to(path)))


def from_one_root(one: str, other: str) -> bool:
    """Whether names of images are equal, or would be from the same root."""
    return one == other or one.endswith("/" + other) or other.endswith("/" + one)


def within(prompts: Sequence[Prompt], start: ZYX, stop: ZYX) -> tuple[Prompt, ...]:
    """As ``Prompts.within``, for the prompts of a tile and a window in it."""
    return tuple(_cut(one, start, stop) for one in prompts if _inside(_anchor(one), start, stop))


class ImageNames:
    """Names of images, as files call them: exactly, or without folder and extension.

    A folder that is given, and is not that of the image, is of another image.

    Args:
        names: of all images.
        what: what messages call the images.
    """

    def __init__(self, names: tuple[str, ...], what: str = "those to predict") -> None:
        self._names = names
        self._what = what
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            for key in {PurePosixPath(name).name, _stem(name)}:
                self._by_stem.setdefault(key, []).append(name)
        self._found: dict[str, str] = {}

    def of(self, image: str | None, where: str) -> str:
        """The image that is called ``image``: the only one, where that is None.

        Raises:
            DataError: it cannot be told which image is meant.
        """
        if image is not None:
            return self.find(image, where)
        if len(self._names) != 1:
            raise DataError(
                f"{where}: does not say which of the {len(self._names)} images it is for.",
                hint="Add a column image, or the property image in GeoJSON; or give a folder with "
                "a file for each image.",
            )
        return self._names[0]

    def find(self, given: str, where: str) -> str:
        """The image that a file calls ``given``.

        Raises:
            DataError: there is none, or there are several.
        """
        if given not in self._found:
            self._found[given] = self._find(given, where)
        return self._found[given]

    def _find(self, given: str, where: str) -> str:
        plain = given.replace("\\", "/")
        for exact in (given, plain, _bare(plain)):
            if exact in self._names:
                return exact
        found = [name for name in self._by_stem.get(_stem(plain), []) if _means(plain, name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{where}: {given!r} could be {' or '.join(found[:_SHOWN])}.",
                hint="Give the whole name.",
            )
        listed = ", ".join(self._names[:_SHOWN]) + (", ..." if len(self._names) > _SHOWN else "")
        raise DataError(
            f"{where}: there is no image {given!r} among {self._what}.",
            hint=did_you_mean(_bare(plain), self._names, f"There are: {listed}."),
        )


def _bare(name: str) -> str:
    """Without its extension, ``.ome.tif`` being one."""
    bare = str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name
    return bare[:-4] if bare.lower().endswith(".ome") else bare


def _stem(name: str) -> str:
    return PurePosixPath(_bare(name)).name


def _means(given: str, name: str) -> bool:
    """Whether both name one image, seen from other folders or without an extension."""
    ways = ((given, name), (_bare(given), name), (given, _bare(name)))
    return any(from_one_root(one, other) for one, other in ways)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _in_frame(mark: Mark, frame: int) -> Mark:
    """What a napari layer says of a movie, whose first axis is not z."""
    box = mark.box
    if box is not None:
        (_, y0, x0), (_, y1, x1) = box
        box = (None, y0, x0), (None, y1, x1)
    points = tuple((None, y, x) for _, y, x in mark.points)
    return replace(mark, points=points, box=box, frame=frame)


def _placed(marks: Sequence[Mark], number: int) -> Placed:
    """The prompt that some marks make together."""
    where = marks[0].where
    boxed = [mark for mark in marks if mark.box is not None]
    if len(boxed) > 1:
        raise DataError(
            f"{boxed[1].where}: object {marks[0].object!r} has a box already, in {boxed[0].where}."
        )
    depths = [z for mark in marks for z, _, _ in (*mark.points, *(mark.box or ()))]
    if None in depths and any(z is not None for z in depths):
        raise DataError(f"{where}: object {marks[0].object!r} has a z for some of its marks only.")
    points = tuple(_point(point) for mark in marks for point in mark.points)
    positive = tuple(mark.positive for mark in marks for _ in mark.points)
    box = boxed[0].box if boxed else None
    if not any(positive) and box is None:
        raise DataError(
            f"{where}: has only negative points.",
            hint="Points beside an object belong to one on it: give both the same object.",
        )
    corners = None if box is None else (_corner(box[0], 0.0), _corner(box[1], 1.0))
    prompt = Prompt(points=points, positive=positive, box=corners, name=marks[0].name)
    return Placed(
        anchor=_anchor(prompt),
        number=number,
        prompt=prompt,
        where=where,
        plane_known=None not in depths,
        frame_known=marks[0].frame is not None,
    )


def _anchor(prompt: Prompt) -> Point:
    """Its first positive point, or else the centre of its box."""
    if any(prompt.positive):
        return prompt.points[prompt.positive.index(True)]
    assert prompt.box is not None
    z, y, x = ((first + last) / 2 for first, last in zip(*prompt.box, strict=True))
    return z, y, x


def _point(place: tuple[float | None, float, float]) -> Point:
    z, y, x = place
    return 0.5 if z is None else z, y, x


def _corner(place: tuple[float | None, float, float], z_if_none: float) -> Point:
    z, y, x = place
    return z_if_none if z is None else z, y, x


def _cut(prompt: Prompt, start: ZYX, stop: ZYX) -> Prompt:
    """What of a prompt lies in a window, in coordinates of the window."""
    kept = [
        (_moved(point, start), positive)
        for point, positive in zip(prompt.points, prompt.positive, strict=True)
        if _inside(point, start, stop)
    ]
    box = prompt.box
    if box is not None:
        low = tuple(map(max, box[0], start))
        high = tuple(map(min, box[1], stop))
        box = None
        if all(a < b for a, b in zip(low, high, strict=True)):
            box = (
                _moved((low[0], low[1], low[2]), start),
                _moved((high[0], high[1], high[2]), start),
            )
    return replace(
        prompt,
        points=tuple(point for point, _ in kept),
        positive=tuple(positive for _, positive in kept),
        box=box,
    )


def _moved(point: Point, origin: ZYX) -> Point:
    return point[0] - origin[0], point[1] - origin[1], point[2] - origin[2]


def _inside(point: Point, start: ZYX, stop: ZYX) -> bool:
    z, y, x = point
    return start[0] <= z < stop[0] and start[1] <= y < stop[1] and start[2] <= x < stop[2]


def _row(placed: Placed) -> float:
    return placed.anchor[1]


def _range(numbers: Collection[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "none"

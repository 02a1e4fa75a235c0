"""Examples of what to look for: which shapes count, in which image, and as which class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from cellseg.classes import MOST_CLASSES
from cellseg.data import Dataset, Example, ExampleImage, LazyArray, Tiling
from cellseg.engine.items import Item, make_items
from cellseg.errors import ConfigError, DataError
from cellseg.example_shapes import Shape
from cellseg.prompt_files import NEGATIVE_CLASSES

_SHOWN = 8
"""Names that a message lists at most."""
_BLOCK = 1 << 22
"""Values that are read at once."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What a model is to look for."""

    images: tuple[ExampleImage, ...]
    """Those in which examples lie, in the order of the data; without labels, and not normalised."""
    classes: tuple[str, ...]
    """Names of the classes by number, ``background`` first; empty for one without a name."""
    places: frozenset[tuple[str, int, int]] = frozenset()
    """Where they lie: the name of an image or a movie, the index of a frame (0 in a still image),
    and a plane."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    @property
    def digest(self) -> str:
        """What tells these examples from others, whatever file and order they come in; reads the
        planes in which they lie."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for image in self.images:
            pixels = image.sample.image
            digest.update(repr((image.sample.name, *pixels.shape, str(pixels.dtype))).encode())
            for plane in sorted({one.corner[0] for one in image.examples}):
                for block in _blocks(pixels, plane):
                    digest.update(block.tobytes())
            for one in image.examples:
                *place, mask = _place(one)
                digest.update(repr((place, one.kind, one.positive)).encode())
                digest.update(mask)
        return f"sha256:{digest.hexdigest()}"


def examples_of_labels(samples: Dataset) -> Examples:
    """Every object of labelled images as an example.

    Args:
        samples: with labels, all of the same classes.

    Raises:
        DataError: there is no object, or the labels cannot be used.
    """
    from cellseg.example_labels import shapes_of_labels

    items = make_items(samples, Tiling(), False)
    shapes = [
        shape
        for item in items
        for sample in item.frames
        if sample.labels is not None
        for shape in shapes_of_labels(
            sample.labels, sample.name, item.name, sample.frame, sample.classes
        )
    ]
    found = {name for shape in shapes for name in shape.names}
    order = tuple(name for name in samples[0].classes if name in found) if len(samples) else ()
    return placed(shapes, items, Wanted(order, (), "The labels"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which shapes count, and as what.

    Raises:
        ConfigError: a tag is given twice, or cannot be one.
    """

    tags: tuple[str, ...]
    """Classes to look for, in this order; all that there are, if empty."""
    negative: tuple[str, ...]
    """Classes of what is to be left alone."""
    where: str
    """How messages call all shapes together."""

    def __post_init__(self) -> None:
        for flag, names in (("--tag", self.tags), ("--negative-tag", self.negative)):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ConfigError(f"{flag} {twice[0]} is given twice.")
        both = sorted({*self.tags} & {*self.negative})
        if both:
            raise ConfigError(
                f"--tag {both[0]} and --negative-tag {both[0]} exclude each other.",
                hint="An object is looked for, or left alone.",
            )
        if "background" in self.tags:
            raise ConfigError("--tag background: this is what everything else is called.")
        if len(self.tags) > MOST_CLASSES:
            raise ConfigError(f"--tag: {len(self.tags)} classes; {MOST_CLASSES} fit.")


def placed(shapes: Sequence[Shape], items: Sequence[Item], wanted: Wanted) -> Examples:
    """The shapes that count, sorted, with their images.

    Args:
        shapes: each with the name of its image.
        items: all images.
        wanted: which shapes count.

    Raises:
        DataError: an example does not lie within its image, crosses itself, covers no pixel or is
            there twice; a tag has no example, or classes are not clear.
    """
    from cellseg.example_masks import example_of

    negative, positive, left_out = _divided(shapes, wanted)
    classes = _classes(positive, wanted)
    by_name = {item.name: item for item in items}
    found: dict[tuple[str, int], list[Example]] = {}
    for shape, kind in [(one, 0) for one in negative] + [
        (one, _kind(one, classes)) for one in positive
    ]:
        frame, example = example_of(shape, by_name[shape.image or ""], kind)
        found.setdefault((shape.image or "", frame), []).append(example)
    images = []
    places = frozenset((*key, one.corner[0]) for key, own in found.items() for one in own)
    for item in items:
        for sample in item.frames:
            own = sorted(found.pop((item.name, sample.frame or 0), []), key=_identity)
            _refuse_repeated(own)
            if own:
                bare = replace(sample, labels=None, classes=(), split=None)
                images.append(ExampleImage(sample=bare, examples=tuple(own)))
    assert not found, "each frame was checked"
    return Examples(tuple(images), classes, places, tuple(_notes(left_out, wanted)))


def _divided(
    shapes: Sequence[Shape], wanted: Wanted
) -> tuple[list[Shape], list[Shape], list[Shape]]:
    """The negative shapes, the positive ones, and those of other classes."""
    negative, positive, left_out = [], [], []
    there = Counter(name for shape in shapes for name in shape.names)
    for flag, names in (("--tag", wanted.tags), ("--negative-tag", wanted.negative)):
        for name in names:
            if name not in there:
                raise DataError(
                    f"{flag} {name}: {wanted.where} has no example of this class.",
                    hint=f"There are: {_counted(there)}."
                    if there
                    else "None of its examples has a class.",
                )
    for shape in shapes:
        ours, theirs = shape.names & {*wanted.tags}, shape.names & {*wanted.negative}
        if ours and theirs:
            raise DataError(
                f"{shape.where}: is to be looked for as {min(ours)}, and left alone as "
                f"{min(theirs)}."
            )
        automatic = any(name.lower() in NEGATIVE_CLASSES for name in shape.names)
        if theirs or shape.negative or (automatic and not ours):
            negative.append(shape)
        elif ours or not wanted.tags:
            positive.append(replace(shape, names=ours) if wanted.tags else shape)
        else:
            left_out.append(shape)
    for name in wanted.tags:
        if not any(name in shape.names for shape in positive):
            raise DataError(
                f"--tag {name}: all examples of this class in {wanted.where} are negative."
            )
    if not positive:
        what = f"only negative ones ({len(negative)})" if negative else "none"
        raise DataError(
            f"{wanted.where}: shows no object to look for, {what}.",
            hint="Draw some objects to look for.",
        )
    return negative, positive, left_out


def _classes(positive: Sequence[Shape], wanted: Wanted) -> tuple[str, ...]:
    for shape in positive:
        if len(shape.names) > 1:
            raise DataError(
                f"{shape.where}: is of several classes: {', '.join(sorted(shape.names))}.",
                hint="Say which counts: --tag NAME",
            )
    named = {name for shape in positive for name in shape.names}
    without = [shape for shape in positive if not shape.names]
    if named and without:
        raise DataError(
            f"{wanted.where}: {len(positive) - len(without)} example(s) have a class "
            f"({_listed(sorted(named))}), but {len(without)} have none, such as "
            f"{without[0].where}.",
            hint="Give all a class, or say which classes count: --tag NAME",
        )
    if "background" in named:
        raise DataError(f"{wanted.where}: has a class called background; rename it.")
    if len(named) > MOST_CLASSES:
        raise DataError(
            f"{wanted.where}: has {len(named)} classes ({_listed(sorted(named))}); "
            f"{MOST_CLASSES} fit.",
            hint="Say which count: --tag NAME",
        )
    if not named:
        return ()
    return ("background", *(wanted.tags or sorted(named)))


def _kind(shape: Shape, classes: tuple[str, ...]) -> int:
    return classes.index(next(iter(shape.names))) if classes else 1


def _identity(one: Example) -> tuple[object, ...]:
    """Sorts examples by place, and tells them apart."""
    return (*_place(one), one.kind, one.positive)


def _place(one: Example) -> tuple[Any, ...]:
    """Where it lies; its pixels last."""
    if one.mask is None:
        return (*one.corner, 0, one.point, b"")
    return (*one.corner, 1, one.mask.shape, one.mask.tobytes())


def _blocks(pixels: LazyArray, plane: int) -> Iterator[NDArray[Any]]:
    """A plane of ``(c, z, y, x)``, some rows at a time."""
    channels, _, height, width = pixels.shape
    rows = max(1, _BLOCK // (channels * width))
    for y in range(0, height, rows):
        part = slice(y, min(y + rows, height))
        yield pixels[slice(0, channels), slice(plane, plane + 1), part, slice(0, width)]


def _refuse_repeated(examples: Iterable[Example]) -> None:
    seen: dict[tuple[object, ...], Example] = {}
    for one in examples:
        other = seen.setdefault(_place(one), one)
        if other is not one:
            if other.kind == one.kind:
                what = "shows the same"
            else:
                what = "shows the same, but of another class,"
            raise DataError(f"{one.where}: {what} as {other.where}.", hint="Remove one of them.")


def _notes(left_out: Sequence[Shape], wanted: Wanted) -> Iterable[str]:
    if left_out:
        counts = Counter(name for shape in left_out for name in shape.names)
        without = sum(not shape.names for shape in left_out)
        parts = ([_counted(counts)] if counts else []) + (
            [f"{without} without a class"] if without else []
        )
        yield (
            f"{len(left_out)} example(s) in {wanted.where} are of other classes than --tag says, "
            f"and left out: {', '.join(parts)}."
        )


def _counted(names: Counter[str]) -> str:
    return _listed([f"{name} ({count})" for name, count in sorted(names.items())])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )

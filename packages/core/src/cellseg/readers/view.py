"""Stored arrays in cellseg's axis order, and the samples made of them; nothing is read early."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Sample, Spacing
from cellseg.errors import DataError
from cellseg.readers.options import ReaderOptions
from cellseg.readers.stored import NONE, Channel, Pixels, Stored, given_axes, known_axes
from cellseg.texts import did_you_mean

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, slots=True)
class View:
    """A stored array as ``(c, z, y, x)``, or as ``(z, y, x)`` where ``channels`` is None.

    Lazy, picklable and cheap; numbers have the byte order of this machine, and booleans come as
    uint8. An alpha sample is never among the channels.
    """

    pixels: Pixels
    axes: str
    """One letter for each stored axis."""
    channels: tuple[int, ...] | None
    """Which of the stored channels (times samples), in this order; None makes it labels."""
    frame: int = 0
    dropped: str = ""
    """What the file has and the view has not, in words."""

    @property
    def where(self) -> str:
        """The file, and the array in it."""
        return self.pixels.where

    @property
    def shape(self) -> tuple[int, ...]:
        """``(c, z, y, x)`` or ``(z, y, x)``."""
        space = tuple(self._length(axis) for axis in "ZYX")
        return space if self.channels is None else (len(self.channels), *space)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """What is decoded at once, in the axes of ``shape``; None where pixels come singly."""
        stored: tuple[int, ...] | None = getattr(self.pixels, "chunk", None)
        if stored is None:
            return None
        at = [self.axes.find(axis) for axis in "ZYX"]
        space = tuple(1 if place < 0 else stored[place] for place in at)
        return space if self.channels is None else (1, *space)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        dtype = self.pixels.dtype
        return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        """Read one block; ``key`` has a slice (step 1) for each axis, fewer mean all of the rest.

        Raises:
            DataError: the file is damaged or gone.
        """
        ranges = self._ranges(key)
        if self.channels is None:
            labels: NDArray[Any] = self._block(slice(0, self._length("C")), ranges)[0]
            return labels
        channels = self.channels[ranges[0]]
        space = ranges[1:]
        if not channels:
            return np.empty((0, *(s.stop - s.start for s in space)), self.dtype)
        samples = self._length("S")
        stored = sorted({channel // samples for channel in channels})
        blocks: list[NDArray[Any]] = []
        rows: dict[int, int] = {}
        for first, last in _runs(stored):
            for row in range(first * samples, (last + 1) * samples):
                rows[row] = len(rows)
            blocks.append(self._block(slice(first, last + 1), space))
        block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        order = [rows[channel] for channel in channels]
        return block if order == list(range(len(block))) else block[order]

    def _length(self, axis: str) -> int:
        at = self.axes.find(axis)
        return 1 if at < 0 else self.pixels.shape[at]

    def _ranges(self, key: tuple[slice, ...]) -> tuple[slice, ...]:
        key = key if isinstance(key, tuple) else (key,)
        shape = self.shape
        if len(key) > len(shape) or not all(isinstance(part, slice) for part in key):
            raise TypeError(f"Slice {len(shape)} axes with one slice each, not {key!r}.")
        full = (*key, *[slice(None)] * (len(shape) - len(key)))
        ranges = []
        for part, length in zip(full, shape, strict=True):
            start, stop, step = part.indices(length)
            if step != 1:
                raise TypeError(f"Only slices of step 1 are read, not {key!r}.")
            ranges.append(slice(start, max(start, stop)))
        return tuple(ranges)

    def _block(self, channels: slice, space: tuple[slice, ...]) -> NDArray[Any]:
        """``(c * s, z, y, x)`` of a run of stored channels with all their samples."""
        wanted = dict(zip("ZYX", space, strict=True))
        wanted |= {"C": channels, "S": slice(0, self._length("S"))}
        wanted |= {"T": slice(self.frame, self.frame + 1), NONE: slice(0, 1)}
        if any(part.stop == part.start for part in wanted.values()):
            count = (channels.stop - channels.start) * self._length("S")
            return np.empty((count, *(s.stop - s.start for s in space)), self.dtype)
        block = self.pixels.read(tuple(wanted[axis] for axis in self.axes))
        present = [at for axis in "CSZYX" if (at := self.axes.find(axis)) >= 0]
        others = [at for at in range(len(self.axes)) if at not in present]
        block = block.transpose(others + present)
        block = block.reshape(-1, *(s.stop - s.start for s in space))
        return np.ascontiguousarray(block, dtype=self.dtype)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    groups = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return [(run[0], run[-1]) for run in runs]


def samples_of(
    name: str,
    image: Stored,
    labels: Stored | None,
    options: ReaderOptions,
    path: Path,
    *,
    source: str = "",
) -> list[Sample]:
    """The sample of a still image, or one for each frame of a movie.

    Args:
        name: of the sample; frames are called ``name#0`` and so on.
        image: the stored image.
        labels: its stored labels, or None.
        options: the axes and channels that the user states.
        path: the file or container of the image.
        source: what splits keep together; frames of a movie always are.

    Raises:
        DataError: axes or channels do not fit the file, or labels are no label image.
    """
    _check(image)
    axes = given_axes(image, options.axes) if options.axes else known_axes(image)
    chosen, names = _channels(image, axes, options.channels)
    dropped = "alpha dropped" if image.alpha else ""
    view = View(image.pixels, axes, chosen, dropped=dropped)
    truth = None
    if labels is not None:
        truth = _label_view(labels, image, axes, bool(options.axes))
        for axis in "TZYX":
            ours, theirs = view._length(axis), truth._length(axis)
            if ours != theirs:
                raise DataError(
                    f"{labels.where} and {image.where} differ in shape: the labels are "
                    f"{_size(truth)}, the image is {_size(view)}.",
                    hint="Each image needs labels of its own size; --axes states the axes if they "
                    "were not understood.",
                )
    spacing: Spacing = (
        image.spacing.get("Z", 1.0),
        image.spacing.get("Y", 1.0),
        image.spacing.get("X", 1.0),
    )
    still = Sample(
        name=name,
        image=view,
        labels=truth,
        spacing=spacing,
        channels=names,
        source=source,
        path=path,
    )
    frames = view._length("T")
    if frames == 1:
        return [still]
    return [
        replace(
            still,
            name=f"{name}#{frame}",
            image=replace(view, frame=frame),
            labels=replace(truth, frame=frame) if truth is not None else None,
            source=source or name,
            frame=frame,
        )
        for frame in range(frames)
    ]


def _check(stored: Stored) -> None:
    if 0 in stored.pixels.shape:
        raise DataError(f"{stored.where}: has no pixels: its shape is {stored.pixels.shape}.")
    if stored.pixels.dtype.kind not in "buif":
        raise DataError(f"{stored.where}: cannot use pixels of type {stored.pixels.dtype}.")


def _size(view: View) -> str:
    kept = [axis for axis in "TZYX" if view._length(axis) > 1 or axis in "YX"]
    return f"{' x '.join(str(view._length(axis)) for axis in kept)} ({''.join(kept)})"


def _label_view(labels: Stored, image: Stored, axes: str, stated: bool) -> View:
    """Labels with the axes of their own file, else with those of the image without channels."""
    _check(labels)
    shape = labels.pixels.shape
    plain = "".join(axis for axis in axes if axis not in "CS" and axis != NONE)
    bare = sum(n != 1 for n in shape)
    if stated and len(shape) == len(axes):
        own = axes
    elif stated and len(plain) in (len(shape), bare):
        own = given_axes(labels, plain)
    else:
        try:
            own = known_axes(labels)
        except DataError:
            if len(shape) == len(axes):
                own = axes
            elif len(plain) in (len(shape), bare):
                own = given_axes(labels, plain)
            else:
                raise
    view = View(labels.pixels, own, None)
    if view._length("S") > 1 or (labels.colours and view._length("C") > 1):
        raise DataError(
            f"{labels.where}: holds colours, not labels.",
            hint="Save labels as one integer a pixel: 0 for background, 1, 2, 3, ... for objects.",
        )
    if view._length("C") > 1:
        raise DataError(
            f"{labels.where}: has {view._length('C')} channels; labels have one.",
            hint="Keep the channel with the objects to learn.",
        )
    if labels.pixels.dtype.kind == "f":
        raise DataError(
            f"{labels.where}: labels are {labels.pixels.dtype}, not integers.",
            hint="If the values are whole numbers, save them as uint16 or uint32.",
        )
    return view


def _channels(
    stored: Stored, axes: str, selection: str | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which of the stored channels times samples to use, and what they are called."""
    lengths = dict(zip(axes, stored.pixels.shape, strict=True))
    samples = lengths.get("S", 1)
    count = lengths.get("C", 1) * samples
    usable = [
        i for i in range(count) if not (stored.alpha and samples > 1 and i % samples == samples - 1)
    ]
    known = list(stored.channels)
    if len(known) != len(usable):
        colours = "S" in axes and stored.colours and len(usable) == len(COLOURS)
        known = [Channel(name) for name in COLOURS] if colours else []
    if selection is None:
        names = tuple(channel.name or channel.wavelength for channel in known)
        return tuple(usable), names if all(names) else ()
    picked = [_pick(stored, part.strip(), known, len(usable)) for part in selection.split(",")]
    names = tuple(known[i].name or known[i].wavelength for i in picked) if known else ()
    return tuple(usable[i] for i in picked), names if all(names) else ()


def _pick(stored: Stored, wanted: str, known: list[Channel], count: int) -> int:
    for names in ([c.name for c in known], [c.wavelength for c in known]):
        if names.count(wanted) > 1:
            raise DataError(
                f"{stored.where}: several channels are called {wanted!r}.",
                hint=f"Pick by index: --channels 0 to {count - 1}.",
            )
        if wanted in names:
            return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < count:
        return int(wanted)
    every = [name for channel in known for name in (channel.name, channel.wavelength) if name]
    listed = ", ".join(dict.fromkeys(every)) or "they have no names"
    raise DataError(
        f"{stored.where}: has no channel {wanted!r}; it has {count}: {listed}.",
        hint=did_you_mean(wanted, every, f"By index: 0 to {count - 1}."),
    )

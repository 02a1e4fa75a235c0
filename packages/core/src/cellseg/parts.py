"""Parts of images: what lies between two planes across an axis, read when it is sliced.

A part is named after its image: ``volume[z:0-79]`` has the first 80 planes of ``volume``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cellseg.data import Dataset, LazyArray, Sample
from cellseg.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AxisChoice: TypeAlias = Literal["auto", "z", "y", "x"]

_AXES = "zyx"
_NAME = re.compile(r"(?P<whole>.+)\[(?P<axis>[zyx]):(?P<first>\d+)-(?P<last>\d+)\]", re.DOTALL)
_PASSED_ON = frozenset({"where", "chunks", "axes", "dropped"})


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of a lazy array ``(…, z, y, x)`` from ``start`` to below ``stop`` along one axis.

    Lazy, and picklable if the array is. ``chunks`` and what readers tell about their arrays are
    those of the whole.
    """

    whole: LazyArray
    axis: int
    """0 for z, 1 for y, 2 for x."""
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        lengths = list(self.whole.shape)
        lengths[self.axis - 3] = self.stop - self.start
        return tuple(lengths)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.whole.dtype

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        """The block under ``key``, one slice (step 1) for each axis, counted within the part;
        fewer mean all of the rest."""
        count = len(self.whole.shape)
        place = count - 3 + self.axis
        key = key if isinstance(key, tuple) else (key,)
        key = (*key, *[slice(None)] * (count - len(key)))
        first, last, step = key[place].indices(self.stop - self.start)
        if step != 1:
            raise TypeError(f"Only slices of step 1 are read, not {key!r}.")
        moved = slice(self.start + first, self.start + max(first, last))
        return self.whole[(*key[:place], moved, *key[place + 1 :])]

    def __getattr__(self, name: str) -> Any:
        if name in _PASSED_ON:
            return getattr(self.whole, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")


@dataclass(frozen=True, slots=True)
class Place:
    """What of an image is meant: all of it, or a part."""

    sample: Sample
    """The whole."""
    axis: int = 0
    start: int = 0
    stop: int | None = None
    """None for all of it."""

    @property
    def name(self) -> str:
        """As splits have it."""
        if self.stop is None:
            return self.sample.name
        return f"{self.sample.name}[{_AXES[self.axis]}:{self.start}-{self.stop - 1}]"

    @property
    def region(self) -> tuple[int, int, int | None]:
        """Axis, start and stop."""
        return self.axis, self.start, self.stop

    def cut(self, split: str) -> Sample:
        """The sample, or the part of it as a sample of ``split``. Its ``group`` is the whole's."""
        if self.stop is None:
            return self.sample
        sample, region = self.sample, (self.axis, self.start, self.stop)
        return replace(
            sample,
            name=self.name,
            image=Crop(sample.image, *region),
            labels=None if sample.labels is None else Crop(sample.labels, *region),
            source=sample.group,
            split=split,
        )


def whole_of(name: str) -> str:
    """The name of the image that a part is of; of a whole image, its own."""
    found = _NAME.fullmatch(name)
    return name if found is None else found["whole"]


def place(name: str, samples: Mapping[str, Sample]) -> Place | None:
    """Where ``name`` is; None where none of the samples, by name, is meant.

    Raises:
        DataError: it is a part that reaches beyond its image, or that is empty.
    """
    if name in samples:
        return Place(samples[name])
    found = _NAME.fullmatch(name)
    if found is None or found["whole"] not in samples:
        return None
    sample, axis = samples[found["whole"]], _AXES.index(found["axis"])
    first, last = int(found["first"]), int(found["last"])
    length = sample.image.shape[axis - 3]
    if not first <= last < length:
        raise DataError(
            f"{name}: there is no such part: {sample.name} has the voxels 0 to {length - 1} along "
            f"{_AXES[axis]}."
        )
    return Place(sample, axis, first, last + 1)


def meet(
    one: tuple[int, int, int | None],
    other: tuple[int, int, int | None],
) -> bool:
    """Whether two regions of an image have a voxel in common."""
    (axis, start, stop), (other_axis, other_start, other_stop) = one, other
    if stop is None or other_stop is None or axis != other_axis:
        return True
    return start < other_stop and other_start < stop


def blocks(
    samples: Dataset, axis: AxisChoice, fraction: float, gap: int
) -> Iterator[tuple[Place, Place]]:
    """Of each image the part that trains and the part that validates, with a gap between them.

    The last ``fraction`` of the axis validates (rounded, at least one voxel). All frames of a
    movie, which have one shape, are cut at one place.

    Args:
        samples: images, volumes or frames.
        axis: across which they are cut; ``auto`` takes the longest of each, the first of z, y, x
            among equals.
        fraction: above 0 and below 1.
        gap: voxels along the axis that are in neither part.

    Raises:
        DataError: an image is too short, or images that are no frames of a movie are of one source.
    """
    _refuse_fields(samples)
    for sample in samples:
        shape = sample.image.shape[-3:]
        along = shape.index(max(shape)) if axis == "auto" else _AXES.index(axis)
        length = shape[along]
        held = max(round(fraction * length), 1)
        kept = length - held - gap
        if kept < 1:
            raise DataError(
                f"{sample.name} is too short for --split blocks: of its {length} voxels along "
                f"{_AXES[along]}, {held} validate and {gap} lie between, so {max(kept, 0)} are "
                "left to train on.",
                hint="Lower --val-gap or --val-fraction, choose another --split-axis, or keep "
                "whole images for validation with --split train-val.",
            )
        yield Place(sample, along, 0, kept), Place(sample, along, length - held, length)


def _refuse_fields(samples: Dataset) -> None:
    """Fields of a well may show the same place: parts of them cannot be kept apart."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    for group, members in groups.items():
        shapes = {sample.image.shape[-3:] for sample in members}
        frames = all(sample.frame is not None for sample in members)
        if len(members) > 1 and not (frames and len(shapes) == 1):
            raise DataError(
                f"{group} has {len(members)} images ({members[0].name}, {members[1].name}, ...) "
                "that are not frames of one movie and may show the same place: --split blocks "
                "cannot keep them apart.",
                hint="Keep whole sources for validation with --split train-val.",
            )

"""What flows between core and backends: plain, frozen, numpy-shaped.

Axis order never varies. Images are ``(c, z, y, x)``, labels are ``(z, y, x)`` with 0 for
background, and a 2D image has ``z == 1``. A movie is a sequence of frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from cellseg.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellseg.tracks import Lineage

Image: TypeAlias = "NDArray[Any]"
"""``(c, z, y, x)``; float32 wherever core has normalised it."""
Labels: TypeAlias = "NDArray[np.integer[Any]]"
"""``(z, y, x)``, 0 is background; uint32 in everything core writes."""
ZYX: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]
"""Voxel size in micrometres, ``(z, y, x)``."""


class LazyArray(Protocol):
    """Anything numpy-like that reads only what is sliced: numpy, zarr, our readers' arrays.

    It is sliced with one ``slice`` (step 1, within the shape) per axis.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        """The block under ``key``, as a numpy array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image (or one frame of a movie) and, for training, its labels. Arrays stay on disk."""

    name: str
    """Unique in its data set; relative to its root: ``t000``, ``B/03/0``, ``movie#12``."""
    image: LazyArray
    """``(c, z, y, x)``."""
    labels: LazyArray | None = None
    """``(z, y, x)``, integers, or None where there is no ground truth."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Voxel size in micrometres, ``(z, y, x)``."""
    channels: tuple[str, ...] = ()
    """Names of the channels, as many as ``image.shape[0]``; empty where the file gives none."""
    source: str = ""
    """What must never be split between training and validation: the image, well field or movie
    that this sample comes from. Empty means: the sample itself."""
    frame: int | None = None
    """Index in its movie, or None for a still image."""
    path: Path | None = None
    """The file or container that the image was read from."""
    split: str | None = None
    """``train`` or ``val`` where the container itself says so."""
    classes: tuple[str, ...] = ()
    """Names of the object classes by number, ``background`` first. With names, the ids in
    ``labels`` carry the class of each object (see ``cellseg.classes``); without, all objects are
    of one class and the ids are plain."""
    weight: float = 1.0
    """How often training patches come from this sample, relative to the others."""
    tracks: Lineage | None = None
    """Where the ids in ``labels`` are those of tracks: all tracks of the movie, the same in each of
    its frames. Their frames are counted as in ``frame``."""

    @property
    def group(self) -> str:
        """What splits keep together."""
        return self.source or self.name


Dataset: TypeAlias = Sequence[Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What shows one object: points on it and beside it, a box around it, or both.

    Coordinates are continuous, in voxels ``(z, y, x)``: voxel ``i`` reaches from ``i`` to
    ``i + 1``, so its middle is at ``i + 0.5``.
    """

    points: tuple[tuple[float, float, float], ...] = ()
    positive: tuple[bool, ...] = ()
    """For each point whether it lies on the object, or beside it."""
    box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    """First and last corner."""
    name: str = ""
    """What the user's file calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One object that shows what to look for, or what to leave alone. It lies in one plane."""

    mask: NDArray[np.bool_] | None = None
    """``(y, x)``, cut to its box; None where only a point on the object is known."""
    corner: ZYX = (0, 0, 0)
    """Where the first pixel of the mask lies in the image, or which pixel the point lies in."""
    point: tuple[float, float] | None = None
    """``(y, x)``, continuous, in pixels of the image, where there is no mask."""
    kind: int = 1
    """Its class, an index into the names of the classes, ``background`` being 0."""
    positive: bool = True
    """Whether such objects are looked for, or to be left alone."""
    where: str = ""
    """How messages call it: the file and the feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleImage:
    """An image, or a frame of a movie, in which examples lie. Other objects in it are not shown."""

    sample: Sample
    """Without labels; its image normalised by core."""
    examples: tuple[Example, ...]
    """At least one; sorted by plane, y and x, whatever their order in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A piece of an image as a predictor sees it, halo included, normalised by core."""

    image: Image
    """``(c, z, y, x)`` float32."""
    spacing: Spacing = (1.0, 1.0, 1.0)
    """Voxel size in micrometres, ``(z, y, x)``."""
    prompts: tuple[Prompt, ...] | None = None
    """The objects to segment, in coordinates of the tile; None where the user gives no prompts."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What a predictor finds in one tile."""

    labels: Labels
    """``(z, y, x)`` of the tile, integers, 0 is background."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """Confidence of each label, 0 to 1; empty where the model has none."""
    classes: Mapping[int, int] = field(default_factory=dict)
    """Class of each label, an index into the bundle's ``classes``; empty for one class."""
    probabilities: NDArray[np.float32] | None = None
    """``(k, z, y, x)`` float32, 0 to 1: the probability of each of the bundle's ``classes`` at each
    voxel of the tile. Only where ``PredictJob.probabilities`` asks for them."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a tracker finds in one frame."""

    labels: Labels
    """``(z, y, x)`` of the tile, integers, 0 is background. An object has the same id in all
    frames, also after frames that did not show it; no id is ever used for another one."""
    parents: Mapping[int, int] = field(default_factory=dict)
    """Of objects that come from a division and are in this frame for the first time: the id of
    their mother, which ends in an earlier frame."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """Confidence of each label, 0 to 1; empty where the model has none."""
    classes: Mapping[int, int] = field(default_factory=dict)
    """Class of each label, an index into the bundle's ``classes``; empty for one class."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a model sees in a tile: a vector for each cell of a grid over it."""

    values: NDArray[np.float32]
    """``(d, z, y, x)`` float32; the grid covers the tile, and may reach beyond its end."""
    step: tuple[float, float, float]
    """Voxels of the tile in a cell, ``(z, y, x)``: cell ``i`` covers voxels from ``i * step`` to
    ``(i + 1) * step``. Not necessarily whole numbers, and other ones for each axis."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How to cut an image: label ``core`` voxels, read ``halo`` more on each side, ``(z, y, x)``.

    Raises:
        ConfigError: a core below 1 or a halo below 0.
    """

    core: ZYX = (1, 1024, 1024)
    halo: ZYX = (0, 64, 64)

    def __post_init__(self) -> None:
        if min(self.core) < 1 or min(self.halo) < 0:
            raise ConfigError(f"Tiles need a core of at least 1 and no negative halo, not {self}.")

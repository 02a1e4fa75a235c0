"""What is to be segmented: images and movies, their tiles, and where their labels go."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.data import Dataset, Sample, Spacing, Tiling
from cellseg.engine.plan import Plan
from cellseg.engine.refine import Refinement
from cellseg.errors import DataError
from cellseg.normalise import Normaliser
from cellseg.options import Options
from cellseg.outputs.formats import Output, tracks_beside
from cellseg.prompting import Prompts
from cellseg.readers import open_readable
from cellseg.specs import DatasetSpec, PredictJob, PredictorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TileRef = tuple[int, int]
"""An image and one of its tiles."""
MOST_TILES = 50_000_000
"""Of one image or movie: a header that asks for more is wrong."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image, or a movie with all its frames; one label image comes out of it.

    Tiles are numbered frame by frame.
    """

    index: int
    name: str
    frames: tuple[Sample, ...]
    movie: bool
    plan: Plan
    """Of each frame."""
    outputs: tuple[Output, ...] = ()
    planes: tuple[int, ...] | None = None
    """Those that are segmented, ascending, where each is by itself; None for all. The others stay
    background."""
    times: tuple[int, ...] | None = None
    """The same of the places in ``frames``."""
    tracked: bool = False
    """Whether its objects are followed from frame to frame; only movies are."""
    page: Path | None = None
    """Where the report of its tracks goes."""

    @property
    def tiles(self) -> int:
        """Number of tiles in all frames, also of those that are not segmented."""
        return len(self.plan) * len(self.frames)

    @property
    def chosen(self) -> Sequence[int]:
        """The numbers of the tiles that are segmented, ascending."""
        if self.planes is None and self.times is None:
            return range(self.tiles)
        size, places = len(self.plan), self.places
        return [frame * size + tile for frame in self.steps for tile in places]

    @property
    def steps(self) -> Sequence[int]:
        """The places in ``frames`` that are segmented, ascending."""
        return range(len(self.frames)) if self.times is None else self.times

    @property
    def places(self) -> list[int]:
        """The numbers of the tiles of a frame that are segmented, ascending."""
        if self.planes is None:
            return list(range(len(self.plan)))
        plane = self.plan.grid[1] * self.plan.grid[2]
        return [z * plane + tile for z in self.planes for tile in range(plane)]

    @property
    def files(self) -> list[Path]:
        """All that is written of it."""
        found = [output.path for output in self.outputs]
        if self.tracked:
            tables = [tracks_beside(o) for o in self.outputs if not o.probabilities]
            found += [table for table in tables if table is not None]
        if self.page is not None:
            found.append(self.page)
        return list(dict.fromkeys(found))

    def at(self, place: int) -> list[int]:
        """The numbers of the tiles at one place in all frames that are segmented, ascending."""
        return [frame * len(self.plan) + place for frame in self.steps]

    @property
    def single(self) -> bool:
        """Whether it is one tile, which is written as soon as it is segmented."""
        return self.tiles == 1 and not self.tracked

    @property
    def depth(self) -> int:
        """How many planes are segmented."""
        return self.plan.shape[0] if self.planes is None else len(self.planes)

    @property
    def spacing(self) -> Spacing:
        """Voxel size in micrometres."""
        return self.frames[0].spacing

    def locate(self, tile: int) -> tuple[int, int]:
        """The frame of a tile, and its number there."""
        return divmod(tile, len(self.plan))

    def described(self, tile: int) -> str:
        """How messages call a tile."""
        if self.tiles == 1:
            return self.name
        frame, inner = self.locate(tile)
        where = ", ".join(
            f"{axis} {a}:{b}"
            for axis, a, b in zip(
                "zyx",
                self.plan.core_box(inner).start,
                self.plan.core_box(inner).stop,
                strict=True,
            )
        )
        return f"{self.frames[frame].name}[{where}]"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Pixels that were there a moment ago, and can no longer be read."""

    shape: tuple[int, ...]
    """``(c, z, y, x)``."""
    dtype: np.dtype[Any]
    problem: str

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        """Never gives pixels.

        Raises:
            DataError: always; it says why.
        """
        raise DataError(self.problem)


def sendable(items: Sequence[Item]) -> list[Item]:
    """Items without what reads their files, which cannot be sent to another process."""
    return [
        replace(item, frames=tuple(_closed(frame, _GONE) for frame in item.frames))
        for item in items
    ]


def reopened(recipe: Recipe, sent: Sequence[Item]) -> list[Item]:
    """Items that another process sent by ``sendable``, with their files opened again here.

    Reading one that can be read no longer is a DataError; the others are as they were.

    Raises:
        DataError: no image at all can be read.
    """
    samples, problems = open_readable(recipe.reader, recipe.images, recipe.reader_options)
    made = make_items(samples, recipe.tiling, recipe.volumetric, problems)
    found = {item.name: item for item in made}
    items = []
    for item in sent:
        now = found.get(item.name)
        if now is not None and (now.plan, len(now.frames)) == (item.plan, len(item.frames)):
            items.append(replace(item, frames=now.frames))
            continue
        frames = tuple(
            _closed(f, problems.get(item.name, f"{f.name}: {_GONE}")) for f in item.frames
        )
        items.append(replace(item, frames=frames))
    return items


_GONE = "cannot be read any more, or has another shape than before."


def _closed(frame: Sample, problem: str) -> Sample:
    image = Unreadable(tuple(frame.image.shape), frame.image.dtype, problem)
    return replace(frame, image=image, labels=None, tracks=None)


def make_items(
    samples: Dataset,
    tiling: Tiling,
    volumetric: bool,
    problems: MutableMapping[str, str] | None = None,
) -> list[Item]:
    """Group the frames of each movie, and cut everything into tiles.

    Args:
        samples: all images.
        tiling: of each.
        volumetric: whether tiles may be cut along z.
        problems: gets what cannot be cut, which is left out then.

    Raises:
        DataError: frames of one movie differ in shape, or two images share a name.
    """
    groups: dict[tuple[bool, str], list[Sample]] = {}
    for sample in samples:
        key = (sample.frame is not None, item_name(sample))
        groups.setdefault(key, []).append(sample)
    items: list[Item] = []
    names: set[str] = set()
    for (movie, name), group in groups.items():
        frames = sorted(group, key=lambda s: s.frame or 0) if movie else group
        if name in names or (not movie and len(frames) > 1):
            raise DataError(f"Two images are called {name!r}.")
        names.add(name)
        try:
            plan = _plan(name, frames, tiling, volumetric)
        except DataError as problem:
            if problems is None:
                raise
            problems[name] = str(problem)
            continue
        items.append(Item(len(items), name, tuple(frames), movie, plan))
    return items


def _plan(name: str, frames: Sequence[Sample], tiling: Tiling, volumetric: bool) -> Plan:
    """The tiles of each frame of a movie, or of an image.

    Raises:
        DataError: frames differ in shape, or there would be far too many tiles.
    """
    first = frames[0]
    other = next((f for f in frames if f.image.shape != first.image.shape), None)
    if other is not None:
        raise DataError(
            f"{other.name}: the frame's shape {other.image.shape} differs from "
            f"{first.image.shape} of {first.name}."
        )
    _, z, y, x = first.image.shape
    plan = Plan.cut((z, y, x), tiling, volumetric)
    count = len(plan) * len(frames)
    if count > MOST_TILES:
        raise DataError(
            f"{name}: its shape {first.image.shape} asks for {count} tiles; at most {MOST_TILES} "
            "are segmented.",
            hint="Is its header right? If so, use larger tiles, or divide it.",
        )
    return plan


def item_name(sample: Sample) -> str:
    """What the image of a sample is called, or the movie that it is a frame of."""
    return sample.name if sample.frame is None else _movie_name(sample)


def _movie_name(frame: Sample) -> str:
    """Frames are called ``movie#12``; where they are not, their source says what they are of."""
    return frame.name.rpartition("#")[0] or frame.group


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to segment: everything a process needs to know, and can be sent."""

    predictor: PredictorSpec[Options]
    job: PredictJob[Options]
    reader: DatasetSpec[Options]
    images: Path
    reader_options: Options
    normaliser: Normaliser
    tiling: Tiling
    volumetric: bool
    stitch_overlap: float
    classes: tuple[str, ...]
    work: Path
    refinement: Refinement = field(default_factory=Refinement)
    prompts: Prompts | None = None
    """The objects to segment; None where the predictor finds them by itself."""

    def linked(self, item: Item) -> bool:
        """Whether an image is a volume whose planes are segmented first, and linked then."""
        return self.refinement.link is not None and not self.volumetric and item.depth > 1


def batches(items: Sequence[Item], tiles: Sequence[TileRef], size: int) -> Iterator[list[TileRef]]:
    """Consecutive tiles of one shape, at most ``size`` at once."""
    batch: list[TileRef] = []
    kind: object = None
    for item, tile in tiles:
        plan = items[item].plan
        channels = items[item].frames[0].image.shape[0]
        shape = (channels, items[item].spacing, plan.read_box(tile % len(plan)).shape)
        if batch and (shape != kind or len(batch) >= size):
            yield batch
            batch = []
        kind = shape
        batch.append((item, tile))
    if batch:
        yield batch

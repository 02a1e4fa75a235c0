"""What ``cellseg predict`` did, or in a dry run would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from cellseg.engine.failures import named
from cellseg.engine.items import Item, Recipe
from cellseg.engine.refine import Refinement
from cellseg.workflows.predict_selection import part_of
from cellseg.workflows.predict_settings import PredictSettings

_BASE = 300 << 20
"""Python and its libraries, without the model."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image as a dry run shows it."""

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]
    tiles: int
    tile_shape: tuple[int, ...]
    """Of the largest tile with its halo, ``(c, z, y, x)``."""
    outputs: tuple[Path, ...]
    linked: bool = False
    """Whether objects of its planes are linked."""
    tracked: bool = False
    """Whether its objects are followed from frame to frame."""
    part: str = ""
    """Which planes and frames are segmented, such as "planes 2-4 of 10"; empty for all."""

    @classmethod
    def of(cls, item: Item, linked: bool = False) -> PlannedImage:
        """Look at an image without reading its pixels."""
        first = item.frames[0]
        shape = tuple(first.image.shape)
        return cls(
            name=item.name,
            axes="tczyx" if item.movie else "czyx",
            shape=(len(item.frames), *shape) if item.movie else shape,
            dtype=str(first.image.dtype),
            channels=first.channels,
            tiles=len(item.chosen),
            tile_shape=(shape[0], *_largest(item)),
            outputs=tuple(item.files),
            linked=linked,
            tracked=item.tracked,
            part=part_of(item),
        )

    def line(self) -> str:
        """One line that says it all."""
        shape = " x ".join(str(n) for n in self.shape)
        tile = " x ".join(str(n) for n in self.tile_shape[1:])
        channels = f" ({', '.join(self.channels)})" if self.channels else ""
        linked = ", planes linked" if self.linked else ""
        linked += ", tracked" if self.tracked else ""
        part = f", only {self.part}" if self.part else ""
        targets = ", ".join(str(path) for path in self.outputs)
        return (
            f"{self.name}: {self.axes} {shape} {self.dtype}{channels}{part}, "
            f"{self.tiles} tile(s) of up to {tile}{linked} -> {targets}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSummary:
    """The result of a prediction."""

    images: int
    """Images (movies count once) that are written."""
    objects: int
    """Objects in all of them."""
    outputs: tuple[Path, ...]
    tracks: int | None = None
    """Tracks in all movies that were tracked; None where none was."""
    divisions: int = 0
    """Those that divide."""
    seconds: float = 0.0
    complete: bool = True
    """False where other shares of the tiles are still to be done."""
    dry_run: bool = False
    planned: tuple[PlannedImage, ...] = ()
    """Only in a dry run."""
    memory: int = 0
    """Estimate in bytes, without the model; only in a dry run."""
    disk: int = 0
    """Bytes that the images written take at most, and while they are made; only in a dry run."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Images that would fail, and why, by name or path; only in a dry run."""

    def lines(self) -> list[str]:
        """For people."""
        if self.dry_run:
            lines = [image.line() for image in self.planned]
            if self.unreadable:
                count, listed = len(self.unreadable), named(self.unreadable)
                lines.append(f"{count} image(s) cannot be used, and would be left out: {listed}")
            tiles = sum(image.tiles for image in self.planned)
            lines.append(
                f"{self.images} image(s), {tiles} tile(s), about {self.memory / 2**20:.0f} MiB of "
                f"memory besides the model, at most {self.disk / 2**20:.0f} MiB of disk. "
                "Nothing was written."
            )
            return lines
        tracks = ""
        if self.tracks is not None:
            tracks = f", {self.tracks} tracks with {self.divisions} division(s)"
        lines = [f"{self.objects} objects in {self.images} image(s){tracks}, {self.seconds:.1f} s"]
        if not self.complete:
            lines.append("Other shares of the tiles are still to be done.")
        elif not self.objects:
            lines.append(
                "Nothing was found. If there are cells, the thresholds may not suit them: see"
                " cellseg calibrate."
            )
        return lines

    def to_dict(self) -> dict[str, object]:
        """For programs."""
        values: dict[str, object] = {
            "images": self.images,
            "objects": self.objects,
            "outputs": [str(path) for path in self.outputs],
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "dry_run": self.dry_run,
        }
        if self.tracks is not None:
            values |= {"tracks": self.tracks, "divisions": self.divisions}
        if self.dry_run:
            values["unreadable"] = dict(self.unreadable)
            values["memory_bytes"] = self.memory
            values["disk_bytes"] = self.disk
            values["planned"] = [
                {
                    "name": image.name,
                    "axes": image.axes,
                    "shape": list(image.shape),
                    "dtype": image.dtype,
                    "channels": list(image.channels),
                    "tiles": image.tiles,
                    "tile_shape": list(image.tile_shape),
                    "linked": image.linked,
                    "tracked": image.tracked,
                    "part": image.part,
                    "outputs": [str(path) for path in image.outputs],
                }
                for image in self.planned
            ]
        return values


def memory_estimate(
    items: Sequence[Item],
    batch_size: int,
    workers: int,
    classes: int = 0,
    refinement: Refinement | None = None,
) -> int:
    """Bytes that predicting takes at its peak, without the model and what it computes.

    A tile is held as it is on disk, as float32, and as labels of the widest type; writing holds
    a few tiles of labels. Probabilities of ``classes`` are held as float32 and as float16, once as
    they are and once compressed. Linking holds a tile of each of ``2 + gap`` planes, and where in
    two of them ids change; a plane of a tile is held a few times as its holes are filled.
    """
    link = refinement.link if refinement else None
    most = 0
    for item in items:
        voxels = 1
        for length in _largest(item):
            voxels *= length
        image = item.frames[0].image
        tile = voxels * (image.shape[0] * (image.dtype.itemsize + 8) + 16)
        tile += voxels * classes * (4 + 2 + 2)
        if refinement and refinement.fill_holes:
            tile += 8 * voxels // _largest(item)[0]
        depth = item.plan.shape[0]
        linking = 4 * min(2 + link.gap, depth) + 16 if link and depth > 1 else 0
        writing = voxels * max(16, linking)
        most = max(most, tile * batch_size + writing + (64 << 20))
    return workers * (_BASE + most)


def disk_estimate(items: Sequence[Item], classes: int = 0) -> int:
    """Bytes that labels and probabilities take before they are compressed.

    They are written as 4 bytes a voxel and class, for OME-Zarr with a third more for its smaller
    levels. Of an image of several tiles, what is done is kept until all of it is: labels as 4
    bytes and probabilities as 2; where tiles are tracked, labels of all that they see, once more.
    Tables, polygons, tracks and the states of trackers are not counted.
    """
    most = 0
    for item in items:
        z, y, x = item.plan.shape
        voxels = z * y * x * len(item.frames)
        if not item.single:
            seen = 0
            if item.tracked and len(item.plan) > 1:
                sizes = (item.plan.read_box(i).shape for i in range(len(item.plan)))
                seen = 4 * sum(map(prod, sizes)) * len(item.frames)
            kept = voxels * (4 + 2 * classes) + seen
            most += kept * len(item.chosen) // item.tiles
        for output in item.outputs:
            sizes_of = {"tiff": 1.0, "hdf5": 1.0, "ome-zarr": 4 / 3, "ctc": 0.5}
            images = sizes_of.get(output.format, 0.0)
            both = output.format == "hdf5" or (
                output.format == "ome-zarr" and output.container is None
            )
            channels = classes if output.probabilities else 1 + classes * both
            most += int(voxels * 4 * images * channels)
    return most


def _largest(item: Item) -> tuple[int, int, int]:
    plan = item.plan
    z, y, x = (min(n, c + 2 * h) for n, c, h in zip(plan.shape, plan.core, plan.halo, strict=True))
    return (z, y, x)


def dry_run(items: Sequence[Item], recipe: Recipe, settings: PredictSettings) -> PredictSummary:
    """What a prediction would do, and need."""
    planned = tuple(PlannedImage.of(item, recipe.linked(item)) for item in items)
    classes = max(len(recipe.classes), 2) if settings.output_probs else 0
    return PredictSummary(
        images=len(items),
        objects=0,
        outputs=tuple(path for item in items for path in item.files),
        planned=planned,
        memory=memory_estimate(
            items, settings.batch_size, settings.workers, classes, recipe.refinement
        ),
        disk=disk_estimate(items, classes),
        dry_run=True,
    )

"""One process's share of the work: read, normalise, segment, record; write small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import TypeAdapter

from cellseg.data import Prompt, Segmentation, Tile, Tracked
from cellseg.engine.assemble import assembled, refined, result_of
from cellseg.engine.follow import Follower
from cellseg.engine.holes import fill_holes
from cellseg.engine.items import Item, Recipe, TileRef
from cellseg.engine.plan import Box
from cellseg.engine.records import save, write_quickly
from cellseg.engine.segment import Segmenter
from cellseg.engine.state import WorkDir
from cellseg.engine.stitch import Stitched
from cellseg.engine.tile import TileLabels, tile_labels, tracked_labels
from cellseg.errors import CellsegError, DataError, PluginError
from cellseg.memory import out_of_memory
from cellseg.normalise import NormalisedImage, Statistics
from cellseg.outputs.result import Result
from cellseg.outputs.write import write

_STATISTICS = TypeAdapter(Statistics)
_WRITERS = 4
"""Outputs of one small image that are written at once."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A tile that could not be done."""

    tile: TileRef
    reason: str
    data: bool
    """Whether the image is at fault, and not the model."""
    final: bool = False
    """Whether it has been tried often enough."""


@dataclass(slots=True)
class Loaded:
    """Tiles ready to be segmented."""

    tiles: list[tuple[TileRef, Tile]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Of tiles that cannot be read."""


@dataclass(slots=True)
class Outcome:
    """What became of a batch of tiles."""

    done: list[TileRef] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    objects: dict[int, int] = field(default_factory=dict)
    """Number of objects of each image that is written now."""


def _nothing() -> None:
    pass


def _ignore(item: Item, result: Result) -> None:
    pass


class Worker:
    """Segments batches of tiles; loads the predictor when the first one comes.

    Args:
        recipe: how to segment.
        items: all images, in the order that every process sees.
        pause: called between the blocks of an output; raises to stop.
        written: gets each image, and what was written of it, before its tiles are forgotten.
    """

    def __init__(
        self,
        recipe: Recipe,
        items: Sequence[Item],
        pause: Callable[[], None] = _nothing,
        written: Callable[[Item, Result], None] = _ignore,
    ) -> None:
        self._recipe = recipe
        self._items = items
        self._pause = pause
        self._work = WorkDir(recipe.work)
        self._written = written
        self._segmenter: Segmenter | None = None
        self._follower: Follower | None = None
        self._writers: ThreadPoolExecutor | None = None
        self._known: tuple[tuple[int, int], NormalisedImage] | None = None
        self._bad: tuple[TileRef, DataError] | None = None

    def load(self) -> None:
        """Load what these images need: the predictor, what follows objects, or both."""
        if any(item.tracked for item in self._items):
            self._loaded_follower()
        if not all(item.tracked for item in self._items):
            self._loaded_segmenter()

    def _loaded_follower(self) -> Follower:
        if self._follower is None:
            spec = self._recipe.predictor
            if spec.track is None:
                raise PluginError(f"The backend {spec.name!r} tracks nothing.")
            maker = spec.track(self._recipe.job)
            self._follower = Follower(maker, spec.name, self._items, self._work)
        return self._follower

    def _loaded_segmenter(self) -> Segmenter:
        if self._segmenter is None:
            recipe = self._recipe
            self._segmenter = Segmenter(
                recipe.predictor.load(recipe.job),
                recipe.predictor.name,
                recipe.tiling.halo,
                recipe.volumetric,
                recipe.stitch_overlap,
                probabilities=recipe.job.probabilities,
                classes=len(recipe.classes),
            )
        return self._segmenter

    def run(self, batch: Sequence[TileRef]) -> Outcome:
        """Read and segment tiles of one shape. What is done survives a kill.

        Tiles of a movie that is tracked are consecutive ones of a place in the grid; those after
        one that fails are not tried.

        Raises:
            CellsegError: going on is pointless: a broken predictor, a full disk.
        """
        if not self._items[batch[0][0]].tracked:
            return self.segment(self.read(batch))
        outcome = Outcome()
        for ref in batch:
            one = self.segment(self.read([ref]))
            outcome.done += one.done
            outcome.failures += one.failures
            if one.failures:
                break
        return outcome

    def halve(self, ref: TileRef) -> Outcome | None:
        """Segment a tile in halves, where the memory does not suffice for the whole; None if it is
        too small for that."""
        loaded = self.read([ref])
        outcome = Outcome(failures=loaded.failures)
        for _, tile in loaded.tiles:
            segmenter = self._loaded_segmenter()
            try:
                found = segmenter.halved(tile)
                if found is None:
                    return None
                self._keep(ref, found, outcome)
            except CellsegError:
                raise
            except Exception as error:  # recorded as a failure, never as zeros
                outcome.failures.append(Failure(ref, _said(error), False))
            outcome.notes += segmenter.notes
            segmenter.notes.clear()
        return outcome

    def read(self, batch: Sequence[TileRef]) -> Loaded:
        """Read and normalise tiles; may run in another thread while others are segmented."""
        loaded = Loaded()
        for ref in batch:
            tile = self._read(ref, loaded.failures)
            if tile is not None:
                loaded.tiles.append((ref, tile))
        return loaded

    def segment(self, loaded: Loaded) -> Outcome:
        """Segment tiles that are read, and record what was found."""
        outcome = Outcome(failures=loaded.failures)
        if not loaded.tiles:
            return outcome
        if self._items[loaded.tiles[0][0][0]].tracked:
            for ref, tile in loaded.tiles:
                self._follow(ref, tile, outcome)
            return outcome
        segmenter = self._loaded_segmenter()
        for ref, found in self._segment(segmenter, loaded.tiles, outcome):
            try:
                self._keep(ref, found, outcome)
            except MemoryError as error:  # the other images go on
                outcome.failures.append(Failure(ref, _said(error), False))
        outcome.notes += segmenter.notes
        segmenter.notes.clear()
        return outcome

    def finalise(self, item: Item) -> int:
        """Stitch the tiles of an image and write its outputs; gives the number of objects."""
        result = assembled(item, self._recipe, self._work, self._pause)
        for output in item.outputs:
            write(result, output)
        self._written(item, result)
        return self._finished(item, result)

    def _read(self, ref: TileRef, failures: list[Failure]) -> Tile | None:
        """A normalised tile; None, and a failure, if it cannot be read."""
        item = self._items[ref[0]]
        frame, inner = item.locate(ref[1])
        sample = item.frames[frame]
        box = item.plan.read_box(inner)
        normaliser = self._recipe.normaliser
        where = (slice(0, sample.image.shape[0]), *box.slices)
        try:
            if len(item.plan) == 1:
                block = np.asarray(sample.image[where])
                statistics = normaliser.statistics(block, sample.name)
                image = NormalisedImage(block, normaliser, _statistics=statistics)
            else:
                image = self._normalised(item, frame, ref[1])
            return Tile(
                image=image[where],
                spacing=sample.spacing,
                prompts=self._prompts(item, frame, box),
            )
        except DataError as error:
            failures.append(Failure(ref, str(error), True))
        except CellsegError:
            raise
        except MemoryError as error:
            failures.append(Failure(ref, _said(error), False))
        except Exception as error:  # a strange file must not stop the other images
            failures.append(Failure(ref, f"cannot be read: {_said(error)}", True))
        return None

    def _prompts(self, item: Item, frame: int, box: Box) -> tuple[Prompt, ...] | None:
        """Those in all that a tile reads; what two tiles answer is stitched."""
        if self._recipe.prompts is None:
            return None
        index = item.frames[frame].frame
        return self._recipe.prompts.within(item.name, index, box.start, box.stop)

    def _refuse_again(self, item: Item, frame: int, tile: int) -> None:
        """Raise what an earlier tile of the same frame met: a large image is measured once."""
        if self._bad is None:
            return
        (index, first), error = self._bad
        if index == item.index and item.locate(first)[0] == frame and first < tile:
            raise error

    def _normalised(self, item: Item, frame: int, tile: int) -> NormalisedImage:
        """A whole frame, lazily; the last one is kept, with what was found out about it."""
        if self._known is None or self._known[0] != (item.index, frame):
            self._refuse_again(item, frame, tile)
            try:
                statistics = self._statistics(item, frame)
            except DataError as error:
                self._bad = ((item.index, tile), error)
                raise
            normaliser, raw = self._recipe.normaliser, item.frames[frame].image
            image = NormalisedImage(raw, normaliser, _statistics=statistics)
            self._known = ((item.index, frame), image)
        return self._known[1]

    def _statistics(self, item: Item, frame: int) -> Statistics:
        """Of a whole frame; measured once, also by several processes and after a resume."""
        file = self._work.item(item.index) / f"frame{frame:06d}.json"
        statistics: Statistics | None = None
        if file.is_file():
            try:
                statistics = _STATISTICS.validate_json(file.read_bytes())
            except ValueError:  # cut short by a power cut; measured again
                statistics = None
        if statistics is None:
            sample = item.frames[frame]
            statistics = self._recipe.normaliser.statistics(sample.image, sample.name)
            write_quickly(file, _STATISTICS.dump_json(statistics))
            # What the next process reads, to the last digit.
            statistics = _STATISTICS.validate_json(_STATISTICS.dump_json(statistics))
        return statistics

    def _segment(
        self, segmenter: Segmenter, tiles: Sequence[tuple[TileRef, Tile]], outcome: Outcome
    ) -> list[tuple[TileRef, Segmentation]]:
        if not tiles:
            return []
        refs = [ref for ref, _ in tiles]
        try:
            return list(zip(refs, segmenter([tile for _, tile in tiles]), strict=True))
        except CellsegError:
            raise
        except Exception as error:  # recorded as a failure, never as zeros
            if len(tiles) == 1:
                outcome.failures.append(Failure(refs[0], _said(error), False))
                return []
        # One of them is to blame; the others are fine by themselves.
        return [pair for one in tiles for pair in self._segment(segmenter, [one], outcome)]

    def _follow(self, ref: TileRef, tile: Tile, outcome: Outcome) -> None:
        """Track one frame of a place in the grid, and record what was found."""
        follower = self._loaded_follower()
        try:
            found = follower.step(ref, tile)
        except CellsegError:
            raise
        except Exception as error:  # recorded as a failure, never as zeros
            outcome.failures.append(Failure(ref, _said(error), False))
            return
        self._keep(ref, found, outcome)
        follower.keep(ref)

    def _keep(self, ref: TileRef, found: Segmentation | Tracked, outcome: Outcome) -> None:
        item = self._items[ref[0]]
        most = self._recipe.refinement.fill_holes
        if most:
            # Larger ones would be filled in those tiles alone that see them whole.
            longest = item.plan.surely_whole[1:]
            found = replace(found, labels=fill_holes(found.labels, most, longest))
        place = item.locate(ref[1])[1]
        if isinstance(found, Tracked):
            tile = tracked_labels(found, item.plan, place)
        else:
            tile = tile_labels(found, item.plan, place)
        if item.single:
            outcome.objects[item.index] = self._write_single(item, tile)
        else:
            self._work.item(item.index)
            save(self._work.record(*ref), tile)
        outcome.done.append(ref)

    def _write_single(self, item: Item, tile: TileLabels) -> int:
        """Write an image of one tile, whose labels never were on disk."""
        likely = [] if tile.probabilities is None else [tile.probabilities]
        count, labels = len(tile.objects), tile.core.astype(np.uint32)
        ids = np.arange(1, count + 1, dtype=np.uint32)
        whole = Stitched(ids, np.array([0, count]), tile.objects)
        joined = refined(item, self._recipe, whole, labels, self._pause)
        if joined is not whole:
            labels = np.take(joined.table(0), tile.core)
        result = result_of(item, self._recipe, [labels], [joined.objects], likely, self._pause)
        if self._writers is None:
            # Waiting for the disk to confirm a file takes longer than writing it.
            self._writers = ThreadPoolExecutor(_WRITERS, "cellseg-write")
        if any(output.container is not None for output in item.outputs):
            for output in item.outputs:  # into one container, whose metadata is shared
                write(result, output)
        else:
            writing = [self._writers.submit(write, result, output) for output in item.outputs]
            wait(writing)  # for all: one that fails must not leave others at it
            for written in writing:
                written.result()
        self._written(item, result)
        return self._finished(item, result)

    def _finished(self, item: Item, result: Result) -> int:
        count = result.count  # which is read from what is forgotten then
        values: dict[str, object] = {"name": item.name, "objects": count}
        if result.tracks is not None:
            lineage = result.tracks
            values |= {"tracks": len(lineage.tracks), "divisions": len(lineage.divisions)}
        self._work.finish(item.index, values)
        return count


def _said(error: BaseException) -> str:
    if out_of_memory(error):
        return f"the memory does not suffice ({type(error).__name__}): try a smaller --tile-size"
    return " ".join(f"{type(error).__name__}: {error}".split())

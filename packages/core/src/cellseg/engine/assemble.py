"""Putting the tiles of an image or a movie together: the labels that are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cellseg.data import LazyArray
from cellseg.engine.frames import Lazily, StitchedFrames
from cellseg.engine.identities import Identities
from cellseg.engine.items import Item, Recipe
from cellseg.engine.labels import StitchedLabels
from cellseg.engine.probabilities import StitchedProbabilities
from cellseg.engine.records import NoRecord, PartsOnDisk, Record
from cellseg.engine.refine import refine
from cellseg.engine.state import WorkDir
from cellseg.engine.stitch import Stitched, stitch
from cellseg.engine.tile import Objects
from cellseg.errors import DataError
from cellseg.outputs.result import Result


def assembled(item: Item, recipe: Recipe, work: WorkDir, pause: Callable[[], None]) -> Result:
    """Stitch the tiles of each frame, and carry identities over time where these were tracked.

    One frame is in memory at a time; the result reads what it is asked for from disk.

    Args:
        item: an image or a movie all of whose tiles are done.
        recipe: how it was segmented.
        work: where its tiles are.
        pause: called between frames and blocks; raises to stop.
    """
    count = len(item.frames)
    store = StitchedFrames(work.item(item.index) if count > 1 else None)
    identities = Identities(item.plan, recipe.stitch_overlap) if item.tracked else None
    records = _records(item, recipe, work)
    for frame in range(count):
        pause()
        here = records(frame)
        joined = _stitched(item, recipe, here)
        labels = StitchedLabels(item.plan, here, joined)
        joined = refined(item, recipe, joined, labels, pause)
        tracks = None
        if identities is not None:
            labels = StitchedLabels(item.plan, here, joined)
            tracks = identities.step(frame, joined, labels, here)
        store.put(frame, joined, tracks)

    def labels_of(frame: int) -> LazyArray:
        return StitchedLabels(item.plan, records(frame), store.stitched(frame))

    def probabilities_of(frame: int) -> LazyArray:
        return StitchedProbabilities(item.plan, records(frame))

    likely = Lazily(count, probabilities_of) if recipe.job.probabilities else ()
    objects = Lazily(count, store.objects)
    result = result_of(item, recipe, Lazily(count, labels_of), objects, likely, pause)
    if identities is None:
        return result
    return replace(result, ids=Lazily(count, store.tracks), tracks=identities.lineage())


def refined(
    item: Item, recipe: Recipe, found: Stitched, labels: LazyArray, pause: Callable[[], None]
) -> Stitched:
    """What the recipe says is done to the objects of an image or a frame."""
    return refine(
        found, labels, item.plan, recipe.refinement, planes=not recipe.volumetric, pause=pause
    )


def result_of(
    item: Item,
    recipe: Recipe,
    frames: Sequence[LazyArray],
    objects: Sequence[Objects],
    probabilities: Sequence[LazyArray],
    pause: Callable[[], None],
) -> Result:
    """What is written of an image."""
    return Result(
        name=item.name,
        frames=frames,
        objects=objects,
        movie=item.movie,
        planes=not recipe.volumetric and not recipe.linked(item),
        block=item.plan.core,
        spacing=item.spacing,
        classes=recipe.classes,
        probabilities=probabilities,
        pause=pause,
    )


def _stitched(item: Item, recipe: Recipe, records: Sequence[Record]) -> Stitched:
    least = recipe.stitch_overlap
    try:
        return stitch(item.plan, PartsOnDisk(records), lambda i, d: records[i].strip(d), least)
    except DataError as error:
        raise DataError(f"{item.name}: {error}") from error


def _records(item: Item, recipe: Recipe, work: WorkDir) -> Callable[[int], list[Record]]:
    """The records of a frame, in the order of tiles, also of those that are not segmented."""
    size, chosen, classes = len(item.plan), set(item.chosen), 0
    if recipe.job.probabilities:  # what is not segmented has as many classes
        classes = Record(work.record(item.index, min(chosen))).classes

    def of(frame: int) -> list[Record]:
        return [
            Record(work.record(item.index, frame * size + i))
            if frame * size + i in chosen
            else NoRecord(item.plan.core_box(i).shape, classes)
            for i in range(size)
        ]

    return of

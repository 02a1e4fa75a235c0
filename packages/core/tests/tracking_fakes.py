"""A tracker of bright objects by their middles, and movies of discs; importable by other processes
too."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engine_fakes import LabelOptions, cellseg_datasets, load_label

import cellseg as cs
from cellseg.data import Tracked
from cellseg.options import parse
from cellseg.specs import TrackerMaker
from cellseg.tracks import Lineage, Track
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

__all__ = ["cellseg_datasets"]
HEIGHT, WIDTH = 130, 150
RADIUS = 7


class FollowOptions(LabelOptions):
    reach: float = 12.0
    """Pixels that an object moves at most from one frame to the next."""
    patience: int = 3
    """Frames that an object may be missing in."""
    blind: float = 0.0
    """Objects that reach into this much of the left end of the tile are not seen to divide."""
    log: str = ""
    """A text file that gets a line for each step: how many there were before."""


class MiddleTracker:
    """Objects go on as those whose middles are nearest; two small ones where a large one was are
    its daughters."""

    def __init__(self, options: FollowOptions, state: Mapping[str, np.ndarray] | None) -> None:
        self.options = options
        self.next, self.steps = (1, 0) if state is None else state["numbers"].tolist()
        empty = np.zeros((0, 6))
        # id, z, y, x, area, frames since it was seen
        self.known = empty if state is None else state["known"]

    def state(self) -> Mapping[str, np.ndarray]:
        state: dict[str, Any] = {
            "numbers": np.array([self.next, self.steps]),
            "known": self.known,
        }
        if self.options.fault == "state":
            state["known"] = self.known.tolist()
        return state

    def step(self, tile: cs.Tile) -> Tracked:
        import cc3d

        options = self.options
        time.sleep(options.sleep)
        mask = tile.image[0] > 0.5
        if options.log:
            with Path(options.log).open("a") as file:
                file.write(f"{self.steps}\n")
        if options.fits and mask.size > options.fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        if options.bad and str(mask.sum()) in Path(options.bad).read_text().split():
            raise ArithmeticError("the network exploded")
        self.steps += 1
        pieces = cc3d.connected_components(mask, connectivity=26)
        found = cc3d.statistics(pieces)
        areas = found["voxel_counts"][1:].astype(float)
        places = found["centroids"][1:]
        ids, parents = self._named(places, areas)
        labels = np.concatenate([[0], ids]).astype(np.int64)[pieces]
        self._remember(ids, places, areas)
        if options.fault == "shape":
            labels = labels[:, :-1]
        if options.fault == "negative":
            labels = -labels
        if options.fault == "float":
            labels = labels.astype(float)
        if options.fault == "type":
            return labels
        if options.fault == "parent":
            parents = {int(ids[0]): int(ids[1])}
        if options.fault == "stranger":
            parents = {10**6: 1}
        scores = {int(i): 0.75 for i in ids} if options.scored else {}
        return Tracked(labels, parents, scores)

    def _named(self, places: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
        from scipy.spatial.distance import cdist

        ids, parents = np.zeros(len(places), np.int64), dict[int, int]()
        before = self.known
        distance = cdist(before[:, 1:4], places) if len(before) and len(places) else None
        if distance is None:
            return self._new(ids), parents
        for row in np.argsort(before[:, 5], kind="stable"):
            near = np.flatnonzero((distance[row] < self.options.reach) & (ids == 0))
            small = near[areas[near] < 0.7 * before[row, 4]]
            small = small[np.argsort(distance[row, small], kind="stable")]
            if len(small) > 1 and places[small[0], 2] >= self.options.blind:
                for one in small[:2]:
                    ids[one], self.next = self.next, self.next + 1
                    parents[int(ids[one])] = int(before[row, 0])
        gone = set(parents.values())
        pairs = np.argwhere(distance < self.options.reach)
        order = np.argsort(distance[tuple(pairs.T)] + 100 * before[pairs[:, 0], 5], kind="stable")
        for row, one in pairs[order]:
            name = int(before[row, 0])
            if not ids[one] and name not in gone:
                ids[one] = name
                gone.add(name)
        return self._new(ids), parents

    def _new(self, ids: np.ndarray) -> np.ndarray:
        new = ids == 0
        ids[new] = self.next + np.arange(new.sum())
        self.next += int(new.sum())
        return ids

    def _remember(self, ids: np.ndarray, places: np.ndarray, areas: np.ndarray) -> None:
        lost = self.known[~np.isin(self.known[:, 0], ids)]
        lost[:, 5] += 1
        lost = lost[lost[:, 5] <= self.options.patience]
        seen = np.column_stack([ids, places, areas, np.zeros(len(ids))])
        self.known = np.concatenate([seen, lost])


def track_middles(job: cs.PredictJob[FollowOptions]) -> TrackerMaker:
    return lambda state: MiddleTracker(job.options, state)


@cs.hookimpl
def cellseg_predictors():
    tiling = cs.Tiling((8, 80, 80), (8, 24, 24))
    yield cs.PredictorSpec(
        name="follow",
        summary="Follow discs",
        options=FollowOptions,
        load=load_label,
        track=track_middles,
        tiling=tiling,
        prompts=True,
        probabilities=True,
        tasks=frozenset({"2d", "tracking"}),
    )
    yield cs.PredictorSpec(
        name="still", summary="Label discs", options=LabelOptions, load=load_label, tiling=tiling
    )


def plugins() -> cs.plugins.Plugins:
    from cellseg.plugins import Plugins

    found = Plugins(installed=())
    found.register(sys.modules[__name__], "fakes")
    return found


Cell = tuple[int, int, int, int, tuple[float, float], tuple[float, float]]
"""Id, first and last frame, parent, where it is at first and how it moves, ``(y, x)``."""
CELLS: tuple[Cell, ...] = (
    (1, 0, 23, 0, (15, 12), (0, 5)),  # crosses all tiles along x
    (2, 0, 9, 0, (50, 62), (0.5, 0)),  # divides on a border
    (3, 10, 23, 2, (54, 52), (-0.5, -2)),
    (4, 10, 23, 2, (54, 72), (0.5, 2)),
    (5, 4, 23, 0, (85, 140), (1, -5)),  # appears, and crosses them the other way
    (6, 0, 15, 0, (110, 40), (0, 0)),  # vanishes
)


def frame_of(number: int, cells: Sequence[Cell] = CELLS) -> np.ndarray:
    """True labels of a frame, ``(y, x)``."""
    grid = np.indices((HEIGHT, WIDTH)) + 0.5
    labels = np.zeros((HEIGHT, WIDTH), np.uint32)
    for name, begin, end, parent, start, speed in cells:
        if begin <= number <= end:
            middle = np.array(start) + (number - begin) * np.array(speed)
            radius = RADIUS - 2.5 if parent else RADIUS
            labels[((grid - middle[:, None, None]) ** 2).sum(0) <= radius**2] = name
    return labels


def write_movie(folder: Path, frames: Sequence[int], planes: int = 1, name: str = "m") -> Path:
    """Frames as .npy files; the planes of a volume show the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        image = (frame_of(frame) > 0).astype(np.uint8) * 200
        np.save(folder / f"{name}#{number:03d}.npy", np.stack([image] * planes)[None])
    return folder


FRAMES = 24
PLACES = 4
"""Tiles of a frame of the movie."""


def drawn(path, name, images, labels, lineage, spacing, minutes_per_frame=None):
    shown = [int(frame[:, :, :].max()) for frame in labels]
    assert len(images) == len(shown)
    path.write_text(json.dumps([name, shown, len(lineage.tracks)]))


def run(images, out, interrupted=lambda: False, options=None, **values):
    given = {"backend": "follow", "reader": "npy", "output": out, **values}
    events = []
    summary = predict(
        plugins(),
        images,
        parse(PredictSettings, given),
        options=options or {},
        reader_options={},
        emit=events.append,
        interrupted=interrupted,
    )
    return summary, events


def after(times):
    """What tells a prediction to stop after it was asked as often as this."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= times


def lineage_of(table: Path) -> Lineage:
    with table.open() as file:
        return Lineage.of(
            Track(*(int(row[name]) for name in ("id", "begin", "end", "parent")))
            for row in csv.DictReader(file)
        )


def truth(frames=range(FRAMES)):
    return np.stack([frame_of(frame) for frame in frames])


def true_tracks(names=None):
    return {
        (names or {}).get(c[0], c[0]): (c[1], c[2], (names or {}).get(c[3], c[3])) for c in CELLS
    }


def as_true(labels, lineage, true):
    """Check that ids and tracks are the true ones but for their names."""
    assert ((labels > 0) == (true > 0)).all()
    pairs = np.unique(np.stack([true[true > 0], labels[true > 0]]), axis=1)
    names = dict(pairs.T.tolist())
    assert len(names) == pairs.shape[1] == len(set(names.values())), pairs
    found = {t.id: (t.begin, t.end, t.parent) for t in lineage.tracks}
    assert found == true_tracks(names)

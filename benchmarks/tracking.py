"""Linking: tracks of synthetic cells from their labels, perfect and degraded, and its cost.

The peers, in the same run and on the same labels: a plain overlap linker (``--method overlap``),
and laptrack as it comes, which sees centroids and finds gaps and divisions by its own second step.
Scores are those of the Cell Tracking Challenge; divisions count within one frame. Its TRA counts a
link over a gap as wrong, so the linker is also compared at ``--max-gap 0``. Targets are the scores
of the overlap linker, for divisions those of the better peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from _table import finish, result, table
from cellseg.linking.labels import LinkedLabels
from cellseg.linking.link import Links, link
from cellseg.linking.settings import LinkSettings
from cellseg.metrics import overlaps, score_tracks
from cellseg.strict_tracks import strict_tracks
from cellseg.synthetic_movies import Movie, make_movie
from cellseg.tracks import Lineage, Track

Frames = Sequence[NDArray[np.uint32]]
DIAMETER = 24.0
SPEEDS = (2.0, 6.0, 12.0)
SEEDS = (10, 11)
SCORES = ("TRA", "LNK", "division_precision(1)", "division_recall(1)", "division_f1(1)")


def degraded(labels: NDArray[np.uint32], seed: int) -> list[NDArray[np.uint32]]:
    """What a middling segmentation makes of true labels: each frame by itself, with ids of its own.

    Of the cells, 2 % are missed, 1.5 % become one with a neighbour that they touch, and 1.5 % are
    cut in two; there is a speck for every hundredth; and all outlines are off by a pixel or so.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for truth in labels:
        frame = truth.astype(np.int64)
        ids = np.unique(frame)[1:]
        boxes = dict(enumerate(ndimage.find_objects(frame), 1))
        top = int(ids.max(initial=0))
        for one in ids[rng.random(len(ids)) < 0.015]:
            wide = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in boxes[one])
            near = np.unique(frame[wide][ndimage.binary_dilation(frame[wide] == one, iterations=2)])
            others = near[(near > 0) & (near != one)]
            if len(others):
                frame[wide][frame[wide] == one] = others[0]
        for one in ids[rng.random(len(ids)) < 0.015]:
            y, x = np.nonzero(frame[boxes[one]] == one)
            if not len(y):  # it became another one
                continue
            angle = rng.uniform(0, np.pi)
            side = (y - y.mean()) * np.sin(angle) + (x - x.mean()) * np.cos(angle) > 0
            top += 1
            frame[boxes[one]][y[side], x[side]] = top
        frame[np.isin(frame, ids[rng.random(len(ids)) < 0.02])] = 0
        frame = _wobbled(frame, rng)
        for _ in range(rng.poisson(0.01 * len(ids))):
            y, x = (int(rng.integers(0, n - 6)) for n in frame.shape)
            if not frame[y : y + 6, x : x + 6].any():
                top += 1
                frame[y : y + 6, x : x + 6] = top
        found, place = np.unique(frame, return_inverse=True)
        number = np.concatenate([[0], rng.permutation(len(found) - 1) + 1])
        frames.append(number[place].reshape(frame.shape).astype(np.uint32))
    return frames


def _wobbled(frame: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Every pixel taken from a place near by."""
    shift = np.stack([ndimage.gaussian_filter(rng.normal(size=frame.shape), 4) for _ in range(2)])
    shift /= shift.std()
    y, x = np.rint(np.indices(frame.shape) + shift).astype(int)
    height, width = frame.shape
    return frame[y.clip(0, height - 1), x.clip(0, width - 1)]


@dataclass(frozen=True)
class Linked:
    """What some linker made of labels."""

    ids: Sequence[NDArray[np.uint32]]
    tracks: Sequence[NDArray[np.uint32]]
    lineage: Lineage


def ours(labels: Frames, **options: object) -> Links:
    return link((frame[None] for frame in labels), LinkSettings.model_validate(options))


def laptrack_alone(labels: Frames) -> Linked:
    """laptrack by centroids, with its own gap closing and splitting."""
    from laptrack import LapTrack
    from laptrack.data_conversion import tree_to_dataframe

    reach = DIAMETER**2
    tracker = LapTrack(
        cutoff=reach,
        gap_closing_cutoff=reach,
        gap_closing_max_frame_count=2,
        splitting_cutoff=reach,
    )
    ids = [np.unique(frame)[1:] for frame in labels]
    centres = [
        np.array(ndimage.center_of_mass(frame > 0, frame, known))
        for frame, known in zip(labels, ids, strict=True)
    ]
    rows, splits, _ = tree_to_dataframe(tracker.predict(centres))
    rows = rows.reset_index()
    tracks = [np.zeros(len(known), np.uint32) for known in ids]
    for frame, place, number in zip(rows["frame"], rows["index"], rows["track_id"], strict=True):
        tracks[frame][place] = number + 1
    parents = {}
    if len(splits):
        parents = dict(zip(splits["child_track_id"], splits["parent_track_id"] + 1, strict=True))
    spans = rows.groupby("track_id")["frame"].agg(["min", "max"])
    lineage = Lineage.of(
        Track(int(i) + 1, int(a), int(b), int(parents.get(i, 0))) for i, a, b in spans.itertuples()
    )
    return Linked(ids, tracks, lineage)


def scored(labels: Frames, found: Links | Linked, movie: Movie) -> dict[str, float]:
    strict = strict_tracks(found.tracks, found.lineage)
    tables = [
        overlaps(LinkedLabels(frame[None], ids, tracks), truth[None])
        for frame, ids, tracks, truth in zip(
            labels, found.ids, strict.ids, movie.labels, strict=True
        )
    ]
    scores = score_tracks(tables, strict.lineage, movie.lineage)
    assert scores.valid, scores.problems
    return {name: float(scores.scores[name]) for name in SCORES}


LINKERS: dict[str, Callable[[Frames], Links | Linked]] = {
    "cellseg track": ours,
    "cellseg track --max-gap 0": lambda labels: ours(labels, max_gap=0),
    "plain overlap": lambda labels: ours(labels, method="overlap"),
    "laptrack alone": laptrack_alone,
}


def quality() -> None:
    heading = ["speed (px)", "labels", "linker", *SCORES, "CPU seconds"]
    lines: list[list[object]] = [heading]
    best: dict[tuple[float, str, str], dict[str, float]] = {}
    for speed in SPEEDS:
        movies = [
            make_movie(seed, 40, (512, 512), diameter=DIAMETER, speed=speed, draw_images=False)
            for seed in SEEDS
        ]
        for kind in ("perfect", "degraded"):
            sets = [
                list(m.labels) if kind == "perfect" else degraded(m.labels, seed)
                for seed, m in zip(SEEDS, movies, strict=True)
            ]
            for name, linker in LINKERS.items():
                begin = time.process_time()
                found = [linker(labels) for labels in sets]
                seconds = time.process_time() - begin
                each = [
                    scored(labels, one, movie)
                    for labels, one, movie in zip(sets, found, movies, strict=True)
                ]
                mean = {score: float(np.mean([s[score] for s in each])) for score in SCORES}
                best[speed, kind, name] = mean
                lines.append([speed, kind, name, *mean.values(), seconds])
    print(f"{len(SEEDS)} movies of 40 frames of 512 x 512, cells of {DIAMETER:g} pixels; means")
    table(lines)
    for speed in SPEEDS:
        for kind in ("perfect", "degraded"):
            at = f"{kind}_{speed:g}px"
            mine, bare, peer, alone = (best[speed, kind, name] for name in LINKERS)
            tra, theirs = mine["TRA"], peer["TRA"]
            result(f"tracking_tra_{at}", tra, f">={theirs:.4f}", tra >= theirs)
            tra, theirs = bare["TRA"], peer["TRA"]
            result(f"tracking_tra_no_gaps_{at}", tra, f">={theirs:.4f}", tra >= theirs)
            f1 = mine["division_f1(1)"]
            theirs = max(peer["division_f1(1)"], alone["division_f1(1)"])
            result(f"tracking_division_f1_{at}", f1, f">={theirs:.4f}", f1 >= theirs)


def speed() -> None:
    """100 frames of 1000 cells."""
    lines: list[list[object]] = [["labels", "linker", "frames", "cells a frame", "CPU seconds"]]
    took: dict[tuple[str, str], float] = {}
    for kind, pace in (("perfect", 2.0), ("degraded", 2.0), ("moving 12 px", 12.0)):
        movie = make_movie(
            5,
            100,
            (1280, 1280),
            1000,
            diameter=DIAMETER,
            cycle=1000,
            speed=pace,
            death_rate=0.0,
            draw_images=False,
        )
        labels = degraded(movie.labels, 5) if kind == "degraded" else list(movie.labels)
        for name, linker in LINKERS.items():
            if "max-gap" in name:
                continue
            part = labels[:20] if name == "laptrack alone" else labels
            begin = time.process_time()
            found = linker(part)
            seconds = time.process_time() - begin
            cells = sum(len(ids) for ids in found.ids) / len(part)
            took[kind, name] = seconds
            lines.append([kind, name, len(part), cells, seconds])
    print("laptrack alone takes the whole movie at once: 20 frames only")
    table(lines)
    for kind in ("perfect", "degraded", "moving 12 px"):
        seconds = took[kind, "cellseg track"]
        name = f"tracking_seconds_100x1000_{kind.replace(' ', '_')}"
        result(name, seconds, "<=20", seconds <= 20)


if __name__ == "__main__":
    quality()
    speed()
    finish()

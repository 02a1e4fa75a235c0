"""Random small movies of tracks, and predictions of them that are wrong in all the usual ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.tracks import Lineage, Track

SLOT = 6
Masks = list[NDArray[np.uint16]]


@dataclass
class Tracked:
    """Masks by frame, and their tracks."""

    masks: Masks
    lineage: Lineage


def random_truth(seed: int, frames: int, slots: int, *, gaps: bool = True) -> Tracked:
    """Cells that sit in slots of a row, divide, die, are born, and are missing now and then."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros((8, SLOT * slots), np.uint16) for _ in range(frames)]
    alive: dict[int, int] = {}
    begin, end, parent = {}, {}, {}
    for frame in range(frames):
        for slot in range(slots):
            if slot not in alive and rng.random() < 0.25:
                alive[slot] = len(begin) + 1
                begin[alive[slot]], parent[alive[slot]] = frame, 0
        for slot, id in alive.items():
            first = frame == begin[id]
            if first or not gaps or rng.random() < 0.95:
                left = SLOT * slot + int(rng.integers(0, 2))
                masks[frame][1:7, left : left + 4] = id
                end[id] = frame
        ended = [slot for slot in alive if rng.random() < 0.25]
        for slot in ended:
            mother = alive.pop(slot)
            free = [each for each in range(slots) if each not in alive and each not in ended]
            count = int(rng.choice([0, 0, 1, 2, 2, 2, 3]))
            if frame + 1 < frames and end[mother] == frame:
                for place in [slot, *free][: count if count else 0]:
                    daughter = len(begin) + 1
                    alive[place] = daughter
                    begin[daughter], parent[daughter] = frame + 1, mother
    tracks = [Track(id, begin[id], end[id], parent[id]) for id in begin]
    return Tracked(masks, Lineage.of(tracks))


def random_prediction(truth: Tracked, seed: int, wrong: float) -> Tracked:
    """A valid result: objects missed, moved, cut, merged, made up; ids switched, parents wrong."""
    rng = np.random.default_rng(seed)
    count = max([track.id for track in truth.lineage.tracks], default=0)
    now = {id: id for id in range(1, count + 1)}
    labels: Masks = []
    fresh = count + 1
    for frame in truth.masks:
        found = np.zeros_like(frame)
        ids = np.unique(frame[frame > 0]).tolist()
        for id in ids:
            if rng.random() < wrong / 2 and len(ids) > 1:
                other = int(rng.choice(ids))
                now[id], now[other] = now[other], now[id]
            if rng.random() < wrong / 4:
                now[id], fresh = fresh, fresh + 1
            here = frame == id
            case = rng.random() / wrong if wrong else 1
            if case < 0.3:
                continue
            if case < 0.6:
                here = np.roll(here, int(rng.integers(-3, 4)), 1)
            elif case < 0.8:
                here[: int(rng.integers(2, 6))] = False
            found[here] = now[id]
            if 0.8 <= case < 0.9:
                found[np.roll(frame == id, SLOT, 1)] = now[id]
        if rng.random() < wrong:
            found[0, :3], fresh = fresh, fresh + 1
        labels.append(found)
    return _valid(labels, truth, rng, wrong)


def _valid(labels: Masks, truth: Tracked, rng: np.random.Generator, wrong: float) -> Tracked:
    """Ids without gaps, and parents that end before the daughters begin."""
    ids: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    origin: dict[int, int] = {}
    masks: Masks = []
    for frame, found in enumerate(labels):
        masks.append(np.zeros_like(found))
        for label in np.unique(found[found > 0]).tolist():
            if label not in ids or spans[ids[label]][1] < frame - 1:
                ids[label] = len(spans) + 1
                spans[ids[label]] = frame, frame
                origin[ids[label]] = label
            spans[ids[label]] = spans[ids[label]][0], frame
            masks[-1][found == label] = ids[label]
    tracks = []
    for id, (begin, end) in spans.items():
        true = truth.lineage.by_id.get(origin[id])
        wanted = true.parent if true else 0
        earlier = [other for other in spans if spans[other][1] < begin]
        parent = next((other for other in reversed(earlier) if origin[other] == wanted), 0)
        just = [other for other in earlier if spans[other][1] == begin - 1]
        if earlier and rng.random() < 2 * wrong:
            parent = int(rng.choice([0, *(just or earlier)]))
        tracks.append(Track(id, begin, end, parent))
    return Tracked(masks, Lineage.of(tracks))


def write_table(lineage: Lineage, path: Path) -> None:
    """A table of tracks as the Cell Tracking Challenge has them."""
    rows = [f"{t.id} {t.begin} {t.end} {t.parent}\n" for t in lineage.tracks]
    path.write_text("".join(rows))


def write_sequence(folder: Path, prediction: Tracked, truth: Tracked) -> tuple[Path, Path]:
    """``(01_RES, 01_GT)``; every other frame is also one of SEG."""
    result, tra, seg = folder / "01_RES", folder / "01_GT" / "TRA", folder / "01_GT" / "SEG"
    for each in (result, tra, seg):
        each.mkdir(parents=True)
    for frame, (found, true) in enumerate(zip(prediction.masks, truth.masks, strict=True)):
        tifffile.imwrite(result / f"mask{frame:03}.tif", found)
        tifffile.imwrite(tra / f"man_track{frame:03}.tif", true)
        if frame % 2 == 0:
            tifffile.imwrite(seg / f"man_seg{frame:03}.tif", true)
    write_table(prediction.lineage, result / "res_track.txt")
    write_table(truth.lineage, tra / "man_track.txt")
    return result, folder / "01_GT"

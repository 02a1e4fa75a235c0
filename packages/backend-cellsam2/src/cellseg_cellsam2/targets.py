"""What there is to learn of a clip, as tensors: its objects, what becomes of them, and the heatmap
of their middles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastremap
import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor  # noqa: TID253

from cellseg.classes import UNKNOWN
from cellseg.torch.frames import Frame
from cellseg.torch.patches import Item
from cellseg.tracks import Lineage
from cellseg_cellsam2.augmenting import ClipAugmentation
from cellseg_cellsam2.clips import Clip, ClipGrid, ClipSampler

STEP = 4
"""Pixels of the square for a cell of the heatmap."""
_SIGMA = 1.0
"""Of the peaks of the heatmap, in its cells."""
_REACH = 3
_RIM_WEIGHT, _PEAK_WEIGHT, _PEAK = 10.0, 50.0, 0.8
Batch = dict[str, Tensor]


def item_of(clip: Clip, side: int, least: int, index: int) -> Item:
    """The tensors of a clip with ``t`` frames and ``k`` objects, in a square of ``side``.

    Objects that are nowhere visible with at least ``least`` pixels are left out; smaller pieces
    are not known, like what is not labelled.

    Args:
        clip: a square window.
        side: a multiple of 4.
        least: pixels of the images.
        index: the number of the clip; seeds what is random about its prompts.

    Returns:
        ``image (t, c, side, side)`` float32; ``labels (t, side, side)`` int32: 1 to k for objects,
        0 for background, -1 where not known; ``present (k, t)`` bool: whether an object is visible;
        ``divides (k,)`` int64: the frame in which daughters of it begin, -1 for never;
        ``daughters (k, 2)`` int64: the two largest of those that are visible in that frame,
        counted from 0, -1 for none; ``heat`` and ``heat_weight (t, side/4, side/4)`` float32; and
        ``index ()`` int64.
    """
    known = clip.labels != UNKNOWN
    numbered, ids = _renumbered(np.where(known, clip.labels, 0))
    count, frames = len(ids), len(numbered)
    areas = np.stack([np.bincount(plane.ravel(), minlength=count) for plane in numbered], axis=1)
    areas[0] = 0
    visible = areas >= max(least, 1)
    kept = np.flatnonzero(visible.any(1))
    table = np.zeros((count, frames), np.int32)
    table[kept] = np.arange(1, len(kept) + 1)[:, None]
    table[1:][~visible[1:]] = -1  # pieces that are too small
    labels = np.stack([table[plane, t] for t, plane in enumerate(numbered)])
    labels[~known] = -1
    divides, daughters = _divisions(clip.lineage, ids[kept], areas[kept], visible[kept], clip.first)
    labels = _enlarged(labels, side)
    heat, weight = heatmap(labels)
    frame = Frame.fit((clip.labels.shape[1], clip.labels.shape[2]), side)
    images = torch.from_numpy(np.ascontiguousarray(clip.images.swapaxes(0, 1), np.float32))
    return {
        "image": frame.place(images),
        "labels": torch.from_numpy(labels),
        "present": torch.from_numpy(visible[kept]),
        "divides": torch.from_numpy(divides),
        "daughters": torch.from_numpy(daughters),
        "heat": torch.from_numpy(heat),
        "heat_weight": torch.from_numpy(weight),
        "index": torch.tensor(index),
    }


def collated(items: Sequence[Item]) -> Batch:
    """Clips ``v`` of a batch, their objects in one axis ``k``, one clip after the other.

    Returns:
        As ``item_of`` says, with ``image (v * t, c, side, side)``, ``labels``, ``heat`` and
        ``heat_weight (v * t, ...)``, ``index (v,)``; ``daughters`` counted over all objects; and
        ``video (k,)`` int64, the clip of each object, ``label (k,)`` int32, its label there.
    """
    counts = [len(item["present"]) for item in items]
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    daughters = [
        torch.where(item["daughters"] < 0, item["daughters"], item["daughters"] + start)
        for item, start in zip(items, starts, strict=True)
    ]
    joined = ("image", "labels", "heat", "heat_weight", "present", "divides")
    return {
        **{name: torch.cat([item[name] for item in items]) for name in joined},
        "daughters": torch.cat(daughters),
        "index": torch.stack([item["index"] for item in items]),
        "video": torch.arange(len(items)).repeat_interleave(torch.tensor(counts)),
        "label": torch.cat([torch.arange(1, n + 1, dtype=torch.int32) for n in counts]),
    }


class TrainingClips:
    """Augmented clip ``i``: a function of the seed and ``i`` alone."""

    def __init__(
        self, sampler: ClipSampler, augment: ClipAugmentation, side: int, least: int, seed: int
    ) -> None:
        self._sampler, self._augment, self._seed = sampler, augment, seed
        self._side, self._least = side, least

    def __getitem__(self, index: int) -> Item:
        clip = self._sampler.clip(index)
        rng = np.random.default_rng((self._seed, index, 1))
        images, labels = self._augment(clip.images, clip.labels, rng)
        clip = Clip(images, labels, clip.lineage, clip.first, clip.name)
        return item_of(clip, self._side, self._least, index)


class ValidationClips:
    """Batches of one clip each, as they are, evenly spread over the movies."""

    def __init__(self, grid: ClipGrid, side: int, least: int, most: int) -> None:
        count = min(len(grid), most)
        self._grid, self._side, self._least = grid, side, least
        self._chosen = [i * len(grid) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Batch:
        clip = self._grid[self._chosen[index]]
        return collated([item_of(clip, self._side, self._least, index)])


def heatmap(labels: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the middles of objects are, and how much each place counts.

    A Gaussian of one cell about the centroid of each object, within it; the centroid of an object
    that does not cover it is moved to the nearest place of the object. The rims of objects count
    ten times, and the peaks fifty times as much as the rest; what is not known counts nothing.

    Args:
        labels: ``(t, y, x)``: 0 for background, below 0 where not known.

    Returns:
        ``(t, y / 4, x / 4)`` each: 0 to 1, and weights.
    """
    coarse = labels[:, STEP // 2 :: STEP, STEP // 2 :: STEP]
    heat = np.zeros(coarse.shape, np.float32)
    for plane, small, target in zip(labels, coarse, heat, strict=True):
        _draw_peaks(plane, small, target)
    weight = np.ones(coarse.shape, np.float32)
    weight[_rims(coarse)] = _RIM_WEIGHT
    weight[heat > _PEAK] = _PEAK_WEIGHT
    weight[coarse < 0] = 0
    return heat, weight


def _draw_peaks(
    labels: NDArray[np.int32], coarse: NDArray[np.int32], target: NDArray[np.float32]
) -> None:
    height, width = coarse.shape
    for number, box in enumerate(ndimage.find_objects(np.maximum(labels, 0)), 1):
        if box is None:
            continue
        inside = np.argwhere(labels[box] == number)
        middle = inside.mean(0)
        row, column = inside[np.square(inside - middle).sum(1).argmin()]
        y = min((box[0].start + int(row)) // STEP, height - 1)
        x = min((box[1].start + int(column)) // STEP, width - 1)
        rows = slice(max(y - _REACH, 0), min(y + _REACH + 1, height))
        columns = slice(max(x - _REACH, 0), min(x + _REACH + 1, width))
        dy, dx = np.ogrid[rows, columns]
        dy, dx = dy - y, dx - x
        bump = np.exp(-(dy**2 + dx**2) / (2 * _SIGMA**2)).astype(np.float32)
        bump[(coarse[rows, columns] != number) & ((dy != 0) | (dx != 0))] = 0
        np.maximum(target[rows, columns], bump, out=target[rows, columns])


def _rims(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Cells of objects next to a cell that is not of the same object."""
    padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    inner: NDArray[np.bool_] = np.ones(labels.shape, bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        y, x = labels.shape[1:]
        inner &= padded[:, dy : dy + y, dx : dx + x] == labels
    rims: NDArray[np.bool_] = (labels > 0) & ~inner
    return rims


def _enlarged(labels: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Labels in the square: the nearest pixel."""
    height, width = labels.shape[1:]
    rows, columns = (
        np.minimum(((np.arange(side) + 0.5) * (length / side)).astype(np.intp), length - 1)
        for length in (height, width)
    )
    return np.ascontiguousarray(labels[:, rows][:, :, columns])


def _renumbered(labels: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Labels from 1 without gaps, and which id each was; 0 stays."""
    numbered, table = fastremap.renumber(labels, preserve_zero=True, in_place=False)
    ids = np.zeros(max(table.values(), default=0) + 1, np.int64)
    ids[list(table.values())] = list(table.keys())
    return numbered, ids


def _divisions(
    lineage: Lineage, ids: Any, areas: Any, visible: Any, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each object, when it divides within the clip, and into whom.

    The daughters of one mother that begin one frame after she ends count, but none that come after
    a gap. A single one is the same object under another id.
    """
    divides = np.full(len(ids), -1, np.int64)
    daughters = np.full((len(ids), 2), -1, np.int64)
    place = {int(one): number for number, one in enumerate(ids)}
    tracks = lineage.by_id
    for mother, begun in lineage.daughters.items():
        if mother not in place or mother not in tracks:
            continue
        frame = tracks[mother].end + 1
        at = frame - first
        begun = tuple(one for one in begun if tracks[one].begin == frame)
        if not begun or not 0 < at < visible.shape[1]:
            continue
        seen = [place[one] for one in begun if one in place and visible[place[one], at]]
        seen.sort(key=lambda number: -areas[number, at])
        divides[place[mother]] = at
        daughters[place[mother], : len(seen[:2])] = seen[:2]
    return divides, daughters

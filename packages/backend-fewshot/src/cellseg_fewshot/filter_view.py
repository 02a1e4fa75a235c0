"""A plane as the encoder without weights sees it: filter responses, and trees of regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2  # noqa: TID253
import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.mask_pooling import pool_masks
from cellseg.torch.masks import FoundMask
from cellseg_fewshot.filter_bank import blurred, responses
from cellseg_fewshot.foreground import probabilities
from cellseg_fewshot.region_scores import (
    Measured,
    Scene,
    Window,
    charted,
    measure,
    unlearned,
)
from cellseg_fewshot.regions import (
    Regions,
    above_thresholds,
    floored,
    merged_basins,
    quantised,
)
from cellseg_fewshot.small_networks import Ensemble
from cellseg_fewshot.views import FeatureMap

_DIAMETER = 24.0
"""What the filters are made for while nothing is learned, in pixels."""
_DETAIL = 28.0
"""Planes are reduced until an object is about this many pixels wide."""
_RANGE = 4.0
"""How many times smaller or larger than the examples an object may be, in area."""
_PER_POINT = 8
"""Answers, at most."""
_ALIKE = 0.85
"""Of two nested regions with this IoU, the better one is kept."""
_WIDEST = 8.0
"""Basins are merged up to this many times what the filters are made for, while nothing is
learned."""
_NOTCH = 1 / 14
"""Notches up to twice this wide are closed, in diameters."""
_LOWEST = 0.05
"""Of the score of an answer."""
_FLAT = 0.03
"""Where a border is less probable than this, there is none."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the examples have taught."""

    diameter: float
    """Square root of the median area, in pixels."""
    areas: tuple[float, float]
    """The smallest and the largest, in pixels."""
    foreground: Ensemble
    """Of pixels: whether in an object, and whether at a border."""
    scores: Ensemble | None
    """Of regions: the IoU with an object."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The regions of a tree that can be an answer."""

    regions: Regions
    scores: NDArray[np.float32]
    """``(n,)`` of all regions."""
    holding: NDArray[np.int64]
    """``(n,)``: the smallest kept region that is or holds this one; -1 for none."""
    pixels: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Region ``i`` are the pixels from ``starts[i]`` to ``ends[i]``."""


class FilterView:
    """One plane."""

    def __init__(self, plane: NDArray[np.float32], learned: Learned | None) -> None:
        """Nothing is computed before it is asked for.

        Args:
            plane: ``(c, y, x)`` float32.
            learned: from the examples, if there were any.
        """
        self.plane = plane
        self.learned = learned
        diameter = learned.diameter if learned else _DIAMETER
        self.factor = max(1, int(diameter / _DETAIL))
        self.diameter = diameter / self.factor
        self.image = reduced(plane, self.factor)

    @property
    def size(self) -> tuple[int, int]:
        """Of the plane, ``(y, x)``."""
        return self.plane.shape[1], self.plane.shape[2]

    @cached_property
    def responses(self) -> NDArray[np.float32]:
        """Of the filters, ``(d, y, x)`` of the reduced plane."""
        return responses(self.image, self.diameter)

    def foreground(self, only: int | None = None) -> NDArray[np.float32]:
        """``(2, y, x)`` of the reduced plane: probability of an object, and of a border; by all
        networks, or by one."""
        if self.learned is None:
            return np.zeros((2, *self.image.shape[1:]), np.float32)
        return probabilities(self.learned.foreground, self.responses, only)

    @cached_property
    def features(self) -> FeatureMap:
        """Standardised responses, and the probability of an object and of a border."""
        values = torch.from_numpy(self.responses)
        if self.learned is not None:
            tensors = self.learned.foreground.tensors
            mean, spread = (tensors[name].cpu()[:, None, None] for name in ("mean", "spread"))
            values = ((values - mean) / spread).clamp(-5, 5)
        values = torch.cat([values, torch.from_numpy(self.foreground())])
        values = torch.nn.functional.avg_pool2d(values[None], 2, ceil_mode=True)[0]
        return FeatureMap(values, (2.0 * self.factor, 2.0 * self.factor))

    def describe(self, masks: Sequence[FoundMask]) -> Tensor:
        """Means inside, and by how much they exceed those around; ``(n, 2 d)``."""
        features = self.features
        inside = pool_masks(masks, features.values, features.step)
        reach = max(2, round(self.diameter * self.factor / 6))
        rings = [_ring(mask, reach, self.size) for mask in masks]
        around = pool_masks(rings, features.values, features.step)
        return torch.cat([inside, inside - around], 1)

    def regions(
        self, windows: Sequence[Window] | None = None, only: int | None = None
    ) -> Iterator[tuple[Window, Regions, Measured]]:
        """All regions of all trees, of each window or of the whole; with foreground by one network,
        or by all."""
        scene = Scene(self.image, self.foreground(only), self.diameter)
        chart = charted(scene)
        growers = _growers(scene, self.learned is not None, self._most())
        kinds = np.eye(len(growers), dtype=np.float32)
        height, width = self.image.shape[1:]
        for window in windows or [(slice(0, height), slice(0, width))]:
            part = chart.cut(window)
            for grow, kind in zip(growers, kinds, strict=True):
                tree = grow(window)
                yield window, tree, measure(tree, part, kind)

    def _most(self) -> float:
        """Beyond how many pixels no region is of interest, not even to learn from."""
        most = 2 * self.limits()[1]
        return most if self.learned else min(most, (_WIDEST * self.diameter) ** 2)

    @cached_property
    def _kept(self) -> list[_Kept]:
        limits = self.limits()
        found = list(self.regions())
        return [_keep(tree, one, self._scores(one, len(found)), limits) for _, tree, one in found]

    def limits(self) -> tuple[float, float]:
        """The smallest and the largest area of an answer, in pixels of the reduced plane."""
        if self.learned is None:
            return 9.0, self.image[0].size / 2
        low, high = self.learned.areas
        area = self.factor**2
        return max(4.0, low / _RANGE / area), high * _RANGE / area

    def _scores(self, measured: Measured, sources: int) -> NDArray[np.float32]:
        if self.learned is None or self.learned.scores is None:
            return unlearned(measured, sources)
        table = torch.from_numpy(measured.table)
        return np.asarray(self.learned.scores.probabilities(table)[:, 0].numpy(), np.float32)

    def answer(self, points: NDArray[np.float32]) -> list[FoundMask]:
        """The best regions that hold each point, 8 at most, best first."""
        rows = [self._holding(points, tree) for tree in range(len(self._kept))]
        table = np.concatenate(rows)
        scores = np.concatenate(
            [
                np.zeros(0),
                *(kept.scores[part[:, 2]] for kept, part in zip(self._kept, rows, strict=True)),
            ]
        )
        order = np.lexsort((table[:, 2], table[:, 1], -scores, table[:, 0]))
        table = table[order]
        first = np.searchsorted(table[:, 0], table[:, 0])
        table = table[np.arange(len(table)) - first < _PER_POINT]
        found: dict[tuple[tuple[int, int], tuple[int, ...], bytes], FoundMask] = {}
        for tree, node in dict.fromkeys((t, n) for t, n in table[:, 1:].tolist()):
            mask = self._mask(tree, node)
            found.setdefault((mask.corner, mask.mask.shape, mask.mask.tobytes()), mask)
        return list(found.values())

    def _holding(self, points: NDArray[np.float32], tree: int) -> NDArray[np.int64]:
        """Rows of a point, the tree, and a kept region that holds the point."""
        kept = self._kept[tree]
        height, width = self.image.shape[1:]
        cells = np.floor(np.asarray(points, np.float64).reshape(-1, 2) / self.factor)
        y, x = cells.astype(np.int64).T
        nodes = kept.holding[kept.regions.smallest[y.clip(0, height - 1), x.clip(0, width - 1)]]
        who = np.flatnonzero(nodes >= 0)
        rows = [np.zeros((0, 3), np.int64)]
        while len(who):
            at = nodes[who]
            rows.append(np.stack([who, np.full(len(who), tree), at], 1))
            above = kept.regions.parents[at]
            nodes[who] = np.where(above == at, -1, kept.holding[above])
            who = who[nodes[who] >= 0]
        return np.concatenate(rows)

    def _mask(self, tree: int, node: int) -> FoundMask:
        """A region at the size of the plane, without holes, and without the notches that basins
        leave where the border is hardly seen."""
        kept = self._kept[tree]
        pixels = kept.pixels[kept.starts[node] : kept.ends[node]]
        y, x = np.divmod(pixels, self.image.shape[2])
        top, left = int(y.min()), int(x.min())
        image = np.zeros((int(y.max()) - top + 1, int(x.max()) - left + 1), np.uint8)
        image[y - top, x - left] = 1
        image = _without_notches(image, max(1, round(self.diameter * _NOTCH)))
        f, (height, width) = self.factor, self.size
        if f > 1:
            padded = np.pad(image, 1).astype(np.float32)
            large = cv2.resize(padded, None, fx=f, fy=f, interpolation=cv2.INTER_LINEAR)
            image = large[f:-f, f:-f] >= 0.5
        mask = np.asarray(image[: height - top * f, : width - left * f], bool)
        return FoundMask(mask, (top * f, left * f), float(kept.scores[node]))


def _without_notches(image: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """A region closed by a disc, within its box, and filled."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    padded = cv2.morphologyEx(np.pad(image, radius + 1), cv2.MORPH_CLOSE, disc)
    closed = np.ascontiguousarray(padded[radius + 1 : -radius - 1, radius + 1 : -radius - 1])
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(closed, outlines, -1, 1, cv2.FILLED)
    return closed


def reduced(plane: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means over squares of ``factor`` pixels; the edge is repeated where they reach beyond."""
    if factor == 1:
        return np.ascontiguousarray(plane)
    c, height, width = plane.shape
    more = ((0, 0), (0, -height % factor), (0, -width % factor))
    cells = np.pad(plane, more, mode="edge").reshape(
        c, -(-height // factor), factor, -(-width // factor), factor
    )
    return np.ascontiguousarray(cells.mean((2, 4), dtype=np.float32))


def _growers(scene: Scene, learned: bool, most: float) -> list[Callable[[Window], Regions]]:
    """What makes the trees of a window."""
    fine = scene.diameter / 24
    smooth = blurred(scene.image.mean(0), fine)
    slopes = [np.gradient(blurred(x, fine)) if min(x.shape) > 1 else [x * 0] for x in scene.image]
    steep = np.sqrt(sum(s * s for two in slopes for s in two)).astype(np.float32)

    def above(values: NDArray[np.float32]) -> Callable[[Window], Regions]:
        levels = quantised(values)
        return lambda window: above_thresholds(np.ascontiguousarray(levels[window]))

    def between(border: NDArray[np.float32], sigma: float) -> Callable[[Window], Regions]:
        ground = floored(border, sigma)
        return lambda window: merged_basins(border[window], ground[window], most)

    growers = [above(smooth), above(-smooth), between(steep, fine)]
    if learned:
        p, rim = scene.foreground
        soft = blurred(p, fine)
        slope = np.hypot(*np.gradient(soft)) if min(p.shape) > 1 else np.zeros_like(p)
        edge = np.maximum(blurred(rim, fine / 2), _FLAT) + slope
        growers += [
            above(soft),
            above(soft * (1 - blurred(rim, fine / 2))),
            between(np.asarray(edge, np.float32), fine / 2),
            between(np.asarray(edge, np.float32), fine * 1.5),
        ]
    return growers


def _keep(
    regions: Regions,
    measured: Measured,
    scores: NDArray[np.float32],
    limits: tuple[float, float],
) -> _Kept:
    areas, parents = measured.areas, regions.parents
    good = (areas >= limits[0]) & (areas <= limits[1]) & (scores >= _LOWEST)
    # A region gives way to a similar one around it if that is better, and the other way round.
    best = np.full(len(areas), -1, np.int64)
    holding = np.full(len(areas), -1, np.int64)
    keep = good.copy()
    for node in np.flatnonzero(good).tolist():
        one = int(best[node])
        if one >= 0 and areas[one] >= _ALIKE * areas[node]:
            if scores[one] >= scores[node]:
                keep[node] = False
            else:
                keep[one] = False
        mine = node if keep[node] else one
        above = int(parents[node])
        other = int(best[above])
        if other < 0 or areas[mine] > areas[other]:
            best[above] = mine
    for node in range(len(areas) - 1, -1, -1):
        above = int(parents[node])
        holding[node] = node if keep[node] else (holding[above] if above != node else -1)
    pixels, starts, ends = regions.order()
    return _Kept(regions, scores, holding, pixels, starts, ends)


def _ring(one: FoundMask, reach: int, size: tuple[int, int]) -> FoundMask:
    """What lies within ``reach`` pixels around a mask, in the plane."""
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 2 * reach + 1))
    image = np.pad(one.mask, reach).astype(np.uint8)
    ring = cv2.dilate(image, square) > image
    top, left = (c - reach for c in one.corner)
    up, side = max(0, -top), max(0, -left)
    cut = ring[up : size[0] - top, side : size[1] - left]
    return FoundMask(cut, (top + up, left + side), one.score)

"""How good a region is as an object: measured by itself, and learned from examples.

The idea of Arteta et al. 2012 (doi:10.1007/978-3-642-33415-3_43): of all regions in a tree, a
regressor trained on a few marked objects finds those that are objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg_fewshot.filter_bank import blurred
from cellseg_fewshot.regions import Regions
from cellseg_fewshot.small_networks import Ensemble

_MEMBERS = 4
_STEPS = 400
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Scene:
    """What regions are measured on."""

    image: NDArray[np.float32]
    """``(c, y, x)``."""
    foreground: NDArray[np.float32]
    """``(2, y, x)``: probability of an object and of a border; of nothing where unknown."""
    diameter: float
    """Of the objects, in pixels."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Regions by numbers."""

    areas: NDArray[np.float64]
    """``(n,)`` pixels."""
    table: NDArray[np.float32]
    """``(n, d)``."""
    parents: NDArray[np.int64]
    """As of the regions."""


Window = tuple[slice, slice]
"""Of the pixels of a scene."""


@dataclass(frozen=True, slots=True)
class Chart:
    """What is summed over regions to measure them."""

    diameter: float
    places: Sequence[NDArray[np.float32]]
    """``(y, x)``: one, the place, and its products."""
    contents: Sequence[NDArray[np.float32]]
    """``(y, x)``: foreground and its square, border, and channels and their squares."""
    drops: Sequence[NDArray[np.float32]]
    """``(y, x)``: of which the sum is what is lost across the outline."""
    incident: Sequence[NDArray[np.float32]]
    """``(y, x)``: ``pairs`` summed at both pixels of a pair."""
    pairs: tuple[NDArray[np.float32], NDArray[np.float32]]
    """``(k, y - 1, x)`` and ``(k, y, x - 1)`` of neighbours."""

    def cut(self, window: Window) -> Chart:
        """Of a part; what lies beyond counts as outside of all regions."""
        parts = [
            [one[window] for one in some]
            for some in (self.places, self.contents, self.drops, self.incident)
        ]
        y, x = window
        vertical = self.pairs[0][:, y.start : y.stop - 1, x]
        horizontal = self.pairs[1][:, y, x.start : x.stop - 1]
        return Chart(self.diameter, *parts, (vertical, horizontal))


def charted(scene: Scene) -> Chart:
    """What to measure on a scene."""
    height, width = scene.image.shape[1:]
    y, x = (np.asarray(z, np.float32) for z in np.mgrid[:height, :width])
    y, x = (y - height / 2) / scene.diameter, (x - width / 2) / scene.diameter
    p, rim = scene.foreground
    contents = [p, p * p, rim]
    image = [_even(channel) for channel in scene.image]
    for channel in image:
        contents += [channel, channel * channel]
    steep = [_steepness(channel, scene.diameter) for channel in scene.image]
    drops = [_outflow(blurred(z, scene.diameter * s)) for z in (p, *image) for s in (1 / 24, 1 / 8)]
    lines = np.stack([np.ones_like(p), rim, *steep])
    pairs = (lines[:, 1:] + lines[:, :-1]) / 2, (lines[:, :, 1:] + lines[:, :, :-1]) / 2
    places = [np.ones_like(p), y, x, y * y, x * x, y * x]
    return Chart(scene.diameter, places, contents, drops, list(_incident(*pairs)), pairs)


def measure(regions: Regions, chart: Chart, source: NDArray[np.float32]) -> Measured:
    """Size, shape, contents, border and surroundings of regions.

    Args:
        regions: of the pixels of the chart.
        chart: what to measure them on.
        source: ``(s,)``, added to each row: what kind of tree it is.
    """
    parts = (chart.places, chart.contents, chart.drops, chart.incident)
    sums = regions.sums([one for part in parts for one in part])
    ends = np.cumsum([len(part) for part in parts[:-1]]).tolist()
    places, contents, drops, incident = np.split(sums, ends, 1)
    areas = places[:, 0]
    moments, inside = places[:, 1:] / areas[:, None], contents / areas[:, None]
    length = (incident - 2 * regions.inner(*chart.pairs)).clip(0)
    outline = length[:, :1].clip(1)
    shape = _shape(areas / chart.diameter**2, moments, outline[:, 0] / chart.diameter)
    columns = [*shape, inside[:, 2]]
    for k in (0, *range(3, inside.shape[1], 2)):
        columns += [inside[:, k], np.sqrt((inside[:, k + 1] - inside[:, k] ** 2).clip(0))]
    columns += list((drops / outline).T * 10)
    columns += list((length[:, 1:] / outline).T)
    columns += _nesting(regions, areas)
    columns += [np.full(len(areas), one) for one in source]
    return Measured(areas, np.stack(columns, 1).astype(np.float32), regions.parents)


def _even(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Relative to the median, in units of the standard deviation."""
    return np.asarray((channel - np.median(channel)) / max(float(channel.std()), 1e-6), np.float32)


def _steepness(image: NDArray[np.float32], diameter: float) -> NDArray[np.float32]:
    """Gradient magnitude in units of its mean."""
    slope = np.hypot(*_gradient(blurred(image, diameter / 24)))
    return np.asarray(slope / max(float(slope.mean()), 1e-6), np.float32)


def _gradient(image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    if min(image.shape) < 2:
        return [np.zeros_like(image)] * 2
    return list(np.gradient(image))


def _outflow(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much each pixel exceeds its neighbours together: over a region, what lies between
    cancels, and the difference across its outline is left."""
    out = np.zeros_like(image)
    for axis in (0, 1):
        step = np.diff(image, axis=axis)
        one = [slice(None), slice(None)]
        other = one.copy()
        one[axis], other[axis] = slice(1, None), slice(None, -1)
        out[tuple(one)] += step
        out[tuple(other)] -= step
    return out


def _incident(
    vertical: NDArray[np.float32], horizontal: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sums over the pairs of neighbours that each pixel is part of."""
    k = len(vertical)
    out = np.zeros((k, vertical.shape[1] + 1, horizontal.shape[2] + 1), np.float32)
    out[:, 1:] += vertical
    out[:, :-1] += vertical
    out[:, :, 1:] += horizontal
    out[:, :, :-1] += horizontal
    return out


def _shape(
    area: NDArray[np.float64], moments: NDArray[np.float64], outline: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Logarithms of area, of how much of the ellipse of the same moments it would fill, of
    compactness, and of elongation."""
    y, x, yy, xx, yx = moments.T
    tiny = 1e-3 * area / 12 + 1e-6
    yy, xx, yx = (yy - y * y).clip(0) + tiny, (xx - x * x).clip(0) + tiny, yx - y * x
    middle, apart = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    long, short = middle + apart, np.maximum(middle - apart, tiny)
    return [
        np.log(area),
        np.log(area / (4 * np.pi * np.sqrt(long * short))),
        np.log(area / outline**2),
        np.log(long / short) / 2,
    ]


def _nesting(regions: Regions, areas: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """How much the region grows to its parent, shrinks to its largest child, and how long it
    lasts in the hierarchy."""
    above = regions.parents
    largest = np.zeros(len(areas))
    np.maximum.at(largest, above[:-1], areas[:-1])
    return [
        np.log(areas / areas[above]).clip(-3),
        np.log(((largest + 1) / (areas + 1)).clip(0.05)),
        np.log(regions.lasts + 1e-3),
    ]


def unlearned(measured: Measured, sources: int) -> NDArray[np.float32]:
    """Scores without examples: how little a region changes in its hierarchy, and how compact it
    is; ``(n,)``, 0 to 1.

    Args:
        measured: the regions.
        sources: how many columns the source has.
    """
    table = measured.table
    grows, shrinks, lasts = table[:, table.shape[1] - sources - 3 : table.shape[1] - sources].T
    steady = np.exp((grows + shrinks) / 2 + np.minimum(table[:, 2] + 2, 0) / 2)
    return np.asarray((steady * (1 - np.exp(-10 * np.exp(lasts)))).clip(0, 1), np.float32)


def learn_scores(table: NDArray[np.float32], target: NDArray[np.float32],
                 weight: NDArray[np.float32], seed: int) -> Ensemble:  # fmt: skip
    """Networks that predict the IoU of a region with an object.

    Args:
        table: ``(n, d)`` of regions.
        target: ``(n,)`` IoU.
        weight: ``(n,)``, how often a region is drawn.
        seed: of weights and draws.
    """
    inputs = torch.from_numpy(table)
    ensemble = Ensemble.create(inputs, _MEMBERS, 32, 1, seed)
    inputs, targets = ensemble.standardised(inputs), torch.from_numpy(target)
    generator = torch.Generator().manual_seed(seed)
    draws = _MEMBERS * _BATCH * _STEPS
    rows = torch.multinomial(torch.from_numpy(weight), draws, True, generator=generator)
    batches = rows.reshape(_STEPS, _MEMBERS, _BATCH)

    def loss(step: int) -> torch.Tensor:
        index = batches[step]
        found = ensemble.logits(inputs[index])[..., 0]
        error = torch.nn.functional.binary_cross_entropy_with_logits(found, targets[index])
        return error * _MEMBERS

    ensemble.train(loss, _STEPS, 0.01)
    return ensemble

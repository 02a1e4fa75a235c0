"""Hierarchies of nested regions: all that a plane offers as an object, before any is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import higra as hg  # noqa: TID253
import numpy as np
from numpy.typing import NDArray

from cellseg_fewshot.filter_bank import blurred

_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Regions:
    """A tree of regions of pixels; the children of a region lie in it."""

    parents: NDArray[np.int64]
    """``(n,)``, each larger than the index itself; the root is its own parent."""
    lasts: NDArray[np.float64]
    """``(n,)``, for how much of the hierarchy: by how much the threshold, or the strength of
    borders, changes until the region is part of its parent."""
    smallest: NDArray[np.int64]
    """``(y, x)``: the smallest region that each pixel lies in."""
    edges: tuple[NDArray[np.int64], NDArray[np.int64]]
    """The smallest region that each pixel lies in together with its neighbour below, ``(y - 1,
    x)``, and to the right, ``(y, x - 1)``."""

    def sums(self, maps: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Sums over the pixels of each region: ``(n, k)`` of maps ``(k, y, x)``."""
        own = _counted(self.smallest, maps, len(self.parents))
        return self._raised(own)

    def inner(
        self, vertical: Iterable[NDArray[np.float32]], horizontal: Iterable[NDArray[np.float32]]
    ) -> NDArray[np.float64]:
        """Sums over the pairs of neighbours within each region: ``(n, k)`` of ``(k, y - 1, x)`` and
        ``(k, y, x - 1)``."""
        count = len(self.parents)
        own = _counted(self.edges[0], vertical, count) + _counted(self.edges[1], horizontal, count)
        return self._raised(own)

    def _raised(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        parents = self.parents.tolist()
        for node in range(len(parents) - 1):
            own[parents[node]] += own[node]
        return own

    def order(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Pixels such that each region is a run of them: the pixels, where each run begins, and
        where it ends."""
        own = np.bincount(self.smallest.ravel(), minlength=len(self.parents))
        sizes = self._raised(own[:, None].astype(np.float64))[:, 0].astype(np.int64)
        starts, filled = np.zeros(len(sizes), np.int64), own.copy()
        parents = self.parents.tolist()
        for node in range(len(sizes) - 2, -1, -1):
            above = parents[node]
            starts[node] = starts[above] + filled[above]
            filled[above] += sizes[node]
        # Own pixels come first, so sorting by the start keeps each region together.
        pixels = np.argsort(starts[self.smallest.ravel()], kind="stable")
        return pixels, starts, starts + sizes


def _counted(
    nodes: NDArray[np.int64], maps: Iterable[NDArray[np.float32]], count: int
) -> NDArray[np.float64]:
    index = nodes.ravel()
    return np.stack([np.bincount(index, x.ravel(), count) for x in maps], 1)


def quantised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(y, x)`` in 64 steps between its extremes."""
    low, high = float(image.min()), float(image.max())
    return np.round((image - low) / max(high - low, 1e-9) * (_LEVELS - 1)).astype(np.float32)


def above_thresholds(levels: NDArray[np.float32]) -> Regions:
    """Connected regions above each threshold of a quantised map ``(y, x)``: the max-tree (Salembier
    et al. 1998, doi:10.1109/83.663500)."""
    graph = hg.get_4_adjacency_graph(levels.shape)
    tree, altitudes = hg.component_tree_max_tree(graph, levels)
    count = levels.size
    parents = np.asarray(tree.parents(), np.int64) - count
    smallest, parents = parents[:count].reshape(levels.shape), parents[count:]
    # Neighbours are together from the level of the lower one on, which is a pixel of that region.
    edges = (
        np.where(levels[1:] <= levels[:-1], smallest[1:], smallest[:-1]),
        np.where(levels[:, 1:] <= levels[:, :-1], smallest[:, 1:], smallest[:, :-1]),
    )
    scaled = (altitudes[count:] / (_LEVELS - 1)).astype(np.float64)
    return Regions(parents, np.abs(scaled[parents] - scaled), smallest, edges)


def floored(border: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """A map of borders smoothed, with the lowest quarter of the values as one level, so that noise
    where nothing is does not make basins."""
    smooth = blurred(border, sigma)
    return np.maximum(smooth, np.quantile(smooth, 0.25))


def merged_basins(border: NDArray[np.float32], smooth: NDArray[np.float32], most: float) -> Regions:
    """Basins of a map of borders, merged by the mean strength of what separates them, as the
    regions of Arbelaez et al. 2011 (doi:10.1109/TPAMI.2010.161) are.

    Args:
        border: ``(y, x)``; the higher, the more of a border.
        smooth: the same, smoothed, of which basins are those of the watershed.
        most: pixels beyond which a region is of no interest: all such are one, the root.
    """
    from skimage.segmentation import watershed

    basins = np.asarray(watershed(smooth), np.int64)
    basins -= basins.min()
    count = int(basins.max()) + 1
    pairs = ((basins[:-1], basins[1:]), (basins[:, :-1], basins[:, 1:]))
    keys = [np.minimum(a, b) * count + np.maximum(a, b) for a, b in pairs]
    across = [a != b for a, b in pairs]
    means = ((border[:-1] + border[1:]) / 2, (border[:, :-1] + border[:, 1:]) / 2)
    some = np.concatenate([key[where] for key, where in zip(keys, across, strict=True)])
    if not len(some):
        whole = np.zeros(border.shape, np.int64)
        return Regions(np.zeros(1, np.int64), np.zeros(1), whole, (whole[1:], whole[:, 1:]))
    unique, which = np.unique(some, return_inverse=True)
    low, high = np.divmod(unique, count)
    strength = np.concatenate([mean[where] for mean, where in zip(means, across, strict=True)])
    parents, lasts = _merged(
        np.bincount(basins.ravel(), minlength=count),
        (low, high),
        np.bincount(which, strength),
        np.bincount(which),
        most,
    )
    common = np.asarray(hg.Tree(parents).lowest_common_ancestor(low, high), np.int64)[which]
    edges = [a.copy() for a, _ in pairs]
    edges[0][across[0]], edges[1][across[1]] = np.split(common, [np.count_nonzero(across[0])])
    return Regions(parents, lasts, basins, (edges[0], edges[1]))


def _merged(
    sizes: NDArray[np.int64],
    ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    strength: NDArray[np.float64],
    length: NDArray[np.int64],
    most: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The binary partition tree with average linkage: parents, and how long each region lasts.

    Two regions that are each other's best can merge at any time, whatever happens to the others,
    because a mean is never below the lower of its parts. So all such pairs merge at once, and all
    regions whose best is one beyond ``most`` end at once.

    Args:
        sizes: ``(n,)`` pixels of each basin.
        ends: the two basins of each border.
        strength: summed over each border.
        length: of each border.
        most: see ``merged_basins``.
    """
    count = len(sizes)
    parents, area = np.full(2 * count, -1), np.zeros(2 * count)
    begins, until, over = np.zeros(2 * count), np.zeros(2 * count), np.zeros(2 * count, bool)
    area[:count], over[:count] = sizes, sizes > most
    (a, b), sums, lengths, nodes = ends, strength, length.astype(np.float64), count
    while True:
        open_ = ~(over[a] & over[b])
        a, b, sums, lengths = a[open_], b[open_], sums[open_], lengths[open_]
        if not len(a):
            break
        means = sums / lengths
        order = np.argsort(-means, kind="stable")
        best, each = np.empty(nodes, np.int64), np.arange(len(a))
        # The last assignment counts, which is that of the weakest border.
        best[np.stack([a[order], b[order]], 1)] = order[:, None]
        first, second = (best[a] == each) & ~over[a], (best[b] == each) & ~over[b]
        ending = np.concatenate([a[first & over[b]], b[second & over[a]]])
        until[ending] = np.concatenate([means[first & over[b]], means[second & over[a]]])
        pairs = first & second
        new = np.arange(nodes, nodes + np.count_nonzero(pairs))
        nodes += len(new)
        now = np.arange(nodes)
        for end in (a[pairs], b[pairs]):
            parents[end] = now[end] = new
            until[end] = means[pairs]
            area[new] += area[end]
        begins[new] = until[new] = means[pairs]
        over[ending], over[new] = True, area[new] > most
        a, b = now[a], now[b]
        apart = a != b
        keys = np.minimum(a, b)[apart] * nodes + np.maximum(a, b)[apart]
        keys, which = np.unique(keys, return_inverse=True)
        sums, lengths = (np.bincount(which, x[apart], len(keys)) for x in (sums, lengths))
        a, b = np.divmod(keys, nodes)
    nodes += int(over.any())
    parents = np.where(parents < 0, nodes - 1, parents)[:nodes]
    return parents, np.maximum(until - begins, 0)[:nodes]

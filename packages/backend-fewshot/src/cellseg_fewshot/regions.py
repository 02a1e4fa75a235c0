"""Hierarchies of nested regions: all that a plane offers as an object, before any is chosen."""

from __future__ import annotations

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
    altitudes: NDArray[np.float64]
    """``(n,)``, where in the hierarchy: a threshold, or the strength of a border."""
    smallest: NDArray[np.int64]
    """``(y, x)``: the smallest region that each pixel lies in."""
    edges: tuple[NDArray[np.int64], NDArray[np.int64]]
    """The smallest region that each pixel lies in together with its neighbour below, ``(y - 1,
    x)``, and to the right, ``(y, x - 1)``."""

    def sums(self, maps: NDArray[np.float32]) -> NDArray[np.float64]:
        """Sums over the pixels of each region: ``(n, k)`` of maps ``(k, y, x)``."""
        own = _counted(self.smallest, maps, len(self.parents))
        return self._raised(own)

    def inner(
        self, vertical: NDArray[np.float32], horizontal: NDArray[np.float32]
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
    nodes: NDArray[np.int64], maps: NDArray[np.float32], count: int
) -> NDArray[np.float64]:
    index = nodes.ravel()
    return np.stack([np.bincount(index, x.ravel(), count) for x in maps], 1)


def above_thresholds(image: NDArray[np.float32]) -> Regions:
    """Connected regions above each of 64 thresholds between the extremes of ``(y, x)``: the
    max-tree (Salembier et al. 1998, doi:10.1109/83.663500)."""
    low, high = float(image.min()), float(image.max())
    levels = np.round((image - low) / max(high - low, 1e-9) * (_LEVELS - 1)).astype(np.float32)
    graph = hg.get_4_adjacency_graph(image.shape)
    tree, altitudes = hg.component_tree_max_tree(graph, levels)
    count = image.size
    smallest = (tree.parents()[:count] - count).reshape(image.shape)
    # Neighbours are together from the level of the lower one on, which is a pixel of that region.
    edges = (
        np.where(levels[1:] <= levels[:-1], smallest[1:], smallest[:-1]),
        np.where(levels[:, 1:] <= levels[:, :-1], smallest[:, 1:], smallest[:, :-1]),
    )
    scaled = altitudes[count:] / (_LEVELS - 1)
    return Regions(tree.parents()[count:] - count, scaled.astype(np.float64), smallest, edges)


def merged_basins(border: NDArray[np.float32], sigma: float) -> Regions:
    """Basins of a map of borders, merged by the mean strength of what separates them.

    The watershed of the smoothed map, in which the lowest quarter of the values is one level, so
    that noise where nothing is does not make basins; then a binary partition tree with average
    linkage, as the regions of Arbelaez et al. 2011 (doi:10.1109/TPAMI.2010.161) are merged.

    Args:
        border: ``(y, x)``; the higher, the more of a border.
        sigma: of the smoothing before the watershed, in pixels.
    """
    from skimage.segmentation import watershed

    smooth = blurred(border, sigma)
    smooth = np.maximum(smooth, np.quantile(smooth, 0.25))
    basins = watershed(smooth).astype(np.int64) - 1
    graph = hg.get_4_adjacency_graph(border.shape)
    rag = hg.make_region_adjacency_graph_from_labelisation(graph, basins)
    weights = hg.weight_graph(graph, border.ravel().astype(np.float64), hg.WeightFunction.mean)
    basins = np.asarray(hg.rag_back_project_vertex_weights(rag, np.arange(rag.num_vertices())))
    basins = basins.reshape(border.shape).astype(np.int64)
    strength = hg.rag_accumulate_on_edges(rag, hg.Accumulators.mean, weights)
    lengths = hg.rag_accumulate_on_edges(rag, hg.Accumulators.sum, np.ones_like(weights))
    if not rag.num_edges():
        whole = np.zeros(border.shape, np.int64)
        return Regions(np.zeros(1, np.int64), np.zeros(1), whole, (whole[1:], whole[:, 1:]))
    tree, altitudes = hg.binary_partition_tree_average_linkage(rag, strength, lengths)
    edges = tuple(
        np.asarray(tree.lowest_common_ancestor(a.ravel(), b.ravel()), np.int64).reshape(a.shape)
        for a, b in ((basins[1:], basins[:-1]), (basins[:, 1:], basins[:, :-1]))
    )
    parents = np.asarray(tree.parents(), np.int64)
    return Regions(parents, np.asarray(altitudes, np.float64), basins, (edges[0], edges[1]))

"""Average-linkage agglomeration: flood from every deepest place, then join across weak borders.

Bailoni et al., GASP, a generalized framework for agglomerative clustering of signed graphs,
arXiv:1906.11713.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg_vista.instances.graph import Labels
from cellseg_vista.instances.watershed import flooded, seeded
from cellseg_vista.predict_options import VistaPredictOptions

_SIGMA = 0.7
"""Of the smoothing of the depth before its maxima are looked for, in voxels."""
_WINDOW = 5
"""Edge of the cube in which a seed is the deepest place, in voxels."""


def agglomerate(
    mask: NDArray[np.bool_], distance: NDArray[np.float32], options: VistaPredictOptions
) -> Labels:
    """Cut one class's foreground into objects.

    Every local maximum of the depth floods the foreground around it. Then, the weakest
    border first, touching pieces are joined while the mean of 1 - depth over the faces of the
    voxels between them stays below ``join_threshold``; a joint border is the mean of its parts,
    weighted by their faces.

    Args:
        mask: ``(*s)`` the foreground.
        distance: ``(*s)``.
        options: thresholds.
    """
    from bioimage_cpp.graph import region_adjacency_graph
    from bioimage_cpp.graph.agglomeration import GaspClusterPolicy
    from bioimage_cpp.graph.features import edge_map_features

    pieces = flooded(distance, seeded(_maxima(mask, distance), mask), mask)
    graph = region_adjacency_graph(pieces.view(np.uint32), number_of_threads=1)
    if not graph.number_of_edges:
        return pieces
    border = edge_map_features(graph, pieces.view(np.uint32), 1 - distance, number_of_threads=1)
    inside = graph.uv_ids().min(axis=1) > 0
    groups = GaspClusterPolicy(linkage="mean").optimize(
        graph,
        np.where(inside, options.join_threshold - border[:, 0], -1.0),
        edge_sizes=border[:, 1].astype(np.float64),
        is_mergeable=inside,
    )
    # The background's node stands alone; its group may have any number.
    groups = np.asarray(groups).astype(np.int32) + 1
    groups[0] = 0
    found: Labels = groups[pieces]
    return found


def _maxima(mask: NDArray[np.bool_], distance: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The deepest places of their surroundings."""
    from scipy.ndimage import gaussian_filter, maximum_filter

    smooth = gaussian_filter(np.where(mask, distance, 0), _SIGMA)
    highest: NDArray[np.bool_] = mask & (smooth == maximum_filter(smooth, _WINDOW))
    return highest

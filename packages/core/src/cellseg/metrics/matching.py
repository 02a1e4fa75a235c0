"""Which predicted object is which true object, at a threshold on their intersection over union."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from cellseg.metrics.table import OverlapTable


@dataclass(frozen=True, eq=False)
class Matches:
    """The true positives: one entry for each pair of objects that were matched."""

    rows: NDArray[np.intp]
    """Positions in ``OverlapTable.truth_ids``; each at most once."""
    columns: NDArray[np.intp]
    """Positions in ``OverlapTable.prediction_ids``; each at most once."""
    iou: NDArray[np.float64]
    """Intersection over union of each pair, at least the threshold."""


def match(table: OverlapTable, threshold: float) -> Matches:
    """Pair objects one to one, as many as have an IoU of at least ``threshold``.

    From 0.5 on an object has one partner at most (two only where it is cut into exact halves, and
    then either will do). Below, the assignment has the most pairs and, among those, the highest
    sum of IoUs, as in StarDist's ``matching`` (Schmidt et al. 2018,
    doi:10.1007/978-3-030-00934-2_30).

    Args:
        table: What ``overlaps`` counted.
        threshold: Lowest intersection over union of a match, above 0 and at most 1.
    """
    iou = table.iou
    pairs = np.flatnonzero(iou >= threshold)
    if threshold < 0.5:
        pairs = _best(table, iou, threshold)
    else:
        pairs = pairs[_first(table.rows[pairs])]
        pairs = pairs[_first(table.columns[pairs])]
    return Matches(table.rows[pairs], table.columns[pairs], iou[pairs])


def _first(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where each value occurs for the first time."""
    first = np.zeros(values.size, np.bool_)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _best(table: OverlapTable, iou: NDArray[np.float64], threshold: float) -> NDArray[np.intp]:
    """Positions of the matched pairs in an optimal assignment."""
    good = iou >= threshold
    contested = _in_contested_groups(table, good)
    certain = np.flatnonzero(good & ~contested)
    if not contested.any():
        return certain
    pairs = np.flatnonzero(contested)
    rows, row_of = np.unique(table.rows[pairs], return_inverse=True)
    columns, column_of = np.unique(table.columns[pairs], return_inverse=True)
    # More pairs first, then more IoU: the sum of all IoUs weighs less than one pair.
    gain = good[pairs] + iou[pairs] / (2 * min(rows.size, columns.size))
    # One spare column for each row, of no gain, lets a row stay alone. Weights must not be 0.
    spare = np.arange(rows.size)
    weights = np.concatenate([2 - gain, np.full(rows.size, 2.0)])
    where = (
        np.concatenate([row_of, spare]),
        np.concatenate([column_of, columns.size + spare]),
    )
    graph = coo_array((weights, where), shape=(rows.size, columns.size + rows.size)).tocsr()
    row, column = min_weight_full_bipartite_matching(graph)
    chosen = np.zeros(graph.shape[0], np.intp)
    chosen[row] = column
    matched = pairs[chosen[row_of] == column_of]
    return np.sort(np.concatenate([certain, matched[good[matched]]]))


def _in_contested_groups(table: OverlapTable, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which pairs belong to a group of touching objects in which two good pairs share an object.

    Everywhere else the good pairs are the answer.
    """
    n_true, n_pred = table.truth_ids.size, table.prediction_ids.size
    edges = coo_array(
        (np.ones(table.rows.size, np.int8), (table.rows, n_true + table.columns)),
        shape=(n_true + n_pred, n_true + n_pred),
    )
    _, group = connected_components(edges, directed=False)
    rows, columns = table.rows[good], table.columns[good]
    twice = (np.bincount(rows, minlength=n_true) > 1)[rows]
    twice |= (np.bincount(columns, minlength=n_pred) > 1)[columns]
    return np.isin(group[table.rows], group[rows[twice]])

"""The one table that all scores come from: which objects of two label images overlap, and how much.

It is sparse and made block by block: memory grows with the number of objects that touch, never
with the number of voxels or with objects times objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from cellseg.errors import DataError

if TYPE_CHECKING:
    from cellseg.data import LazyArray

_BLOCK_VOXELS = 1 << 21
_PIECE_VOXELS = 1 << 19  # fits in a processor's cache, which doubles the speed
_PENDING_TRIPLES = 1 << 18

Ids: TypeAlias = NDArray[np.uint64]
Counts: TypeAlias = NDArray[np.int64]
_Triples: TypeAlias = tuple[Ids, Ids, Counts]
"""Truth id, prediction id (0 is background), and the number of voxels with both."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OverlapTable:
    """How the objects of a prediction overlap those of the truth, in voxels.

    Only pairs of objects that share a voxel are listed; overlaps with the background follow from
    the sizes. All arrays are one-dimensional.
    """

    voxels: int
    """Voxels compared, background included."""
    truth_ids: Ids
    """Labels in the truth, sorted, without 0."""
    prediction_ids: Ids
    """Labels in the prediction, sorted, without 0."""
    truth_sizes: Counts
    """Voxels of each object in ``truth_ids``."""
    prediction_sizes: Counts
    """Voxels of each object in ``prediction_ids``."""
    rows: NDArray[np.intp]
    """For each overlapping pair, the position of its truth object in ``truth_ids``; sorted."""
    columns: NDArray[np.intp]
    """For each overlapping pair, the position of its predicted object in ``prediction_ids``."""
    shared: Counts
    """For each overlapping pair, the voxels that both objects cover; at least 1."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, above 0 and at most 1."""
        union = self.truth_sizes[self.rows] + self.prediction_sizes[self.columns] - self.shared
        return self.shared / union

    def at_least(self, min_size: int) -> OverlapTable:
        """This table without the objects of fewer than ``min_size`` voxels.

        They become background, in the truth and in the prediction alike.
        """
        return self._keep(self.truth_sizes >= min_size, self.prediction_sizes >= min_size)

    def renamed(
        self, *, truth_ids: Ids | None = None, prediction_ids: Ids | None = None
    ) -> OverlapTable:
        """This table with other ids for the same objects.

        Args:
            truth_ids: the new ones in the order of the old ones, each once; None keeps the old.
            prediction_ids: the same for the prediction.
        """
        true = self.truth_ids if truth_ids is None else truth_ids
        found = self.prediction_ids if prediction_ids is None else prediction_ids
        true_order, found_order = np.argsort(true), np.argsort(found)
        rows = np.argsort(true_order)[self.rows]
        columns = np.argsort(found_order)[self.columns]
        pairs = np.lexsort((columns, rows))
        return OverlapTable(
            voxels=self.voxels,
            truth_ids=true[true_order],
            prediction_ids=found[found_order],
            truth_sizes=self.truth_sizes[true_order],
            prediction_sizes=self.prediction_sizes[found_order],
            rows=rows[pairs],
            columns=columns[pairs],
            shared=self.shared[pairs],
        )

    def without_label(self, label: int) -> OverlapTable:
        """This table without the voxels whose truth is ``label``: nobody knows what is there.

        A predicted object that lies by more than half in them is dropped, the others lose their
        voxels there, as in panoptic segmentation (Kirillov et al. 2019,
        doi:10.1109/CVPR.2019.00963).
        """
        found = np.flatnonzero(self.truth_ids == label)
        if not found.size:
            return self
        row = int(found[0])
        pairs = self.rows == row
        unknown = np.zeros_like(self.prediction_sizes)
        unknown[self.columns[pairs]] = self.shared[pairs]
        known = OverlapTable(
            voxels=self.voxels - int(self.truth_sizes[row]),
            truth_ids=self.truth_ids,
            prediction_ids=self.prediction_ids,
            truth_sizes=self.truth_sizes,
            prediction_sizes=self.prediction_sizes - unknown,
            rows=self.rows,
            columns=self.columns,
            shared=self.shared,
        )
        return known._keep(self.truth_ids != label, 2 * unknown <= self.prediction_sizes)

    def _keep(self, truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> OverlapTable:
        pairs = truth[self.rows] & prediction[self.columns]
        return OverlapTable(
            voxels=self.voxels,
            truth_ids=self.truth_ids[truth],
            prediction_ids=self.prediction_ids[prediction],
            truth_sizes=self.truth_sizes[truth],
            prediction_sizes=self.prediction_sizes[prediction],
            rows=(np.cumsum(truth) - 1)[self.rows[pairs]],
            columns=(np.cumsum(prediction) - 1)[self.columns[pairs]],
            shared=self.shared[pairs],
        )


def overlaps(prediction: LazyArray, truth: LazyArray) -> OverlapTable:
    """Count the voxels that each object of ``prediction`` shares with each object of ``truth``.

    Args:
        prediction: Label image of any number of dimensions and any integer type, 0 is background.
            numpy or lazy: it is read block by block, each block once.
        truth: The true labels, of the same shape; the type may differ.

    Raises:
        DataError: the shapes differ, the type is not an integer, or a label is negative.
    """
    if prediction.shape != truth.shape:
        raise DataError(
            f"The prediction has the shape {_by(prediction.shape)}, "
            f"the truth {_by(truth.shape)}; they must be equal."
        )
    for name, array in (("prediction", prediction), ("truth", truth)):
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                f"The {name} is {array.dtype}, not a label image of whole numbers.",
                hint="Each object needs its own whole number, and the background 0.",
            )
    pending: list[_Triples] = []
    waiting = 0
    for block in _blocks(prediction, truth):
        t, p = truth[block].ravel(), prediction[block].ravel()
        for start in range(0, t.size, _PIECE_VOXELS):
            piece = slice(start, start + _PIECE_VOXELS)
            pending.append(_count(t[piece], p[piece]))
            waiting += pending[-1][0].size
        # Merging only when as much again has come in keeps all merges cheaper than the reading.
        if waiting > max(_PENDING_TRIPLES, 2 * pending[0][0].size):
            pending = [_merged(pending)]
            waiting = pending[0][0].size
    return _table(_merged(pending), math.prod(truth.shape))


def _count(t: NDArray[Any], p: NDArray[Any]) -> _Triples:
    """The triples of two equally long rows of labels, from runs of equal pairs."""
    change = t[1:] != t[:-1]
    change |= p[1:] != p[:-1]
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    lengths = np.diff(starts, append=t.size)
    return _summed(t[starts], p[starts], lengths)


def _merged(parts: Sequence[_Triples]) -> _Triples:
    if not parts:
        nothing = np.empty(0, np.uint64)
        return nothing, nothing, np.empty(0, np.int64)
    if len(parts) == 1:
        return parts[0]
    t, p, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _summed(t, p, counts)


def _summed(t: NDArray[Any], p: NDArray[Any], counts: Counts) -> _Triples:
    """Add up the counts of equal pairs; the result is sorted by truth id, then prediction id."""
    t_index, t_ids = _dense(t)
    p_index, p_ids = _dense(p)
    coo = coo_array((counts, (t_index, p_index)), shape=(t_ids.size, p_ids.size))
    # Told that there are no duplicates, scipy sorts them (twice, by counting) without looking for
    # any; that is several times faster than its own search, and they are summed in the end.
    coo.has_canonical_format = True
    table = coo.tocsc().tocsr()
    table.sum_duplicates()
    rows = np.repeat(np.arange(t_ids.size), np.diff(table.indptr))
    return t_ids[rows], p_ids[table.indices], table.data.astype(np.int64, copy=False)


def _dense(ids: NDArray[Any]) -> tuple[NDArray[Any], Ids]:
    """``(index, ids)`` so that ``ids[index]`` is the input, with few entries in ``ids``."""
    if ids.dtype.kind == "i" and ids.min() < 0:
        raise DataError(
            f"A label image has the label {ids.min()}; labels are 0 for background, and above.",
            hint="Ignored regions need a label above 0: name it with --ignore-label.",
        )
    highest = int(ids.max())
    if highest < max(1 << 16, 4 * ids.size):
        return ids.astype(np.int32, copy=False), np.arange(highest + 1, dtype=np.uint64)
    unique, index = fastremap.unique(ids, return_inverse=True)
    return index, unique.astype(np.uint64)


def _table(triples: _Triples, voxels: int) -> OverlapTable:
    t, p, counts = triples
    t_index, t_ids = _dense(t) if t.size else (np.empty(0, np.intp), t)
    p_index, p_ids = _dense(p) if p.size else (np.empty(0, np.intp), p)
    t_sizes = _sums(t_index, counts, t_ids.size)
    p_sizes = _sums(p_index, counts, p_ids.size)
    # Ids that are not there (a dense index has gaps) and the background are not objects.
    t_there, p_there = (t_sizes > 0) & (t_ids != 0), (p_sizes > 0) & (p_ids != 0)
    objects = (t != 0) & (p != 0)
    return OverlapTable(
        voxels=voxels,
        truth_ids=t_ids[t_there],
        prediction_ids=p_ids[p_there],
        truth_sizes=t_sizes[t_there],
        prediction_sizes=p_sizes[p_there],
        rows=(np.cumsum(t_there) - 1)[t_index[objects]],
        columns=(np.cumsum(p_there) - 1)[p_index[objects]],
        shared=counts[objects],
    )


def _sums(index: NDArray[Any], counts: Counts, length: int) -> Counts:
    # bincount adds up in float64: exact below 2**53 voxels.
    return np.bincount(index, weights=counts, minlength=length).astype(np.int64)


def _blocks(*arrays: LazyArray) -> Iterator[tuple[slice, ...]]:
    """Slices that cover the arrays' common shape, in pieces of whole chunks where there are any."""
    shape = arrays[0].shape
    if not math.prod(shape):
        return
    size = [1] * len(shape)
    for array in arrays:
        chunks = getattr(array, "chunks", None) or (1,) * len(shape)
        size = [min(max(a, b), n) for a, b, n in zip(size, chunks, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        room = _BLOCK_VOXELS // math.prod(size)
        size[axis] = min(shape[axis], size[axis] * max(room, 1))
    starts = [range(0, n, step) for n, step in zip(shape, size, strict=True)]
    for corner in product(*starts):
        yield tuple(
            slice(at, min(at + step, n)) for at, step, n in zip(corner, size, shape, strict=True)
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

"""Scores of tracks, as the Cell Tracking Challenge computes them, all from the overlap tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cellseg.errors import DataError
from cellseg.metrics.biological import (
    DIVISION_TOLERANCES,
    branching,
    cell_cycle_accuracy,
    complete_tracks,
    track_fractions,
)
from cellseg.metrics.detections import Detected, Detections, Index, covered
from cellseg.metrics.scores import Scores
from cellseg.metrics.table import OverlapTable
from cellseg.tracks import Lineage, faults

_COUNTED: tuple[str, ...] = (
    "frames",
    "n_true",
    "n_pred",
    "tracks_true",
    "tracks_pred",
    "divisions_true",
    "divisions_pred",
)
_BY_TOLERANCE = (
    *("division_precision", "division_recall", "division_f1"),
    *("BC", "BIO", "OP_CLB", "tp_div", "fp_div", "fn_div"),
)
_NAMES: tuple[str, ...] = (
    *("SEG", "DET", "TRA", "LNK", "OP_CSB", "OP_CTB", "CT", "TF", "CCA"),
    *(f"{name}({i})" for name in _BY_TOLERANCE for i in DIVISION_TOLERANCES),
    *("AOGM", "AOGM_0", "AOGM_NS", "AOGM_FN", "AOGM_FP", "AOGM_ED", "AOGM_EA", "AOGM_EC"),
)


@dataclass(frozen=True, kw_only=True)
class TrackScores:
    """The scores of one movie."""

    scores: Scores
    """By name, see ``score_tracks``. NaN where nothing can be measured; where the prediction is not
    valid, only what is counted is a number."""
    problems: tuple[str, ...] = ()
    """What makes the prediction invalid, one sentence each."""
    errors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """How many errors there are in each frame, by the short names of the operations that mend them
    (see ``GraphOperations``); empty where the prediction is not valid."""

    @property
    def valid(self) -> bool:
        """Whether the tracks and the masks of the prediction agree."""
        return not self.problems


@dataclass(frozen=True, eq=False, kw_only=True)
class GraphOperations:
    """What turns the graph of the prediction into that of the truth (Matula et al. 2015).

    Each operation is listed by the frame of its object, or of the later object of its link.
    """

    splits: Index
    """NS: true objects that share their predicted one with another, but for one of each group."""
    false_negatives: Index
    """FN: true objects that no predicted one covers by more than half."""
    false_positives: Index
    """FP: predicted objects that cover no true one by more than half."""
    edges_deleted: Index
    """ED: links of the prediction that the truth does not have."""
    edges_added: Index
    """EA: links of the truth that the prediction does not have."""
    edges_changed: Index
    """EC: links within a track in one of them, and from mother to daughter in the other."""
    vertices: int
    """Objects of the truth."""
    edges: int
    """Links of the truth."""

    def by_frame(self, frames: int) -> Mapping[str, tuple[int, ...]]:
        """How many operations each frame needs, by their short names."""
        return {
            name: tuple(np.bincount(at, minlength=frames).tolist())
            for name, at in self._named.items()
        }

    def scores(self) -> Scores:
        """DET, TRA and LNK, and the measure (AOGM) that they are made of."""
        count = {name: at.size for name, at in self._named.items()}
        of_vertices = 5 * count["NS"] + 10 * count["FN"] + count["FP"]
        of_edges = count["ED"] + 1.5 * count["EA"] + count["EC"]
        cost, whole = of_vertices + of_edges, 10 * self.vertices + 1.5 * self.edges
        return {
            "DET": _normalised(of_vertices, 10 * self.vertices),
            "TRA": _normalised(cost, whole),
            "LNK": _normalised(of_edges, 1.5 * self.edges),
            "AOGM": cost,
            "AOGM_0": whole,
            **{f"AOGM_{name}": number for name, number in count.items()},
        }

    @property
    def _named(self) -> Mapping[str, Index]:
        return {
            "NS": self.splits,
            "FN": self.false_negatives,
            "FP": self.false_positives,
            "ED": self.edges_deleted,
            "EA": self.edges_added,
            "EC": self.edges_changed,
        }


def score_tracks(
    tables: Sequence[OverlapTable],
    prediction: Lineage,
    truth: Lineage,
    segmentation: Sequence[OverlapTable] | None = None,
) -> TrackScores:
    """Score the tracks of a movie; the numbers are those of py-ctcmetrics 1.3.3.

    A true object counts as detected by the predicted one that covers more than half of it.

    - ``DET``, ``TRA``, ``LNK``: 1 minus the cost of the operations on vertices, on all, on edges
      that turn the predicted graph into the true one, over the cost of making it from nothing
      (Matula et al. 2015, doi:10.1371/journal.pone.0144959), and the counts of the operations:
      ``AOGM``, ``AOGM_0``, ``AOGM_NS``, ``AOGM_FN``, ``AOGM_FP``, ``AOGM_ED``, ``AOGM_EA``,
      ``AOGM_EC``.
    - ``SEG``: mean over the true objects of the IoU with the predicted object that detects them, 0
      where none does (Maška et al. 2014, doi:10.1093/bioinformatics/btu080).
    - ``OP_CSB`` = (SEG + DET) / 2, ``OP_CTB`` = (SEG + TRA) / 2 and
      ``OP_CLB(i)`` = (LNK + BIO(i)) / 2.
    - ``CT``, complete tracks: F1 of the tracks that are found from the first frame to the last and
      by one track of the same first and last frame.
    - ``TF``, track fractions: the longest part of a true track that one predicted track follows,
      mean over the tracks that are found at all.
    - ``CCA``: 1 minus the greatest difference of the cumulative distributions of the lengths of the
      tracks that begin and end with a division.
    - ``division_precision(i)``, ``division_recall(i)``, ``division_f1(i)``: of the divisions whose
      mother and daughters are found as such, within ``i`` frames, ``i`` from 0 to 3.
      ``BC(i)``, branching correctness, is the F1; ``tp_div(i)``, ``fp_div(i)``, ``fn_div(i)`` the
      counts.
    - ``BIO(i)``: mean of those of CT, TF, BC(i) and CCA that can be measured.

    CT, TF, BC and CCA are from Ulman et al. 2017, doi:10.1038/nmeth.4473.

    Args:
        tables: what ``overlaps`` counted in each frame, where the ids are those of tracks.
        prediction: all predicted tracks.
        truth: all true tracks.
        segmentation: what ``overlaps`` counted for ``SEG``, in any order; None where no truth was
            drawn for it: ``SEG``, ``OP_CSB`` and ``OP_CTB`` are NaN.

    Returns:
        The scores. A prediction whose tracks and masks do not agree gets none, but the reasons.

    Raises:
        DataError: the true tracks do not fit the true masks.
    """
    true = Detections.of([table.truth_ids for table in tables])
    found = Detections.of([table.prediction_ids for table in tables])
    scores = dict(_counts(true, found, prediction, truth))
    true_parents = _parents_in_truth(true, truth)
    present = [table.prediction_ids.tolist() for table in tables]
    problems = [fault.message for fault in faults(prediction, present) if fault.breaks]
    if not prediction.tracks:
        problems.insert(0, "There is no track.")
    if problems:
        nothing = dict.fromkeys(_NAMES, math.nan)
        return TrackScores(scores=scores | nothing, problems=tuple(problems))
    detected = Detected.of(tables, true, found)
    operations = _operations(true, found, detected, prediction, true_parents)
    scores |= {**operations.scores(), "SEG": _seg(segmentation)}
    scores["CT"] = complete_tracks(true, found, detected, prediction, truth)
    scores["TF"] = track_fractions(true, found, detected, truth)
    scores["CCA"] = cell_cycle_accuracy(prediction, truth)
    scores |= branching(true, found, detected, prediction, truth)
    for i in DIVISION_TOLERANCES:
        parts = [scores[name] for name in ("CT", "TF", f"BC({i})", "CCA")]
        there = [part for part in parts if not math.isnan(part)]
        scores[f"BIO({i})"] = sum(there) / len(there) if there else math.nan
        scores[f"OP_CLB({i})"] = 0.5 * scores["LNK"] + 0.5 * scores[f"BIO({i})"]
    scores["OP_CSB"] = 0.5 * scores["SEG"] + 0.5 * scores["DET"]
    scores["OP_CTB"] = 0.5 * scores["SEG"] + 0.5 * scores["TRA"]
    return TrackScores(
        scores={name: scores[name] for name in (*_COUNTED, *_NAMES)},
        errors=operations.by_frame(true.count),
    )


def _counts(true: Detections, found: Detections, prediction: Lineage, truth: Lineage) -> Scores:
    return {
        "frames": true.count,
        "n_true": true.ids.size,
        "n_pred": found.ids.size,
        "tracks_true": len(truth.tracks),
        "tracks_pred": len(prediction.tracks),
        "divisions_true": len(truth.divisions),
        "divisions_pred": len(prediction.divisions),
    }


def _parents_in_truth(true: Detections, truth: Lineage) -> tuple[Index, Index]:
    """The edges from mothers to daughters in the truth; an error where its graph has no meaning."""
    wrong = [fault.message for fault in faults(truth) if fault.code == "track-span"]
    unknown = np.setdiff1d(true.tracks, np.array([t.id for t in truth.tracks], np.uint64))
    if unknown.size:
        wrong.append(f"The label {unknown[0]} is in the masks, but not in the table of tracks.")
    mothers, daughters, broken = true.parent_links(truth)
    if broken:
        wrong.append(
            f"Track {broken[0].id} has the parent {broken[0].parent}, but the masks do not show "
            "the parent in its last frame and the daughter in its first."
        )
    if wrong:
        raise DataError(
            f"The truth contradicts itself. {' '.join(wrong)}",
            hint="Check the truth with cellseg check-data.",
        )
    return mothers, daughters


def _operations(
    true: Detections,
    found: Detections,
    detected: Detected,
    prediction: Lineage,
    true_parents: tuple[Index, Index],
) -> GraphOperations:
    times = np.bincount(detected.prediction, minlength=found.ids.size)
    as_truth = np.full(found.ids.size, -1, np.int64)
    as_truth[detected.prediction[detected.alone]] = detected.truth[detected.alone]
    mothers, daughters, _ = found.parent_links(prediction)
    # Only links between objects that detect one true object each are compared.
    first = as_truth[np.concatenate([found.links, mothers])]
    second = as_truth[np.concatenate([found.links + 1, daughters])]
    of_parent = np.arange(first.size) >= found.links.size
    both = (first >= 0) & (second >= 0)
    keys = first[both] * true.ids.size + second[both]
    true_keys = np.concatenate(
        [
            true.links * true.ids.size + true.links + 1,
            true_parents[0] * true.ids.size + true_parents[1],
        ]
    )
    of_true_parent = np.arange(true_keys.size) >= true.links.size
    _, here, there = np.intersect1d(keys, true_keys, return_indices=True)
    changed = of_parent[both][here] != of_true_parent[there]
    later, true_later = (true.frames[each % max(true.ids.size, 1)] for each in (keys, true_keys))
    return GraphOperations(
        splits=np.repeat(found.frames, np.maximum(times - 1, 0)),
        false_negatives=np.delete(true.frames, detected.truth),
        false_positives=found.frames[times == 0],
        edges_deleted=np.delete(later, here),
        edges_added=np.delete(true_later, there),
        edges_changed=true_later[there][changed],
        vertices=true.ids.size,
        edges=true_keys.size,
    )


def _seg(tables: Sequence[OverlapTable] | None) -> float:
    if tables is None:
        return math.nan
    found = np.concatenate([np.empty(0), *(table.iou[covered(table)] for table in tables)])
    return float(found.sum() / max(sum(table.truth_ids.size for table in tables), 1))


def _normalised(cost: float, whole: float) -> float:
    return 1 - min(cost, whole) / whole if whole else math.nan

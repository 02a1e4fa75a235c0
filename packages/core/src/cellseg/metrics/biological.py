"""Scores of whole tracks and of divisions (Ulman et al. 2017, doi:10.1038/nmeth.4473)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from cellseg.metrics.detections import Detected, Detections, Index
from cellseg.metrics.scores import Scores
from cellseg.tracks import Lineage, Track

DIVISION_TOLERANCES = (0, 1, 2, 3)
"""By how many frames a division may be off, in the names of its scores."""


def complete_tracks(
    true: Detections,
    found: Detections,
    detected: Detected,
    prediction: Lineage,
    truth: Lineage,
) -> float:
    """CT: F1 of the tracks that are found whole; NaN where there is no track at all."""
    followed = _followed(true, found, detected)
    complete = 0
    if followed.size:
        lowest = np.minimum.reduceat(followed, true.starts)
        whole = (lowest > 0) & (lowest == np.maximum.reduceat(followed, true.starts))
        tracks = found.tracks
        for id, by in zip(true.tracks[whole].tolist(), lowest[whole].tolist(), strict=True):
            one, other = truth.by_id[id], prediction.by_id[int(tracks[by - 1])]
            complete += (one.begin, one.end) == (other.begin, other.end)
    count = len(truth.tracks) + len(prediction.tracks)
    return 2 * complete / count if count else math.nan


def track_fractions(
    true: Detections, found: Detections, detected: Detected, truth: Lineage
) -> float:
    """TF: the mean of the longest part of each true track that one predicted track follows.

    As in the challenge's own program, a predicted track that follows a whole true one is not
    looked at for true tracks of higher ids.
    """
    followed = _followed(true, found, detected)
    begin, end = _spans(true, truth)
    inside = (followed > 0) & (true.frames >= begin) & (true.frames <= end)
    ids, frames, by = true.ids[inside], true.frames[inside], followed[inside]
    new = np.ones(by.size, np.bool_)
    new[1:] = (ids[1:] != ids[:-1]) | (by[1:] != by[:-1]) | (np.diff(frames) != 1)
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=by.size) / (end - begin + 1)[inside][starts]
    longest: dict[tuple[int, int], float] = {}
    pairs = zip(by[starts].tolist(), ids[starts].tolist(), lengths.tolist(), strict=True)
    for track, id, length in pairs:
        longest[track, id] = max(longest.get((track, id), 0), length)
    fractions = {track.id: 0.0 for track in truth.tracks}
    done = 0
    for (track, id), length in sorted(longest.items()):
        if track == done or fractions[id] == 1:
            continue
        fractions[id] = max(fractions[id], length)
        done = track if length == 1 else done
    parts = [part for part in fractions.values() if part > 0]
    return float(np.mean(parts)) if parts else 0.0


def cell_cycle_accuracy(prediction: Lineage, truth: Lineage) -> float:
    """CCA: how well the lengths of cell cycles agree; NaN where the truth has no whole cycle."""
    true, found = _cycles(truth), _cycles(prediction)
    if not true.size:
        return math.nan
    if not found.size:
        return 0.0
    longest = int(max(true.max(), found.max())) + 1
    shares = [np.bincount(each, minlength=longest) / each.size for each in (true, found)]
    return float(1 - np.abs(np.cumsum(shares[0]) - np.cumsum(shares[1])).max())


def branching(
    true: Detections,
    found: Detections,
    detected: Detected,
    prediction: Lineage,
    truth: Lineage,
) -> Scores:
    """Precision, recall and F1 of divisions, for each tolerance; NaN where there are none."""
    partner: dict[tuple[int, int], int] = {}
    if prediction.divisions and truth.divisions:
        alone = detected.prediction[detected.alone]
        keys = zip(found.frames[alone].tolist(), found.ids[alone].tolist(), strict=True)
        ids = true.ids[detected.truth[detected.alone]].tolist()
        partner = dict(zip(keys, ids, strict=True))
    scores: dict[str, float] = {}
    for i in DIVISION_TOLERANCES:
        tp = _matched_divisions(prediction, truth, partner, i)
        fp, fn = len(prediction.divisions) - tp, len(truth.divisions) - tp
        precision, recall = tp / max(tp + fp, 1), tp / max(tp + fn, 1)
        f1 = 2 * precision * recall / max(precision + recall, 0.0001)
        none = not truth.divisions
        scores |= {
            f"division_precision({i})": precision if tp + fp else math.nan,
            f"division_recall({i})": math.nan if none else recall,
            f"division_f1({i})": math.nan if none else f1,
            f"BC({i})": math.nan if none else f1,
            f"tp_div({i})": tp,
            f"fp_div({i})": fp,
            f"fn_div({i})": fn,
        }
    return scores


def _matched_divisions(
    prediction: Lineage, truth: Lineage, partner: Mapping[tuple[int, int], int], tolerance: int
) -> int:
    """Divisions of the prediction that are one of the truth.

    Args:
        prediction: all predicted tracks.
        truth: all true tracks.
        partner: by frame and predicted id, the id of the only true object that it detects.
        tolerance: by how many frames the mother's end and the daughters' begins may be off.
    """
    count = 0
    for mother, daughters in prediction.divisions.items():
        end = prediction.by_id[mother].end
        # Where both mothers are seen last, the predicted one must detect the true one.
        frames = range(end - tolerance, end + 1)
        candidates = {partner.get((frame, mother), 0) for frame in frames}
        for id in candidates & truth.divisions.keys():
            true_end = truth.by_id[id].end
            true_daughters = truth.divisions[id]
            count += (
                abs(true_end - end) <= tolerance
                and partner.get((min(true_end, end), mother)) == id
                and len(daughters) == len(true_daughters)
                and _same_daughters(
                    [prediction.by_id[each] for each in daughters],
                    [truth.by_id[each] for each in true_daughters],
                    partner,
                    tolerance,
                )
            )
    return count


def _same_daughters(
    daughters: list[Track],
    true_daughters: list[Track],
    partner: Mapping[tuple[int, int], int],
    tolerance: int,
) -> bool:
    found = set()
    for true in true_daughters:
        for each in daughters:
            late = max(true.begin, each.begin)
            near = abs(true.begin - each.begin) <= tolerance
            if near and partner.get((late, each.id)) == true.id:
                found.add(each.id)
                break
    return len(found) == len(true_daughters)


def _followed(true: Detections, found: Detections, detected: Detected) -> Index:
    """For each true object, 1 + the position of the track that detects it alone, or 0."""
    track = np.zeros(found.ids.size, np.int64)
    track[found.starts] = 1
    track = np.cumsum(track)
    followed = np.zeros(true.ids.size, np.int64)
    followed[detected.truth[detected.alone]] = track[detected.prediction[detected.alone]]
    return followed


def _spans(true: Detections, truth: Lineage) -> tuple[Index, Index]:
    """The first and the last frame of each object's track, as the table has them."""
    ids, counts = np.unique(true.ids, return_counts=True)
    tracks = [truth.by_id[id] for id in ids.tolist()]
    begin = np.array([track.begin for track in tracks], np.int64)
    end = np.array([track.end for track in tracks], np.int64)
    return np.repeat(begin, counts), np.repeat(end, counts)


def _cycles(lineage: Lineage) -> Index:
    """Frames from begin to end of the tracks that begin and end with a division."""
    mothers = lineage.divisions
    lengths = [t.end - t.begin for t in lineage.tracks if t.id in mothers and t.parent in mothers]
    return np.array(lengths, np.int64)

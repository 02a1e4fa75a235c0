"""Scores of instance segmentation: `overlaps` counts once, `tally` and `score` do the rest.

`score_tracks` makes those of tracks from the tables of all frames.
"""

from cellseg.metrics.matching import Matches, match
from cellseg.metrics.scores import THRESHOLDS, Scores, Tally, mean_ap_name, score, tally
from cellseg.metrics.table import OverlapTable, overlaps
from cellseg.metrics.tracking import TrackScores, score_tracks

__all__ = [
    "THRESHOLDS",
    "Matches",
    "OverlapTable",
    "Scores",
    "Tally",
    "TrackScores",
    "match",
    "mean_ap_name",
    "overlaps",
    "score",
    "score_tracks",
    "tally",
]

"""Scores of instance segmentation: `overlaps` counts once, `tally` and `score` do the rest."""

from cellseg.metrics.matching import Matches, match
from cellseg.metrics.scores import THRESHOLDS, Scores, Tally, mean_ap_name, score, tally
from cellseg.metrics.table import OverlapTable, overlaps

__all__ = [
    "THRESHOLDS",
    "Matches",
    "OverlapTable",
    "Scores",
    "Tally",
    "match",
    "mean_ap_name",
    "overlaps",
    "score",
    "tally",
]

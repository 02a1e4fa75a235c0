"""Report pages: one HTML file each, which opens from disk, prints, and loads nothing."""

from __future__ import annotations

from cellseg.report.evaluation import View, views_of, write_evaluation_report
from cellseg.report.run import write_run_report
from cellseg.report.tracks import write_tracks_page
from cellseg.report.tracks_evaluation import write_tracks_evaluation_report

__all__ = [
    "View",
    "views_of",
    "write_evaluation_report",
    "write_run_report",
    "write_tracks_evaluation_report",
    "write_tracks_page",
]

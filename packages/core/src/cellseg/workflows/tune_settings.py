"""Core's own options of a search. Light: the command line builds its help from them."""

from __future__ import annotations

from typing import ClassVar

from cellseg.tuning.options import SearchOptions


class TuneSettings(SearchOptions):
    """How to search, and by which score."""

    panels: ClassVar = {"Search": ("metric",)}

    metric: str = "f1@0.50"
    """The score to search for, on the validation images: any that cellseg evaluate gives, over all
    objects together."""

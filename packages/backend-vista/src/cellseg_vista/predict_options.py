"""Options of predicting with vista models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cellseg.options import Options


class Vista2dPredictOptions(Options):
    """What ``cellseg predict`` takes for a vista2d model; training finds good values itself."""

    panels: ClassVar = {
        "Instances": ("foreground_threshold", "seed_threshold", "bandwidth", "min_size")
    }

    foreground_threshold: float = Field(0.5, gt=0, lt=1)
    """Pixels with a higher probability than this belong to cells."""
    seed_threshold: float = Field(0.6, gt=0, lt=1)
    """Each connected area that is deeper in a cell than this, from 0 at the edge to 1 halfway to
    the middle and beyond, is the start of a piece."""
    bandwidth: float = Field(0.75, ge=0)
    """Neighbouring pieces whose embeddings are nearer than this are one cell; 0 joins none."""
    min_size: int = Field(15, ge=0)
    """Smaller cells are dropped, in pixels."""

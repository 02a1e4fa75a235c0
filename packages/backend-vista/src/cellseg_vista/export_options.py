"""Options of exporting vista models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from pydantic import Field

from cellseg.options import Options


class Pt2Options(Options):
    """What ``cellseg export --format pt2`` takes."""

    tolerance: float = Field(1e-4, gt=0)
    """Largest difference between the outputs of the exported network and the original."""

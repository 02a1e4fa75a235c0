"""Options of exporting cellsam2 models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from cellseg.options import Options


class Sam2Options(Options):
    """What ``cellseg export --format sam2`` takes."""

    check: bool = True
    """Load what was written back with the package sam2 itself and compare; takes some seconds."""

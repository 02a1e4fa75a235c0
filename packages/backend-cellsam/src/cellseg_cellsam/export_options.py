"""Options of exporting cellsam models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from cellseg.options import Options
from cellseg.torch.export_options import ExportOptions


class SamOptions(Options):
    """What ``cellseg export --format sam`` takes."""

    check: bool = True
    """Load what was written back with segment_anything itself and compare."""


class OnnxOptions(ExportOptions):
    """What ``cellseg export --format onnx`` takes."""


__all__ = ["OnnxOptions", "SamOptions"]

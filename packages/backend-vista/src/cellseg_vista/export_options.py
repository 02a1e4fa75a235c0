"""Options of exporting vista models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from cellseg.torch.export_options import BioimageioOptions, ExportOptions

__all__ = ["BioimageioOptions", "OnnxOptions", "Pt2Options", "TorchscriptOptions"]


class Pt2Options(ExportOptions):
    """What ``cellseg export --format pt2`` takes."""


class TorchscriptOptions(ExportOptions):
    """What ``cellseg export --format torchscript`` takes."""


class OnnxOptions(ExportOptions):
    """What ``cellseg export --format onnx`` takes."""

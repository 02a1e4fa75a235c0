"""Options of exporting micro-SAM models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from cellseg.options import Options
from cellseg.torch.export_options import BioimageioOptions, ExportOptions


class NativeOptions(Options):
    """What ``cellseg export --format micro-sam`` takes."""

    check: bool = True
    """Load what was written back with micro-SAM itself and compare; takes half a minute."""


class OnnxOptions(ExportOptions):
    """What ``cellseg export --format onnx`` takes."""

    panels: ClassVar = {"Masks": ("masks",)}

    masks: Literal["best", "all"] = "best"
    """What a prompt gets: the one mask that suits the number of its points, or all four."""


class PackageOptions(BioimageioOptions):
    """What ``cellseg export --format bioimageio`` takes."""


__all__ = ["NativeOptions", "OnnxOptions", "PackageOptions"]

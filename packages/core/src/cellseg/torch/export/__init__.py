"""Trained networks in formats that need no cellseg, each run again and compared when written."""

from cellseg.torch.export.descriptions import Output, Package
from cellseg.torch.export.notes import tell_difference, tell_missing
from cellseg.torch.export.package import write_bioimageio
from cellseg.torch.export.programs import Program, write_onnx, write_pt2, write_torchscript

__all__ = [
    "Output",
    "Package",
    "Program",
    "tell_difference",
    "tell_missing",
    "write_bioimageio",
    "write_onnx",
    "write_pt2",
    "write_torchscript",
]

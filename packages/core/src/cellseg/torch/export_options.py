"""Options of exporting networks; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cellseg.options import Options


class ExportOptions(Options):
    """What every exporter of a network takes."""

    tolerance: float = Field(1e-4, gt=0)
    """Largest difference between any output of what was written and of the original network."""


class BioimageioOptions(ExportOptions):
    """What ``cellseg export --format bioimageio`` takes."""

    weights: Literal["both", "torchscript", "onnx"] = "both"
    """Formats of the weights in the package."""
    title: str = ""
    """Name of the model, 5 to 128 letters, digits, spaces and _ + - ( ); by default made of the
    backend's."""
    description: str = ""
    """A sentence or two on what the model is for; by default what the backend says of itself."""
    author: tuple[str, ...] = ()
    """Names of the people who made the model. bioimage.io takes no model without one."""
    licence: str = ""
    """Terms of use, as an identifier of SPDX such as CC-BY-4.0; by default none are stated."""

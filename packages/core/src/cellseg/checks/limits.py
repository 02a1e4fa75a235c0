"""What objects are measured against: the sizes of patches and tiles, and how much is too much."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cellseg.options import Options


class Limits(Options):
    """Sizes that the objects must fit, and thresholds of the warnings."""

    panels: ClassVar = {
        "Limits": (
            "patch_size",
            "patch_depth",
            "tile_size",
            "halo",
            "min_instance_size",
            "max_saturated",
        )
    }

    patch_size: int = Field(default=256, ge=1)
    """Width and height of a training patch in pixels; larger objects are never seen whole."""
    patch_depth: int = Field(default=1, ge=1)
    """Slices of a training patch; 1 for training on flat images or single slices."""
    tile_size: int = Field(default=1024, ge=1)
    """Width and height of a prediction tile in pixels, without its halo."""
    halo: int = Field(default=64, ge=0)
    """Halo of a prediction tile in pixels; longer objects may be cut where tiles meet."""
    min_instance_size: int = Field(default=25, ge=1)
    """Objects of fewer voxels, not at the image's rim, count as specks."""
    max_saturated: float = Field(default=0.01, ge=0, le=1)
    """Share of pixels at the brightest value above which an image counts as saturated."""

"""What ``cellseg augment`` takes; light, as the command line shows it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.sampling_options import AugmentOptions


class AugmentSettings(AugmentOptions):
    """How many copies to make of each image, how they differ from it, and how to write them."""

    panels: ClassVar = {
        "Data": ("reader",),
        "Copies": ("copies", "include_originals", "format", "seed"),
        "Run": ("workers", "dry_run"),
    }

    reader: str = "auto"
    """How to read the images; auto finds out from the path."""
    copies: int = Field(3, ge=1, le=10_000)
    """Augmented copies of each image."""
    include_originals: bool = True
    """Write the images themselves too."""
    format: Literal["tif", "ome-zarr", "hdf5", "original"] = "tif"
    """How to write images and labels: tif makes two folders of OME-TIFF files, ome-zarr a container
    for each image with the labels inside, hdf5 a file for each image with raw and label; original
    is that of the images, as far as cellseg writes it."""
    seed: int = Field(0, ge=0)
    """Seed of all that is random. A copy depends on it, on the name of the image, and on the number
    of the copy alone."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that work at the same time; the result does not depend on it."""
    dry_run: bool = False
    """Check everything and say what would be written, but write nothing."""

    @model_validator(mode="after")
    def _something_changes(self) -> AugmentSettings:
        chances = [name for name in AugmentOptions.model_fields if name.endswith("_probability")]
        if not any(getattr(self, name) for name in chances):
            raise ValueError("all probabilities are 0: each copy would be its original again")
        return self

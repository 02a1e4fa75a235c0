"""The settings of ``cellseg embed``. Light: the command line builds its help from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from cellseg.locations import Location
from cellseg.options import Options

Pooling: TypeAlias = Literal["mean", "mean-std-max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "mean-std-max")


class EmbedSettings(Options):
    """What ``cellseg embed`` can be told, apart from the backend's and the reader's options."""

    panels: ClassVar = {
        "Objects": ("labels", "include", "exclude", "most_images", "most_objects", "seed"),
        "Output": ("output", "pooling", "overwrite"),
        "Tiles": ("tile_size", "tile_depth", "halo", "halo_depth", "batch_size"),
        "Running": ("device", "resume"),
    }

    model: Path | None = None
    """A trained model: the run directory of cellseg train, or a model directory."""
    backend: str | None = None
    """Backend to embed with, where no model is given: its own published weights."""
    reader: str = "auto"
    """How to read the images; 'auto' looks at the files."""
    polarity: Literal["as-is", "bright", "dark"] | None = None
    """Whether objects are brighter or darker than what surrounds them: dark inverts the image,
    bright and as-is leave it alone. Only for published weights; a trained model has its own."""
    labels: Location | None = None
    """The label images of the objects: the output folder of cellseg predict, or any folder or file
    with label images of the names of the images. Without it, the labels that the images come with:
    in labels/ beside images/, or inside OME-Zarr images and plates, by --label."""
    include: tuple[str, ...] = ()
    """Only images whose names fit one of these patterns, such as B/03/* for a well of a plate; *
    stands for anything. May be given several times."""
    exclude: tuple[str, ...] = ()
    """Not the images whose names fit one of these patterns."""
    most_images: int | None = Field(None, ge=1)
    """At most so many images, drawn at random."""
    most_objects: int | None = Field(None, ge=1)
    """At most so many objects of each image, or frame of a movie, drawn at random."""
    seed: int = Field(42, ge=0)
    """Seed of the random draws."""
    output: Path | None = None
    """Folder for the tables."""
    pooling: tuple[Pooling, ...] = Field(POOLINGS, min_length=1)
    """What is kept of the vectors at an object's voxels: mean, their mean; mean-std-max, mean,
    standard deviation and maximum. May be given several times; each has a file of its own."""
    overwrite: bool = False
    """Replace tables that are there, and forget an unfinished embedding."""
    tile_size: int | None = Field(None, ge=16)
    """Height and width of a tile without its halo, in pixels. By default what the model likes."""
    tile_depth: int | None = Field(None, ge=1)
    """Depth of a tile without its halo, in planes; only for models that see volumes."""
    halo: int | None = Field(None, ge=0)
    """How much more of the image the model sees on each side of a tile, in pixels."""
    halo_depth: int | None = Field(None, ge=0)
    """The same along z, in planes; only for models that see volumes."""
    batch_size: int = Field(1, ge=1)
    """Tiles to describe at once."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    resume: bool = False
    """Go on with an embedding that was stopped, and try failed images again."""

    @model_validator(mode="after")
    def _drawn(self) -> EmbedSettings:
        if "seed" in self.model_fields_set and not (self.most_images or self.most_objects):
            raise ValueError("--seed does nothing without --most-images or --most-objects")
        return self

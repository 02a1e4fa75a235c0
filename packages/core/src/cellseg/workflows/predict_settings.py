"""The settings of ``cellseg predict``. Light: the command line builds its help from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cellseg.options import Options
from cellseg.outputs.formats import Format


class PredictSettings(Options):
    """What ``cellseg predict`` can be told, apart from the backend's and the reader's options."""

    panels: ClassVar = {
        "Output": ("output", "format", "output_probs", "label_name", "overwrite"),
        "Tiles": (
            "tile_size",
            "tile_depth",
            "halo",
            "halo_depth",
            "stitch_overlap",
            "batch_size",
        ),
        "Running": ("device", "workers", "shard", "resume", "retries", "dry_run"),
    }

    model: Path | None = None
    """A trained model: the run directory of cellseg train, or a model directory."""
    backend: str | None = None
    """Backend to segment with, where no model is given: its own published weights."""
    reader: str = "auto"
    """How to read the images; 'auto' looks at the files."""
    output: Path | None = None
    """Folder for the results. Without it, labels go into the OME-Zarr images themselves."""
    format: tuple[Format, ...] = ()
    """What to write; may be given several times. By default TIFF labels and a CSV table of the
    objects in the output folder, or OME-Zarr labels where the images hold them themselves."""
    output_probs: bool = False
    """Also write the probability of each class at each voxel: beside a TIFF as
    NAME_probabilities.tif, in HDF5 as the data set probabilities, in an OME-Zarr as the image
    LABELNAME_probabilities. Not every backend has them."""
    label_name: str = Field("cells", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the labels in an OME-Zarr."""
    overwrite: bool = False
    """Replace results that are there, and forget an unfinished prediction."""
    tile_size: int | None = Field(None, ge=16)
    """Height and width of a tile without its halo, in pixels. By default what the model likes."""
    tile_depth: int | None = Field(None, ge=1)
    """Depth of a tile without its halo, in planes; only for models that segment volumes."""
    halo: int | None = Field(None, ge=0)
    """How much more of the image a tile sees on each side, in pixels. Objects up to this size
    come out of tiles as they would from the whole image."""
    halo_depth: int | None = Field(None, ge=0)
    """The same along z, in planes; only for models that segment volumes."""
    stitch_overlap: float = Field(0.5, gt=0, le=1)
    """Objects of neighbouring tiles are one when they share at least this part of the smaller
    one, counted where both tiles see them."""
    batch_size: int = Field(1, ge=1)
    """Tiles to segment at once."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    workers: int = Field(1, ge=1)
    """Processes to segment with; each loads the model."""
    shard: str | None = Field(None, pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")
    """Do only a share of the tiles, as in 2/3: start the other shares elsewhere, with the same
    output folder. Whichever finishes last writes the results."""
    resume: bool = False
    """Go on with a prediction that was stopped, and try failed tiles again."""
    retries: int = Field(1, ge=0)
    """How often to try failed tiles again before giving up on them."""
    dry_run: bool = False
    """Only show the files, axes, tiles, outputs and memory it would take."""

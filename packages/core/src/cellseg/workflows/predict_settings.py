"""The settings of ``cellseg predict``. Light: the command line builds its help from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.locations import Location
from cellseg.outputs.formats import Format
from cellseg.workflows.example_settings import ExampleOptions


class PredictSettings(ExampleOptions):
    """What ``cellseg predict`` can be told, apart from the backend's and the reader's options."""

    panels: ClassVar = {
        "Examples": ("example_images",),
        "Batch": ("batch_xy", "batch_z", "batch_time"),
        "Output": ("output", "format", "output_probs", "smoothing", "label_name", "overwrite"),
        "Objects": (
            "track",
            "link_slices",
            "link_overlap",
            "link_gap",
            "fill_holes",
            "min_area",
            "border_margin",
            "keep_largest",
        ),
        "Tiles": (
            "tile_size",
            "tile_depth",
            "halo",
            "halo_depth",
            "stitch_overlap",
            "batch_size",
        ),
        "Running": (
            "device",
            "workers",
            "scheduler",
            "slurm",
            "shard",
            "resume",
            "retries",
            "work",
            "dry_run",
        ),
    }

    model: Path | None = None
    """A trained model: the run directory of cellseg train, or a model directory."""
    backend: str | None = None
    """Backend to segment with, where no model is given: its own published weights, or what it
    learns from --examples."""
    reader: str = "auto"
    """How to read the images; 'auto' looks at the files."""
    prompts: Path | None = None
    """A CSV or GeoJSON file of points and boxes that show the objects to segment, or a folder with
    one for each image; for backends that take such prompts. By default the backend finds the
    objects by itself."""
    example_images: Location | None = None
    """The images that the examples lie in, if other ones than those to segment; they are read in
    the same way."""
    polarity: Literal["as-is", "bright", "dark"] | None = None
    """Whether objects are brighter or darker than what surrounds them: dark inverts the image,
    bright and as-is leave it alone. Only for published weights and with --examples; a trained model
    has its own."""
    batch_xy: str | None = Field(None, coerce_numbers_to_str=True)
    """Which images to segment, in the order in which they are listed: "1-3, 5-8", "4" or "all",
    counted from 1 as in NimbusImage; "current" means those that hold the examples or
    prompts. By default all."""
    batch_z: str | None = Field(None, coerce_numbers_to_str=True)
    """Which planes of each image to segment, in the same way; the others stay empty. Not for models
    that segment volumes as a whole. By default all."""
    batch_time: str | None = Field(None, coerce_numbers_to_str=True)
    """Which frames of each movie to segment, in the same way; the others stay empty. By default
    all."""
    output: Location | None = None
    """Folder for the results, or an address for OME-Zarr. Without it, labels go into the OME-Zarr
    images themselves."""
    format: tuple[Format, ...] = ()
    """What to write; may be given several times. By default TIFF labels and a CSV table of the
    objects in the output folder, or OME-Zarr labels where the images hold them themselves."""
    output_probs: bool = False
    """Also write the probability of each class at each voxel: beside a TIFF as
    NAME_probabilities.tif, in HDF5 as the data set probabilities, in an OME-Zarr as the image
    LABELNAME_probabilities. Not every backend has them."""
    smoothing: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Simplify the outlines of --format geojson (Douglas-Peucker) with this tolerance, in pixels;
    each object by itself. By default, and with 0, they follow the pixels exactly."""
    label_name: str = Field("cells", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the labels in an OME-Zarr."""
    overwrite: bool = False
    """Replace results that are there, and forget an unfinished prediction."""
    track: bool | None = None
    """Follow the objects of movies from frame to frame, so that each keeps its id and divisions are
    known, where the backend can. By default it does; without, each frame is segmented and numbered
    by itself, and cellseg track can link the labels afterwards."""
    link_slices: bool | None = None
    """Make one object of those that lie over each other in neighbouring planes of a volume, where
    the backend segments plane by plane; images of one plane beside volumes are left alone. By
    default as the backend prefers."""
    link_overlap: float | None = Field(None, gt=0, le=1)
    """IoU (shared part of both) that two objects of neighbouring planes need to be linked; each is
    linked to the one that it overlaps best, if that holds both ways. By default 0.25."""
    link_gap: int | None = Field(None, ge=0)
    """Planes that an object may be missing in and still go on beyond them. By default 0."""
    fill_holes: int | None = Field(None, ge=1)
    """Fill holes of at most this many pixels in an object, plane by plane; where an image is cut
    into tiles, only those no higher and no wider than the halo. By default none."""
    min_area: int | None = Field(None, ge=1)
    """Leave out objects of fewer voxels, counted when they are stitched and linked. By default
    none."""
    border_margin: int | None = Field(None, ge=1)
    """Leave out objects with fewer pixels than this between their bounding box and the border of
    the image in y or x: 1 leaves out those that touch the border. By default none."""
    keep_largest: int | None = Field(None, ge=1)
    """Of the objects that remain, keep only this many, the largest: of each image, each frame of a
    movie, and each plane of a volume whose planes are not linked. By default all."""
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
    """Processes to segment with, on this computer; each loads the model, and takes a GPU of its own
    where there are any. With --slurm how many jobs."""
    scheduler: str | None = None
    """Segment with the workers of the Dask cluster whose scheduler is at this address, such as
    tcp://10.0.0.5:8786, instead of processes of this computer."""
    slurm: str | None = None
    """Segment with --workers SLURM jobs, each as this recipe says: the name of one that comes with
    cellseg, such as a100, or a YAML file."""
    shard: str | None = Field(None, pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")
    """Do only a share of the tiles, as in 2/3: start the other shares elsewhere, with the same
    output folder. Whichever finishes last writes the results."""
    resume: bool = False
    """Go on with a prediction that was stopped, and try failed tiles again."""
    retries: int = Field(1, ge=0)
    """How often to try failed tiles again before giving up on them."""
    work: Path | None = None
    """Folder for unfinished work, which must be in a file system that all processes share. By
    default .cellseg in the output folder, beside the images that get labels inside, or, where
    results go to an address, in the user's cache folder."""
    dry_run: bool = False
    """Only show the files, axes, tiles, outputs and memory it would take."""

    @model_validator(mode="after")
    def _one_way_to_say_what(self) -> PredictSettings:
        if self.example_images is not None and self.examples is None:
            raise ValueError("--example-images does nothing without --examples")
        if self.scheduler is not None and self.slurm is not None:
            raise ValueError("--scheduler and --slurm exclude each other")
        if self.scheduler is not None and "workers" in self.model_fields_set:
            raise ValueError(
                "--workers does nothing with --scheduler: all workers of the cluster take part"
            )
        if self.examples is not None and self.model is not None:
            raise ValueError(
                "--examples and --model exclude each other: a model has learned what to look for"
            )
        return self

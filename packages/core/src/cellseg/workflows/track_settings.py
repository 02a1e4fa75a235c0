"""The settings of ``cellseg track``. Light: the command line builds its help from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from cellseg.linking.settings import LinkSettings
from cellseg.locations import Location
from cellseg.outputs.formats import Format


class TrackSettings(LinkSettings):
    """What ``cellseg track`` can be told."""

    panels: ClassVar = {
        "Labels": ("key", "suffix", "axes"),
        "Output": ("output", "format", "label_name", "images", "report", "overwrite"),
    }

    key: str | None = None
    """Name of the labels inside OME-Zarr images, or the key of the labels in HDF5 and Zarr
    files."""
    suffix: str | None = None
    """End of the names of the label images, such as _mask; others are left alone."""
    axes: str | None = None
    """Axes of the label images, such as TYX, where files do not say."""
    output: Path | None = None
    """Folder for the results."""
    format: tuple[Format, ...] = ()
    """What to write; may be given several times. By default TIFF labels and a CSV table of the
    objects; beside each is a table of the tracks, NAME_tracks.csv."""
    label_name: str = Field("cells", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the labels in an OME-Zarr."""
    images: Location | None = None
    """The images that the labels are of, for the report: as many frames, of one shape with the
    labels. By default tracks are drawn on black."""
    report: bool = True
    """Write NAME_tracks.html: a movie with the tracks, their lineage, and numbers."""
    overwrite: bool = False
    """Replace results that are there."""

    @model_validator(mode="after")
    def _images_are_shown(self) -> TrackSettings:
        if self.images is not None and not self.report:
            raise ValueError("--images does nothing with --no-report")
        return self

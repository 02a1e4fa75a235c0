"""Options of core's readers; a light module, because the command line shows them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cellseg.classes import MOST_CLASSES
from cellseg.options import Options

AXES = "TCZYXS"
"""Time, channel, depth, height, width, and the samples of a pixel (red, green, blue)."""


def _check_names(names: tuple[str, ...]) -> None:
    if not names or len(set(names)) < len(names) or "background" in names:
        raise ValueError("expected different names with commas between them, without background")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"{len(names)} classes; {MOST_CLASSES} fit")


class ReaderOptions(Options):
    """What every reader takes."""

    panels: ClassVar = {"Images": ("channels", "axes")}

    channels: str | None = None
    """Channels to use, by name, wavelength id or index from 0, such as DAPI,GFP or 0,2; all if
    not given. A name goes before an index."""
    axes: str | None = None
    """Axes of the stored images, such as TCZYX, ZYX or YXC; needed where the file does not say."""

    @field_validator("channels")
    @classmethod
    def _listed(cls, value: str | None) -> str | None:
        if value is not None and not all(part.strip() for part in value.split(",")):
            raise ValueError("expected names or numbers with commas between them, such as 0,2")
        return value

    @field_validator("axes")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = value.upper()
        if set(value) - set(AXES) or len(set(value)) < len(value) or not {"Y", "X"} <= set(value):
            raise ValueError(
                "expected each of T, C, Z, Y, X, S at most once, with Y and X, such as TCZYX"
            )
        return value


class FolderOptions(ReaderOptions):
    """How images and label images in folders belong together."""

    panels: ClassVar = {"Images": ("images", "labels", "image_suffix", "label_suffix")}

    images: str | None = None
    """Subfolder with the images; if not given, images/ where there is one, else the folder."""
    labels: str | None = None
    """Folder with the label images, inside the data folder or anywhere; if not given, labels/. For
    a single image: its label image."""
    image_suffix: str | None = None
    """End of the image names, such as _img for t01_img.tif; other files are left out."""
    label_suffix: str | None = None
    """End of the label names, such as _mask for t01_mask.tif."""

    @field_validator("image_suffix", "label_suffix")
    @classmethod
    def _bare(cls, value: str | None) -> str | None:
        if value is not None and (not value or "." in value or "/" in value):
            raise ValueError("expected the end of the name before its extension, such as _mask")
        return value


class TiffOptions(ReaderOptions):
    """How to read one TIFF file."""

    panels: ClassVar = {"Images": ("labels",)}

    labels: str | None = None
    """The label image: a TIFF file, beside the image or anywhere."""


class CtcOptions(ReaderOptions):
    """How to read sequences of the Cell Tracking Challenge."""

    panels: ClassVar = {"Images": ("ctc_labels",)}

    ctc_labels: Literal["tra", "seg", "st"] = "tra"
    """Which labels: the tracking truth (NN_GT/TRA), where ids are tracks; the segmentation truth
    (NN_GT/SEG) of the frames and planes that have it, without tracks; or silver truth (NN_ST/SEG),
    whose ids are taken to be those of the tracking truth."""


class ZarrChunkOptions(ReaderOptions):
    """What a chunk that is not there means."""

    panels: ClassVar = {"Images": ("allow_missing_chunks",)}

    allow_missing_chunks: bool = False
    """Read chunks of the image that are not on disk as its fill value, because it was written
    without its empty chunks; if not given, they are an error. Those of labels are always 0."""


class OmeZarrOptions(ZarrChunkOptions):
    """How to read an OME-Zarr image."""

    panels: ClassVar = {"Images": ("label",)}

    label: str | None = None
    """Name of the label image with the ground truth; needed where there are several."""


class PlateOptions(OmeZarrOptions):
    """How to read an OME-Zarr plate."""

    panels: ClassVar = {"Images": ("wells", "acquisition")}

    wells: str | None = None
    """Wells to use, such as B/03,C/*; all if not given."""
    acquisition: int | None = Field(None, ge=0)
    """The acquisition to use, by its id; all if not given."""


class KeyOptions(Options):
    """Where the arrays are inside a container."""

    panels: ClassVar = {"Images": ("raw_key", "label_key", "class_key", "class_names")}

    raw_key: str = "raw"
    """Where the image is in the container (or in each of its groups, or in train/ and val/)."""
    label_key: str | None = None
    """Where the labels are, beside the image; if not given, label or labels."""
    class_key: str | None = None
    """Where the class of each voxel is (1, 2, ...), beside the labels, which then are objects of
    these classes; if not given, all objects are of one class."""
    class_names: str | None = None
    """Names of the classes in --class-key, from class 1 on, such as neuron,cleft."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in ``class_names``."""
        return tuple(name.strip() for name in (self.class_names or "").split(",") if name.strip())

    @model_validator(mode="after")
    def _both(self) -> KeyOptions:
        if (self.class_key is None) != (self.class_names is None):
            raise ValueError("--class-key and --class-names go together")
        if self.class_names is not None:
            _check_names(self.classes)
        return self


class ZarrOptions(KeyOptions, ZarrChunkOptions):
    """How to read arrays of a Zarr container."""


class Hdf5Options(KeyOptions, ReaderOptions):
    """How to read data sets of an HDF5 file."""


class NiftiOptions(ReaderOptions):
    """How to read NIfTI files."""

    panels: ClassVar = {"Images": ("labels", "label_kind", "voxel_unit")}

    labels: str | None = None
    """The label image of a single image: a NIfTI file, beside it or anywhere. For a folder: the
    folder with the label images; if not given, labels/, or labelsTr/ beside imagesTr/."""
    label_kind: Literal["auto", "semantic", "instance"] = "auto"
    """What the labels are: classes, whose connected components become objects, or ids of objects;
    auto means classes where a dataset.json names them, else ids."""
    voxel_unit: Literal["auto", "nm", "um", "mm"] = "auto"
    """Unit of the voxel size in the header; auto means as the header says, and um where it says
    nothing."""

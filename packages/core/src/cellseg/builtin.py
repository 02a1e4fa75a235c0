"""The plugin that ships with core: its readers, and the exporter that packs a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cellseg.data import Dataset
from cellseg.errors import DataError
from cellseg.events import Emit, Note
from cellseg.hookspecs import hookimpl
from cellseg.options import NoOptions
from cellseg.readers import recognise
from cellseg.readers.ctc_folders import is_ctc
from cellseg.readers.options import (
    CtcOptions,
    FolderOptions,
    Hdf5Options,
    NiftiOptions,
    OmeZarrOptions,
    PlateOptions,
    ReaderOptions,
    TiffOptions,
    ZarrOptions,
)
from cellseg.specs import DatasetSpec, ExporterSpec, ExportJob

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every packed file, so that one model always gives one archive."""


@hookimpl
def cellseg_datasets() -> Iterator[DatasetSpec[Any]]:
    """Core's readers."""
    yield DatasetSpec(
        name="folder",
        summary="a folder of TIFF, PNG or JPEG images, with label images of the same names",
        options=FolderOptions,
        open=_open_folder,
        recognises=recognise.is_folder,
    )
    yield DatasetSpec(
        name="tiff",
        summary="one TIFF file: an image, a stack or a movie",
        options=TiffOptions,
        open=_open_tiff,
        recognises=recognise.is_tiff,
    )
    yield DatasetSpec(
        name="ctc",
        summary="sequences of the Cell Tracking Challenge, with their tracks",
        options=CtcOptions,
        open=_open_ctc,
        recognises=is_ctc,
    )
    yield DatasetSpec(
        name="ome-zarr",
        summary="an OME-Zarr image, or a folder of them",
        options=OmeZarrOptions,
        open=_open_ome_zarr,
        recognises=recognise.is_ome_zarr,
        remote=True,
    )
    yield DatasetSpec(
        name="plate",
        summary="an OME-Zarr plate: all wells, fields and acquisitions",
        options=PlateOptions,
        open=_open_plate,
        recognises=recognise.is_plate,
        remote=True,
    )
    yield DatasetSpec(
        name="zarr",
        summary="arrays of a Zarr container, by key",
        options=ZarrOptions,
        open=_open_zarr,
        recognises=recognise.is_zarr,
        remote=True,
    )
    yield DatasetSpec(
        name="hdf5",
        summary="data sets of an HDF5 file, by key",
        options=Hdf5Options,
        open=_open_hdf5,
        recognises=recognise.is_hdf5,
    )
    yield DatasetSpec(
        name="nifti",
        summary="NIfTI files: one, a folder, or nnU-Net data sets such as MitoEM2",
        options=NiftiOptions,
        open=_open_nifti,
        recognises=recognise.is_nifti,
    )
    yield DatasetSpec(
        name="snemi3d",
        summary="SNEMI3D: neurites of mouse cortex, the volumes AC4 and AC3",
        options=ReaderOptions,
        open=_open_snemi3d,
        recognises=recognise.is_snemi3d,
    )
    yield DatasetSpec(
        name="cremi",
        summary="CREMI: neurons and synaptic clefts of the fly brain",
        options=ReaderOptions,
        open=_open_cremi,
        recognises=recognise.is_cremi,
    )
    yield DatasetSpec(
        name="collection",
        summary="several data sets as one, listed in a YAML file",
        options=ReaderOptions,
        open=_open_collection,
        recognises=recognise.is_collection,
    )


@hookimpl
def cellseg_exporters() -> Iterator[ExporterSpec[Any]]:
    """Core's formats for models."""
    yield ExporterSpec(name="zip", summary="one file with the whole model", export=_zip)


def _open_folder(path: Path, options: FolderOptions, labelled: bool) -> Dataset:
    from cellseg.readers.folder import open_folder

    return open_folder(path, options, labelled)


def _open_tiff(path: Path, options: TiffOptions, labelled: bool) -> Dataset:
    from cellseg.readers.folder import open_file

    return open_file(path, options, labelled)


def _open_ctc(path: Path, options: CtcOptions, labelled: bool) -> Dataset:
    from cellseg.readers.ctc import open_ctc

    return open_ctc(path, options, labelled)


def _open_ome_zarr(path: Path, options: OmeZarrOptions, labelled: bool) -> Dataset:
    from cellseg.readers.ome_zarr import open_ome_zarr

    return open_ome_zarr(path, options, labelled)


def _open_plate(path: Path, options: PlateOptions, labelled: bool) -> Dataset:
    from cellseg.readers.ome_zarr import open_plate

    return open_plate(path, options, labelled)


def _open_zarr(path: Path, options: ZarrOptions, labelled: bool) -> Dataset:
    from cellseg.readers.containers import open_zarr

    return open_zarr(path, options, labelled)


def _open_hdf5(path: Path, options: Hdf5Options, labelled: bool) -> Dataset:
    from cellseg.readers.containers import open_hdf5

    return open_hdf5(path, options, labelled)


def _open_nifti(path: Path, options: NiftiOptions, labelled: bool) -> Dataset:
    from cellseg.readers.nifti import open_nifti

    return open_nifti(path, options, labelled)


def _open_snemi3d(path: Path, options: ReaderOptions, labelled: bool) -> Dataset:
    from cellseg.readers.snemi3d import open_snemi3d

    return open_snemi3d(path, options, labelled)


def _open_cremi(path: Path, options: ReaderOptions, labelled: bool) -> Dataset:
    from cellseg.readers.cremi import open_cremi

    return open_cremi(path, options, labelled)


def _open_collection(path: Path, options: ReaderOptions, labelled: bool) -> Dataset:
    from cellseg.readers.collection import open_collection

    return open_collection(path, options, labelled)


def _zip(job: ExportJob[NoOptions], emit: Emit) -> Path:
    """Pack a bundle into one ZIP file, ``bundle.json`` first, and read it back."""
    import hashlib
    import shutil
    import zipfile

    from cellseg.bundle import FILE, Bundle
    from cellseg.files import storage_errors

    Bundle.load(job.model)
    files = sorted(file for file in job.model.rglob("*") if file.is_file())
    files.sort(key=lambda file: file != job.model / FILE)
    names = [file.relative_to(job.model).as_posix() for file in files]
    written: dict[str, str] = {}
    with storage_errors(job.target), zipfile.ZipFile(job.target, "x", zipfile.ZIP_DEFLATED) as out:
        for file, name in zip(files, names, strict=True):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with file.open("rb") as source, out.open(entry, "w", force_zip64=True) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)
            with file.open("rb") as source:
                written[name] = hashlib.file_digest(source, "sha256").hexdigest()
    with zipfile.ZipFile(job.target) as archive:
        for name in names:
            with archive.open(name) as packed:
                digest = hashlib.file_digest(packed, "sha256").hexdigest()  # type: ignore[arg-type]
            if digest != written[name]:
                raise DataError(f"{job.target}: {name} differs from the model's; export again.")
    emit(Note(f"Packed {len(names)} files; unpack them into a folder to predict with them."))
    return job.target

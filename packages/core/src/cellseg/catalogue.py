"""Public data sets that ``cellseg data get`` downloads: where they are, and whose they are.

Checksums are those that their publishers, or libraries that use the files, state. Where none is
stated, there is none here either.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellseg.download.remote import Remote
from cellseg.errors import UsageError
from cellseg.texts import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of a data set."""

    remote: Remote
    part: str = ""
    """The name to ask for it alone by; empty where there is only this file."""
    unpack: bool = False
    """Whether it is a ZIP archive, which is unpacked and then removed."""
    flat: bool = False
    """Whether the folders in the archive are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One public data set."""

    name: str
    summary: str
    reader: str
    """The reader for it."""
    files: tuple[DataFile, ...]
    holds: str
    """What lies in the folder afterwards."""
    licence: str
    citation: str
    home: str
    """Its own page."""
    needs: str = ""
    """What must be installed to read it."""
    train: str = ""
    """What to add to the command that trains on it."""

    @property
    def size(self) -> int | None:
        """Bytes to download; None where that is not known of all files."""
        sizes = [file.remote.size for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def chosen(self, parts: tuple[str, ...]) -> tuple[DataFile, ...]:
        """The files of some parts; all without any.

        Raises:
            UsageError: there is no such part.
        """
        names = [file.part for file in self.files if file.part]
        for part in parts:
            if part not in names:
                raise UsageError(
                    f"{self.name} has no part {part!r}.",
                    hint=did_you_mean(part, names, f"It has: {', '.join(names) or 'no parts'}."),
                )
        return tuple(file for file in self.files if not parts or file.part in parts)


_CREMI = {
    "A": "4c563d1b78acb2bcfb3ea958b6fe1533422f7f4a19f3e05b600bfa11430b510d",
    "B": "887e85521e00deead18c94a21ad71f278d88a5214c7edeed943130a1f4bb48b8",
    "C": "2874496f224d222ebc29d0e4753e8c458093e1d37bc53acd1b69b19ed1ae7052",
}
"""SHA-256 of the cropped training volumes of 2016-05-01, as torch-em states them."""
_MITOEM2 = ("Beta", "Jurkat", "Macro", "Mossy", "Podo", "Pyra", "Sperm", "Stem")

_SETS = (
    DataSet(
        name="snemi3d",
        summary="neurites of mouse cortex, 100 slices to train on and 100 to test on",
        reader="snemi3d",
        files=(
            DataFile(
                remote=Remote(
                    url="https://zenodo.org/records/7142003/files/snemi.zip",
                    name="snemi.zip",
                    checksum="md5:3d25a7025f66698f33c7850ace885939",
                ),
                unpack=True,
                flat=True,
            ),
        ),
        holds="train-input.tif and train-labels.tif (AC4), test-input.tif (AC3, without labels)",
        licence="CC-BY-4.0",
        citation="Kasthuri et al. 2015, Saturated reconstruction of a volume of neocortex, "
        "doi:10.1016/j.cell.2015.06.054; data doi:10.5281/zenodo.7142003",
        home="https://zenodo.org/records/7142003",
        train="--preset snemi3d",
    ),
    DataSet(
        name="cremi",
        summary="neurons and synaptic clefts of the fly brain, three volumes",
        reader="cremi",
        files=tuple(
            DataFile(
                remote=Remote(
                    url=f"https://cremi.org/static/data/sample_{sample}_20160501.hdf",
                    name=f"sample_{sample}_20160501.hdf",
                    checksum=f"sha256:{digits}",
                ),
                part=sample,
            )
            for sample, digits in _CREMI.items()
        ),
        holds="sample_A_20160501.hdf, sample_B_20160501.hdf, sample_C_20160501.hdf",
        licence="not known to cellseg; ask its authors before you redistribute it",
        citation="Funke et al. 2016, MICCAI challenge on circuit reconstruction from electron "
        "microscopy images, https://cremi.org",
        home="https://cremi.org/data",
        train="--preset cremi3d",
    ),
    DataSet(
        name="mitoem2",
        summary="mitochondria of eight kinds of cells",
        reader="nifti",
        files=tuple(
            DataFile(
                remote=Remote(
                    url=f"https://zenodo.org/records/17635006/files/Dataset{n:03d}_ME2-{kind}.zip",
                    name=f"Dataset{n:03d}_ME2-{kind}.zip",
                ),
                part=kind.lower(),
                unpack=True,
            )
            for n, kind in enumerate(_MITOEM2, 1)
        ),
        holds="a folder for each kind of cell, such as Dataset001_ME2-Beta",
        licence="CC-BY-4.0",
        citation="MitoEM 2.0, doi:10.1101/2025.11.12.687478; data doi:10.5281/zenodo.17635006",
        home="https://doi.org/10.5281/zenodo.17635006",
        needs='uv pip install "cellseg-core[nifti]"',
    ),
)

CATALOGUE = {data.name: data for data in _SETS}
"""All data sets, by name."""


def data_set(name: str) -> DataSet:
    """The data set of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CATALOGUE:
        raise UsageError(
            f"There is no data set {name!r}.",
            hint=did_you_mean(name, CATALOGUE, f"There are: {', '.join(CATALOGUE)}."),
        )
    return CATALOGUE[name]

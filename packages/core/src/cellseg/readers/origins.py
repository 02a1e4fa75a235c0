"""Which images of a folder were made from one another, as their files cannot say.

``cellseg augment`` leaves the file ``cellseg-samples.json`` beside the images. It names each of
them, with the image that it is a copy of, so that no split ever parts the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellseg.data import Dataset, Sample
from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.locations import is_remote
from cellseg.readers.recognise import is_zarr_node

FILE = "cellseg-samples.json"


class Origin(BaseModel):
    """Where one image comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    source: str = Field(min_length=1)
    """What splits keep together: the same for an image and all that was made from it."""
    split: Literal["train", "val"] | None = None
    """As ``Sample.split``."""
    weight: float = 1.0
    """As ``Sample.weight``."""


class Origins(BaseModel):
    """Where all images of a folder come from; stored as ``cellseg-samples.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    samples: Mapping[str, Origin]
    """By the names that the readers give them."""
    classes: tuple[str, ...] = ()
    """As ``Sample.classes``, of all images."""

    def save(self, folder: Path) -> None:
        """Write the file into the folder of a data set.

        Raises:
            StorageError: it cannot be written.
        """
        text = self.model_dump_json(indent=2, exclude_defaults=True)
        write_atomic(folder / FILE, text + "\n")

    @classmethod
    def load(cls, file: Path) -> Origins:
        """Read the file.

        Raises:
            DataError: it is damaged.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise DataError(
                f"{file}: cannot be read: {reason}.",
                hint='It looks like {"samples": {"cell_aug1": {"source": "cell"}, ...}}.',
            ) from error

    def of(self, sample: Sample, file: Path) -> Sample:
        """The sample with what this says about it.

        Raises:
            DataError: it says nothing, so that the sample might be a copy of any other.
        """
        if sample.name not in self.samples:
            raise DataError(
                f"{file}: does not say where {sample.name!r} comes from, so that it might be "
                "trained on and validated on at once.",
                hint=f'Add "{sample.name}": {{"source": "{sample.name}"}} to it if no other image '
                "there was made from the same one, else with the same source as that.",
            )
        origin = self.samples[sample.name]
        return replace(
            sample,
            source=origin.source,
            split=origin.split or sample.split,
            weight=origin.weight,
            classes=self.classes or sample.classes,
        )


def with_origins(path: Path, samples: Dataset) -> Dataset:
    """The samples of a data set with what the file beside them says, where there is one.

    Args:
        path: the data set, for samples that do not tell their file.
        samples: as a reader gives them.

    Raises:
        DataError: the file is damaged, or does not name one of the samples.
    """
    known: dict[Path, Origins | None] = {}
    told: list[Sample] = []
    for sample in samples:
        at = sample.path or (path / FILE if path.is_dir() else path)
        if is_remote(path):  # a question costs time there, and plates have many folders
            at = path if is_zarr_node(path) else path / FILE
        for place in _places(at):
            if place not in known:
                known[place] = Origins.load(place / FILE) if (place / FILE).is_file() else None
            found = known[place]
            if found is not None:
                sample = found.of(sample, place / FILE)
                break
        told.append(sample)
    return told


def _places(at: Path) -> Iterator[Path]:
    """Where the file of an image may be: beside it, or beside the folder with images that it is in,
    as the path says or as links lead."""
    for path in dict.fromkeys((at.absolute(), at.resolve())):
        yield path.parent
        yield path.parent.parent

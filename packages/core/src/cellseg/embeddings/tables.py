"""The tables that ``cellseg embed`` writes: a row for each object, in one order in all of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow  # noqa: TID253
import pyarrow.parquet  # noqa: TID253
from numpy.typing import NDArray

from cellseg.classes import SHIFT
from cellseg.embeddings.run import Embedded
from cellseg.embeddings.units import Unit
from cellseg.files import write_atomic
from cellseg.outputs.result import output_file
from cellseg.outputs.table import DIGITS
from cellseg.texts import CsvWriter

MANIFEST = "manifest.parquet"
SCHEMA = "schema.json"
SUMMARY = "summary.json"
SKIPPED = "skipped.csv"
FILES = {
    "mean": "embeddings_mean.parquet",
    "mean-std-max": "embeddings_mean_std_max.parquet",
}
"""The file of each pooling."""
_PREFIXES = {"mean": "emb_m", "deviation": "emb_s", "highest": "emb_x"}
_BLOCKS = {"mean": ("mean",), "mean-std-max": ("mean", "deviation", "highest")}
_NUMBERS = 1 << 22
"""Numbers in a group of rows, about."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns the tables have."""

    poolings: tuple[str, ...]
    dimension: int
    frames: bool
    """Whether there are movies."""
    classes: bool
    """Whether objects have classes."""
    plates: bool
    """Whether images are fields of a plate."""

    @property
    def keys(self) -> tuple[tuple[str, pyarrow.DataType], ...]:
        """What all tables begin with."""
        text = pyarrow.string()
        keys = [("row", pyarrow.int64()), ("image", text)]
        keys += [("frame", pyarrow.int32())] * self.frames
        keys += [("id", pyarrow.int64())]
        keys += [("class", text)] * self.classes
        return tuple(keys)

    @property
    def manifest(self) -> tuple[tuple[str, pyarrow.DataType], ...]:
        """The columns of the manifest."""
        parts = [(name, pyarrow.string()) for name in ("plate", "well", "field")] * self.plates
        centroid = [(f"centroid_{axis}", pyarrow.float64()) for axis in "zyx"]
        box = [(f"{axis}_{end}", pyarrow.int32()) for end in ("min", "max") for axis in "zyx"]
        return (*self.keys, *parts, ("area", pyarrow.int64()), *centroid, *box)

    def vectors(self, pooling: str) -> tuple[str, ...]:
        """The columns of a pooling's numbers."""
        return tuple(
            f"{_PREFIXES[block]}_{number:04d}"
            for block in _BLOCKS[pooling]
            for number in range(self.dimension)
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where on a plate an image was taken."""

    plate: str
    well: str
    field: str

    @classmethod
    def of(cls, unit: Unit, container: str) -> Place | None:
        """From an image's name, ``B/03/0``, and what it has in common with its well.

        Args:
            unit: the image.
            container: what the plate is called where the name does not say.
        """
        well, _, field = unit.image.rpartition("/")
        parts = well.split("/")
        if unit.sample.source != well or len(parts) < 2:
            return None
        return cls("/".join(parts[:-2]) or container, "/".join(parts[-2:]), field)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Objects or a whole image that are not in the tables."""

    image: str
    frame: int | None
    objects: int | None
    """How many; None where nobody counted them."""
    status: str
    """``left out``, ``skipped`` or ``failed``."""
    reason: str


class Tables:
    """The manifest and the embeddings, written group of rows by group of rows.

    They appear under their names when all of them are whole.

    Args:
        folder: where to.
        layout: their columns.
        container: what a plate is called where the names of its fields do not say.

    Raises:
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """

    def __init__(self, folder: Path, layout: Layout, container: str) -> None:
        self.rows = 0
        """Written so far, those that still wait included."""
        self._layout = layout
        self._container = container
        self._folder = folder
        self._waiting: list[tuple[Unit, Embedded]] = []
        widest = max(len(layout.vectors(pooling)) for pooling in layout.poolings)
        self._group = max(1, _NUMBERS // widest)
        self._schemas = _schemas(layout)
        self._files = ExitStack()
        self._writers: dict[str, pyarrow.parquet.ParquetWriter] = {}

    def __enter__(self) -> Tables:
        """Open all files."""
        text = [name for name, kind in self._layout.manifest if kind == pyarrow.string()]
        with ExitStack() as files:
            for name, schema in self._schemas.items():
                temporary = files.enter_context(output_file(self._folder / name))
                self._writers[name] = pyarrow.parquet.ParquetWriter(
                    str(temporary),
                    schema,
                    compression="zstd",
                    use_dictionary=[column for column in text if column in schema.names],
                )
            self._files = files.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give them their names, or remove what is half-written."""
        with self._files:
            try:
                if error is None:
                    self._flush()
            finally:
                for writer in self._writers.values():
                    writer.close()
            if error is not None:
                self._files.__exit__(kind, error, trace)

    def add(self, unit: Unit, found: Embedded) -> None:
        """Add the objects of a unit."""
        for start in range(0, len(found), self._group):
            part = found.rows(start, start + self._group)
            self._waiting.append((unit, part))
            self.rows += len(part)
            if sum(len(one) for _, one in self._waiting) >= self._group:
                self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        units, every = zip(*self._waiting, strict=True)
        self._waiting = []
        counts = [len(found) for found in every]
        values = self._keys(units, every, counts)
        values |= _measured(every)
        if self._layout.plates:
            places = [Place.of(unit, self._container) for unit in units]
            for name in ("plate", "well", "field"):
                values[name] = _repeated([getattr(p, name) if p else None for p in places], counts)
        self._write(MANIFEST, values)
        for pooling in self._layout.poolings:
            blocks = [
                np.concatenate([getattr(found, name) for found in every]).T
                for name in _BLOCKS[pooling]
            ]
            numbers = zip(self._layout.vectors(pooling), np.concatenate(blocks), strict=True)
            self._write(FILES[pooling], values | dict(numbers))

    def _keys(
        self, units: Sequence[Unit], every: Sequence[Embedded], counts: Sequence[int]
    ) -> dict[str, Any]:
        total = sum(counts)
        waiting = self.rows - total
        ids = np.concatenate([found.ids for found in every])
        values: dict[str, Any] = {
            "row": np.arange(waiting, self.rows),
            "image": _repeated([unit.image for unit in units], counts),
            "frame": pyarrow.array([unit.frame for unit in units], pyarrow.int32()).take(
                np.repeat(np.arange(len(units)), counts)
            ),
            "id": ids.astype(np.int64),
        }
        if self._layout.classes:
            coded = np.repeat([bool(unit.sample.classes) for unit in units], counts)
            values["id"][coded] &= (1 << SHIFT) - 1
            names = [
                unit.sample.classes[kind] if unit.sample.classes else None
                for unit, found in zip(units, every, strict=True)
                for kind in (found.ids >> SHIFT).tolist()
            ]
            values["class"] = pyarrow.array(names, pyarrow.string())
        return values

    def _write(self, name: str, values: dict[str, Any]) -> None:
        schema = self._schemas[name]
        table = pyarrow.table([values[column] for column in schema.names], schema=schema)
        self._writers[name].write_table(table, row_group_size=len(table))


def _schemas(layout: Layout) -> dict[str, pyarrow.Schema]:
    schemas = {MANIFEST: pyarrow.schema(layout.manifest)}
    for pooling in layout.poolings:
        columns = [(name, pyarrow.float32()) for name in layout.vectors(pooling)]
        schemas[FILES[pooling]] = pyarrow.schema([*layout.keys, *columns])
    return schemas


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write what is not in the tables, and why, as CSV."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(("image", "frame", "objects", "status", "reason"))
    for one in skipped:
        writer.writerow((one.image, one.frame, one.objects, one.status, one.reason))
    write_atomic(path, text.getvalue())


def _repeated(texts: Sequence[str | None], counts: Sequence[int]) -> pyarrow.Array:
    """Each text as often as its count says."""
    index: NDArray[np.intp] = np.repeat(np.arange(len(texts)), counts)
    return pyarrow.array(texts, pyarrow.string()).take(index)


def _measured(every: Sequence[Embedded]) -> dict[str, Any]:
    values: dict[str, Any] = {"area": np.concatenate([found.area for found in every])}
    centroid = np.round(np.concatenate([found.centroid for found in every]), DIGITS)
    for end, name in (("min", "low"), ("max", "high")):
        corner = np.concatenate([getattr(found, name) for found in every]).astype(np.int32)
        values |= {f"{axis}_{end}": corner[:, i] for i, axis in enumerate("zyx")}
    return values | {f"centroid_{axis}": centroid[:, i] for i, axis in enumerate("zyx")}

"""The object table: one row for each object, as CSV or parquet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.engine.tile import NO_CLASS
from cellseg.outputs.result import Result, output_file
from cellseg.texts import CsvWriter

DIGITS = 3
"""Decimals of centroids: a thousandth of a voxel."""
_ROWS = 10_000
"""Rows that are put into words at once."""
_GROUP = 100_000
"""Rows from which on a part of the table is written, at the end of a frame."""


def columns(result: Result, frames: range | None = None) -> dict[str, NDArray[Any]]:
    """The table, column by column.

    ``frame`` (of movies), ``id``, ``track`` (where objects were followed; the same number),
    ``area`` (voxels), ``centroid_z``, ``_y``, ``_x`` (voxels, the centre of the first voxel is 0),
    ``z_min`` ... ``x_max`` (the bounding box, without its end), ``score`` (0 to 1, NaN where the
    model gives none), ``class`` (name, empty where there is none), and ``touches_border``: whether
    the object reaches the border of the image, or of its plane where planes are segmented by
    themselves.

    Args:
        result: what to describe.
        frames: which of its frames; by default all.
    """
    frames = range(len(result.frames)) if frames is None else frames
    table: dict[str, NDArray[Any]] = {}
    objects = [result.objects[frame] for frame in frames]
    counts = [len(one) for one in objects]
    if result.movie:
        table["frame"] = np.repeat(np.asarray(frames), counts)
    if result.ids is None:
        table["id"] = np.concatenate([np.arange(1, n + 1) for n in counts])
    else:
        table["id"] = np.concatenate([result.ids[frame] for frame in frames]).astype(np.int64)
        table["track"] = table["id"]
    joined = {
        name: np.concatenate([getattr(one, name) for one in objects])
        for name in ("area", "centroid", "low", "high", "score", "kind")
    }
    table["area"] = joined["area"]
    for i, axis in enumerate("zyx"):
        table[f"centroid_{axis}"] = np.round(joined["centroid"][:, i], DIGITS)
    for end, name in (("min", "low"), ("max", "high")):
        for i, axis in enumerate("zyx"):
            table[f"{axis}_{end}"] = joined[name][:, i]
    table["score"] = joined["score"]
    known = dict(enumerate(result.classes)) | {NO_CLASS: ""}
    table["class"] = np.array([known.get(k, str(k)) for k in joined["kind"].tolist()], np.str_)
    flat = result.planes or result.shape[0] == 1
    inner = np.array(result.shape)[1 if flat else 0 :]
    low, high = joined["low"][:, 1 if flat else 0 :], joined["high"][:, 1 if flat else 0 :]
    table["touches_border"] = (low == 0).any(1) | (high == inner).any(1)
    return table


def write_csv(result: Result, path: Path) -> None:
    """Write the object table as CSV; a missing score is an empty field."""
    with output_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = CsvWriter(file)
        for number, table in enumerate(_parts(result)):
            if not number:
                writer.writerow(table)
            for start in range(0, len(table["id"]), _ROWS):
                result.pause()
                rows = {
                    name: column[start : start + _ROWS].tolist() for name, column in table.items()
                }
                rows["score"] = ["" if isnan(s) else round(s, 6) for s in rows["score"]]
                rows["touches_border"] = [str(t).lower() for t in rows["touches_border"]]
                writer.writerows(zip(*rows.values(), strict=True))


def write_parquet(result: Result, path: Path) -> None:
    """Write the object table as parquet; a missing score is null."""
    import pyarrow.parquet

    parts = (_arrow(part) for part in _parts(result))
    first = next(parts)
    with (
        output_file(path) as temporary,
        pyarrow.parquet.ParquetWriter(str(temporary), first.schema) as writer,
    ):
        for table in chain([first], parts):
            result.pause()
            writer.write_table(table)


def _arrow(table: dict[str, NDArray[Any]]) -> Any:
    """A part of the table; what is missing is null."""
    import pyarrow

    arrays: dict[str, Any] = {}
    for name, column in table.items():
        if name == "score":
            arrays[name] = pyarrow.array(column, mask=np.isnan(column))
        elif name == "class":
            arrays[name] = pyarrow.array(column.tolist(), pyarrow.string())
        else:
            arrays[name] = pyarrow.array(column)
    return pyarrow.table(arrays)


def _parts(result: Result) -> Iterator[dict[str, NDArray[Any]]]:
    """The table, some frames at a time; at least one part, which may be without rows."""
    start, rows = 0, 0
    for frame, objects in enumerate(result.objects):
        rows += len(objects)
        if rows >= _GROUP:
            yield columns(result, range(start, frame + 1))
            start, rows = frame + 1, 0
    if start < len(result.objects) or not start:
        yield columns(result, range(start, len(result.objects)))

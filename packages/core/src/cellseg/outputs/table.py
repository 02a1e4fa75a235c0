"""The object table: one row for each object, as CSV or parquet."""

from __future__ import annotations

import csv
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.engine.tile import NO_CLASS
from cellseg.outputs.result import Result, output_file

DIGITS = 3
"""Decimals of centroids: a thousandth of a voxel."""
_ROWS = 10_000
"""Rows that are put into words at once."""


def columns(result: Result) -> dict[str, NDArray[Any]]:
    """The table, column by column.

    ``frame`` (of movies), ``id``, ``area`` (voxels), ``centroid_z``, ``_y``, ``_x`` (voxels,
    the centre of the first voxel is 0), ``z_min`` ... ``x_max`` (the bounding box, without its
    end), ``score`` (0 to 1, NaN where the model gives none), ``class`` (name, empty where
    there is none), and ``touches_border``: whether the object reaches the border of the image,
    or of its plane where planes are segmented by themselves.
    """
    table: dict[str, NDArray[Any]] = {}
    counts = [len(objects) for objects in result.objects]
    if result.movie:
        table["frame"] = np.repeat(np.arange(len(counts)), counts)
    table["id"] = np.concatenate([np.arange(1, n + 1) for n in counts])
    joined = {
        name: np.concatenate([getattr(objects, name) for objects in result.objects])
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
    table = columns(result)
    total = len(table["id"])
    with output_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        for start in range(0, total, _ROWS):
            result.pause()
            part = {name: column[start : start + _ROWS].tolist() for name, column in table.items()}
            part["score"] = ["" if isnan(s) else round(s, 6) for s in part["score"]]
            part["touches_border"] = [str(t).lower() for t in part["touches_border"]]
            writer.writerows(zip(*part.values(), strict=True))


def write_parquet(result: Result, path: Path) -> None:
    """Write the object table as parquet; a missing score is null."""
    import pyarrow
    import pyarrow.parquet

    arrays: dict[str, Any] = {}
    for name, column in columns(result).items():
        if name == "score":
            arrays[name] = pyarrow.array(column, mask=np.isnan(column))
        elif name == "class":
            arrays[name] = pyarrow.array(column.tolist(), pyarrow.string())
        else:
            arrays[name] = pyarrow.array(column)
    with output_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(arrays), str(temporary))

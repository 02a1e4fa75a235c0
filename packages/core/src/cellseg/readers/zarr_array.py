"""Zarr arrays on disk: described by their JSON, opened with zarr only when a block is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError
from cellseg.readers.problems import damaged
from cellseg.readers.recognise import read_json


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One array of a Zarr container, of format 2 or 3, sharded or not."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    """Shape of what one file holds: a chunk, or a shard."""
    prefix: str
    """Start of the names of chunk files."""
    separator: str
    """What stands between the numbers in the names of chunk files."""
    dimensions: tuple[str | None, ...] = ()
    """Names of the axes, where the array gives them."""
    strict: bool = True
    """A chunk that is not there is an error; else it reads as the fill value."""

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read the chunks under one block."""
        if self.strict:
            self._refuse_missing(key)
        with damaged(self.where):
            array = _opened(self.where, *_identity(self.where))
            return np.asarray(array[key])

    def _refuse_missing(self, key: tuple[slice, ...]) -> None:
        spans = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(key, self.chunk, strict=True)
        ]
        for index in itertools.product(*spans):
            name = self.prefix + self.separator.join(map(str, index))
            if not os.path.exists(os.path.join(self.where, name)):
                raise DataError(
                    f"{self.where}: the chunk {name} is missing.",
                    hint="Copy the image again; if it was written without its empty chunks, add "
                    "--allow-missing-chunks.",
                )


def zarr_array(path: Path, *, strict: bool) -> ZarrArray | None:
    """Describe the array at ``path``; None where there is no array.

    Raises:
        DataError: its metadata is damaged.
    """
    node = read_json(path / "zarr.json")
    if node is not None:
        return _format_3(path, node, strict) if node.get("node_type") == "array" else None
    node = read_json(path / ".zarray")
    return _format_2(path, node, strict) if node is not None else None


def _format_3(path: Path, node: Mapping[str, Any], strict: bool) -> ZarrArray:
    with damaged(str(path / "zarr.json")):
        encoding = node["chunk_key_encoding"]
        default = encoding["name"] == "default"
        separator = encoding.get("configuration", {}).get("separator", "/" if default else ".")
        return ZarrArray(
            where=str(path),
            shape=tuple(map(int, node["shape"])),
            dtype=np.dtype(node["data_type"]),
            chunk=tuple(map(int, node["chunk_grid"]["configuration"]["chunk_shape"])),
            prefix=f"c{separator}" if default else "",
            separator=separator,
            dimensions=tuple(node.get("dimension_names") or ()),
            strict=strict,
        )


def _format_2(path: Path, node: Mapping[str, Any], strict: bool) -> ZarrArray:
    with damaged(str(path / ".zarray")):
        attributes = read_json(path / ".zattrs") or {}
        return ZarrArray(
            where=str(path),
            shape=tuple(map(int, node["shape"])),
            dtype=np.dtype(node["dtype"]).newbyteorder("="),
            chunk=tuple(map(int, node["chunks"])),
            prefix="",
            separator=node.get("dimension_separator", "."),
            dimensions=tuple(attributes.get("_ARRAY_DIMENSIONS") or ()),
            strict=strict,
        )


def _identity(where: str) -> tuple[int, int]:
    for name in ("zarr.json", ".zarray"):
        try:
            status = os.stat(os.path.join(where, name))
        except FileNotFoundError:
            continue
        return status.st_mtime_ns, status.st_ino
    raise FileNotFoundError(where)


# Parsed metadata, no pixels; the numbers make an array that was written anew a new one.
@lru_cache(maxsize=256)
def _opened(where: str, modified: int, inode: int) -> Any:
    import zarr

    return zarr.open_array(where, mode="r")

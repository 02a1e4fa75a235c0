"""Zarr arrays: described by their JSON, opened with zarr only when a block is read."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError
from cellseg.locations import is_remote
from cellseg.readers.problems import damaged
from cellseg.readers.recognise import read_json
from cellseg.readers.zarr_limits import (
    PLAIN,
    Packing,
    check_format_2,
    check_format_3,
    check_separator,
    refuse_bomb,
    refuse_bomb_in,
    refuse_link,
)


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
    known: tuple[tuple[str, bytes], ...] = ()
    """Of an array at an address, its metadata files by name: they are read once."""
    packing: Packing = PLAIN
    """How its chunks are compressed."""

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read the chunks under one block; of arrays at addresses, many at the same time."""
        if self.known:
            return self._read_from_store(key)
        self._check_chunks(key)
        with damaged(self.where):
            array = _opened(self.where, *_identity(self.where))
            return np.asarray(array[key])

    def _read_from_store(self, key: tuple[slice, ...]) -> NDArray[Any]:
        from cellseg.remote import reading
        from cellseg.remote_stores import block_of

        with damaged(self.where), reading(self.where):
            array = _opened_at(self.where, self.known, self.packing, self.strict)
            return block_of(array, key)

    def _check_chunks(self, key: tuple[slice, ...]) -> None:
        """Refuse chunks that are missing, or that unpack to more than there is room for."""
        spans = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(key, self.chunk, strict=True)
        ]
        for index in itertools.product(*spans):
            name = self.prefix + self.separator.join(map(str, index))
            file = os.path.join(self.where, name)
            refuse_link(self.where, name)
            refuse_bomb(Path(file), self.packing)
            if self.strict and not os.path.exists(file):
                raise DataError(
                    f"{self.where}: the chunk {name} is missing.",
                    hint="Copy the image again; if it was written without its empty chunks, add "
                    "--allow-missing-chunks.",
                )


def zarr_array(path: Path, *, strict: bool, named: bool = True) -> ZarrArray | None:
    """Describe the array at ``path``; None where there is no array.

    Args:
        path: of the array.
        strict: a chunk that is not there is an error when it is read.
        named: look for the names of the axes in its attributes, too.

    Raises:
        DataError: its metadata is damaged.
    """
    node = read_json(path / "zarr.json")
    if node is not None:
        if node.get("node_type") != "array":
            return None
        return _known(path, "zarr.json", node, _format_3(path, node, strict))
    node = read_json(path / ".zarray")
    if node is None:
        return None
    return _known(path, ".zarray", node, _format_2(path, node, strict, named))


def _known(path: Path, name: str, node: Mapping[str, Any], array: ZarrArray) -> ZarrArray:
    """The array with what is known of its metadata, where it is at an address."""
    if not is_remote(path):
        return array
    return replace(array, known=((name, json.dumps(node).encode()),))


def _format_3(path: Path, node: Mapping[str, Any], strict: bool) -> ZarrArray:
    with damaged(str(path / "zarr.json")):
        encoding = node["chunk_key_encoding"]
        default = encoding["name"] == "default"
        separator = encoding.get("configuration", {}).get("separator", "/" if default else ".")
        dtype = np.dtype(node["data_type"])
        return ZarrArray(
            where=str(path),
            shape=tuple(map(int, node["shape"])),
            dtype=dtype,
            chunk=tuple(map(int, node["chunk_grid"]["configuration"]["chunk_shape"])),
            prefix=f"c{separator}" if default else "",
            separator=check_separator(separator),
            dimensions=tuple(node.get("dimension_names") or ()),
            strict=strict,
            packing=check_format_3(str(path), node, dtype),
        )


def _format_2(path: Path, node: Mapping[str, Any], strict: bool, named: bool) -> ZarrArray:
    with damaged(str(path / ".zarray")):
        attributes = (read_json(path / ".zattrs") or {}) if named else {}
        dtype = np.dtype(node["dtype"]).newbyteorder("=")
        return ZarrArray(
            where=str(path),
            shape=tuple(map(int, node["shape"])),
            dtype=dtype,
            chunk=tuple(map(int, node["chunks"])),
            prefix="",
            separator=check_separator(node.get("dimension_separator", ".")),
            dimensions=tuple(attributes.get("_ARRAY_DIMENSIONS") or ()),
            strict=strict,
            packing=check_format_2(str(path), node, dtype),
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


@lru_cache(maxsize=256)
def _opened_at(
    where: str, known: tuple[tuple[str, bytes], ...], packing: Packing, strict: bool
) -> Any:
    """The array at an address; it asks for chunks alone."""
    import zarr

    from cellseg.remote_stores import ReadingStore, store_at

    def check(key: str, content: bytes) -> None:
        refuse_bomb_in(io.BytesIO(content), f"{where}/{key}", packing)

    below = store_at(where, read_only=True)
    store = ReadingStore(below, where, dict(known), check, strict=strict)
    return zarr.open_array(store, mode="r")

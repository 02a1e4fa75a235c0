"""What is refused of HDF5 files: links to files of other folders, and chunks that inflate."""

from __future__ import annotations

import itertools
import math
import zlib
from pathlib import Path
from typing import Any

from cellseg.errors import DataError
from cellseg.limits import (
    DEFLATE,
    MEGABYTE,
    MOST_DECODED,
    is_inside,
    refuse_absurd,
    refuse_large_block,
    size_text,
)

_DEEPEST = 8
"""Files that name files that name files..."""
_HINT = "Copy what it leads to into one file, if you know what that is."


def linked(path: Path, group: Any, name: str) -> Any:
    """The member ``name`` of a group; None for a link to nothing.

    Args:
        path: of the file that was opened first.
        group: of h5py.
        name: of the member.

    Raises:
        DataError: it is in a file in another folder, takes its numbers from one, or its chunks are
            too large.
    """
    import h5py

    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        _refuse_outside(path, Path(group.file.filename).parent / link.filename, name)
    node = group.get(name)
    if node is not None and node.file.filename != group.file.filename:  # by a link to a link
        _refuse_outside(path, Path(node.file.filename), name)
    if isinstance(node, h5py.Dataset):
        _check(path, node, 0)
    return node


def refuse_bombs(where: str, dataset: Any, key: tuple[slice, ...]) -> None:
    """Raise a DataError for a chunk under a block that inflates to more than a chunk has.

    Only chunks of zlib are looked at that could inflate to more than may be decoded at once.

    Args:
        where: the file and the array.
        dataset: of h5py.
        key: one slice an axis, step 1, within the shape.
    """
    if not dataset.chunks or dataset.compression != "gzip":
        return
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    spans = [
        range(part.start // n * n, part.stop, n)
        for part, n in zip(key, dataset.chunks, strict=True)
    ]
    for place in itertools.product(*spans):
        stored = dataset.id.get_chunk_info_by_coord(place).size or 0
        if stored * DEFLATE <= max(size, MOST_DECODED):
            continue
        _, packed = dataset.id.read_direct_chunk(place)
        found = inflated(zlib.decompressobj(), packed, size)
        if found > size:
            raise DataError(
                f"{where}: is damaged: the chunk at {place} inflates to {size_text(found)} or"
                f" more, and a chunk has {size_text(size)}."
            )


def inflated(unpack: Any, data: bytes, most: int) -> int:
    """How much data inflate to, counted until it is more than ``most``.

    Args:
        unpack: a ``zlib.decompressobj``.
        data: all of it.
        most: bytes.
    """
    total = 0
    while data and total <= most and not unpack.eof:
        try:
            total += len(unpack.decompress(data, MEGABYTE))
        except zlib.error:
            return total  # the decoder says that it is damaged
        data = unpack.unconsumed_tail
    return total


def _check(path: Path, dataset: Any, depth: int) -> None:
    where = f"{path}:{dataset.name}"
    if dataset.external:
        raise DataError(
            f"{where}: has its numbers in another file, {dataset.external[0][0]!r}.", hint=_HINT
        )
    if dataset.shape is not None:
        refuse_absurd(where, dataset.shape)
    if dataset.chunks:
        refuse_large_block(where, dataset.chunks, dataset.dtype.itemsize, "a chunk")
    if not dataset.is_virtual:
        return
    if depth == _DEEPEST:
        raise DataError(f"{where}: is made of files that are made of files, and so on.")
    sources = {(one.file_name, one.dset_name) for one in dataset.virtual_sources()}
    for name, key in sources:
        if name == ".":
            _check_source(path, Path(dataset.file.filename), key, depth)
        else:
            other = Path(dataset.file.filename).parent / name
            _refuse_outside(path, other, dataset.name)
            if other.is_file():  # else it reads as the fill value, as HDF5 has it
                _check_source(path, other, key, depth)


def _check_source(path: Path, file: Path, key: str, depth: int) -> None:
    import h5py

    with h5py.File(file, "r") as opened:
        node = opened
        for part in key.strip("/").split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{path}: {key} of {file.name} is in another file.", hint=_HINT)
            node = node.get(part) if link is not None else None
            if node is not None and node.file.filename != opened.filename:
                _refuse_outside(path, Path(node.file.filename), key)
        if isinstance(node, h5py.Dataset):
            _check(path, node, depth + 1)


def _refuse_outside(path: Path, other: Path, name: str) -> None:
    if not is_inside(other, path.parent):
        raise DataError(
            f"{path}: {name} is in another folder, in {str(other)[:200]!r}.", hint=_HINT
        )

"""What is refused of Zarr arrays before a chunk is decoded: codecs that run code, and lies.

Only codecs in the lists below are taken: any other name could be that of a Python object, such as
``pickle``.
"""

from __future__ import annotations

import bz2
import lzma
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cellseg.errors import DataError
from cellseg.limits import (
    DEFLATE,
    MOST_DECODED,
    is_inside,
    refuse_absurd,
    refuse_large_block,
    size_text,
)

_COMPRESSORS = {"blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4"}
_CHECKSUMS = {"crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"}
_FILTERS = {"delta", "fixedscaleoffset", "quantize", "bitround", "shuffle", "packbits", "astype"}
_SERIAL = {"bytes", "endian", "transpose", "sharding_indexed"}
_KNOWN = _COMPRESSORS | _CHECKSUMS | _FILTERS | _SERIAL
_PREFIX = "numcodecs."
_DEEPEST = 3
"""Shards in shards."""
_STREAMED: Mapping[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": lambda: zlib.decompressobj(15),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


@dataclass(frozen=True, slots=True)
class Packing:
    """How the chunks of an array are compressed."""

    compressor: str = ""
    """Empty where they are not, or are packed into shards."""
    bytes: int = 0
    """Of a chunk that is unpacked; 0 where filters change it."""


PLAIN = Packing()
"""Of chunks that are not looked at."""


def check_format_2(where: str, node: Mapping[str, Any], dtype: np.dtype[Any]) -> Packing:
    """What a ``.zarray`` says of its chunks.

    Raises:
        DataError: a codec is not known, or a chunk or the array is too large.
    """
    shape, chunk = tuple(node["shape"]), tuple(node["chunks"])
    _check_shapes(where, shape, chunk)
    refuse_large_block(where, chunk, dtype.itemsize, "a chunk")
    filters = [_name(one, "id") for one in node.get("filters") or ()]
    compressor = node.get("compressor")
    names = [*filters, *([_name(compressor, "id")] if compressor else ())]
    return _packing(where, names, math.prod(chunk) * dtype.itemsize, dtype)


def check_format_3(where: str, node: Mapping[str, Any], dtype: np.dtype[Any]) -> Packing:
    """What a ``zarr.json`` says of its chunks.

    Raises:
        DataError: a codec is not known, or a chunk or the array is too large.
    """
    chunk = tuple(node["chunk_grid"]["configuration"]["chunk_shape"])
    _check_shapes(where, tuple(node["shape"]), chunk)
    codecs, sharded = node.get("codecs") or (), 0
    while inner := _shards(codecs):
        sharded += 1
        if sharded > _DEEPEST:
            raise DataError(f"{where}: has shards in shards in shards.")
        names = [_name(one, "name") for one in codecs]
        _packing(where, [name for name in names if name != "sharding_indexed"], 0, dtype)
        small = tuple(inner["chunk_shape"])
        _check_shapes(where, chunk, small)
        _packing(where, [_name(one, "name") for one in inner.get("index_codecs") or ()], 0, dtype)
        chunk, codecs = small, inner.get("codecs") or ()
    refuse_large_block(where, chunk, dtype.itemsize, "a chunk")
    names = [_name(one, "name").removeprefix(_PREFIX) for one in codecs]
    packing = _packing(where, names, math.prod(chunk) * dtype.itemsize, dtype)
    return PLAIN if sharded else packing


def check_separator(value: object) -> str:
    """What stands between the numbers in the names of chunk files.

    Raises:
        ValueError: it is none of those that there are.
    """
    if value not in (".", "/"):
        raise ValueError(f"its dimension separator is {value!r}")
    return str(value)


def refuse_link(where: str, name: str) -> None:
    """Raise a DataError for a chunk that lies elsewhere, by a symbolic link.

    Args:
        where: the array.
        name: of the chunk in it, with ``/`` between folders.
    """
    place = where
    for part in name.split("/"):
        place = os.path.join(place, part)
        if os.path.islink(place) and not is_inside(Path(place), Path(where)):
            raise DataError(f"{where}: the chunk {name} is a link to a place that is not in it.")


def refuse_bomb(file: Path, packing: Packing) -> None:
    """Raise a DataError for a chunk that unpacks to more than a chunk of its array has.

    Args:
        file: with the chunk; one that is not there is not looked at.
        packing: of its array.
    """
    if not packing.compressor or not packing.bytes:
        return
    try:
        with file.open("rb") as opened:
            refuse_bomb_in(opened, str(file), packing)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return


def refuse_bomb_in(opened: BinaryIO, name: str, packing: Packing) -> None:
    """The same for a chunk that is open, or in memory, which messages call ``name``."""
    if not packing.compressor or not packing.bytes:
        return
    head = opened.read(32)
    size = opened.seek(0, 2)
    # Blosc goes on reading behind the end of a chunk that is cut short, and gives what is there.
    if packing.compressor == "blosc" and len(head) >= 16:
        wanted = int(struct.unpack("<I", head[12:16])[0])
        if size < wanted:
            raise DataError(f"{name}: is cut short: it has {size} of {wanted} bytes.")
    found = _unpacked(packing, head, size)
    if found is None and packing.compressor in _STREAMED:
        opened.seek(0)
        found = _counted(packing, opened)
    if found is not None and found > packing.bytes:
        raise DataError(
            f"{name}: is damaged: this chunk unpacks to {size_text(found)} or more, and one of its"
            f" array has {size_text(packing.bytes)}."
        )


def _unpacked(packing: Packing, head: bytes, size: int) -> int | None:
    """How much a chunk says that it unpacks to; None where only unpacking tells."""
    kind = packing.compressor
    if kind == "blosc":
        return struct.unpack("<I", head[4:8])[0] if len(head) >= 8 else 0
    if kind == "lz4":
        return struct.unpack("<I", head[:4])[0] if len(head) >= 4 else 0
    if kind == "zstd":
        return _zstd_size(head)
    if kind in ("gzip", "zlib") and size * DEFLATE <= max(packing.bytes, MOST_DECODED):
        return 0  # however it was made, it cannot do harm
    return None


def _zstd_size(head: bytes) -> int | None:
    """The size in the header of a frame of Zstandard (RFC 8878, 3.1.1)."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        return 0  # the decoder says that it is damaged
    flags = head[4]
    single = bool(flags & 0x20)
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    if not width:
        return None
    value = int.from_bytes(head[start : start + width], "little")
    return value + 256 if width == 2 else value


def _counted(packing: Packing, file: Any) -> int:
    """How much a file unpacks to, counted until it is too much."""
    total, step = 0, 1 << 20
    unpack = _STREAMED[packing.compressor]()
    while total <= packing.bytes and (data := file.read(step)):
        while data and total <= packing.bytes:
            try:
                total += len(unpack.decompress(data, step))
            except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
                return total  # the decoder says that it is damaged
            if unpack.eof:
                data, unpack = unpack.unused_data, _STREAMED[packing.compressor]()
            elif hasattr(unpack, "unconsumed_tail"):
                data = unpack.unconsumed_tail
            else:
                data = b""
                while not unpack.needs_input and not unpack.eof and total <= packing.bytes:
                    total += len(unpack.decompress(b"", step))
    return total


def _packing(where: str, names: Sequence[str], size: int, dtype: np.dtype[Any]) -> Packing:
    if dtype.kind not in "buif":
        return PLAIN  # no image: it is never read
    plain = [name.removeprefix(_PREFIX) for name in names]
    for name in plain:
        if name not in _KNOWN:
            raise DataError(
                f"{where}: is packed with the codec {name[:80]!r}, which is not read: it is not"
                " known, or could run code.",
                hint=f"Save it again with one of {', '.join(sorted(_COMPRESSORS))}.",
            )
    compressors = [name for name in plain if name in _COMPRESSORS]
    if len(compressors) > 1:
        raise DataError(f"{where}: is compressed several times: {', '.join(compressors)}.")
    changed = any(name in _FILTERS for name in plain)
    return Packing(compressors[0] if compressors else "", 8 * size if changed else size)


def _check_shapes(where: str, shape: tuple[Any, ...], chunk: tuple[Any, ...]) -> None:
    whole = all(type(length) is int for length in (*shape, *chunk))
    if not whole or len(shape) != len(chunk) or min(chunk, default=1) < 1:
        raise DataError(f"{where}: its metadata are damaged: shape {shape}, chunks {chunk}.")
    refuse_absurd(where, shape)


def _shards(codecs: Any) -> Mapping[str, Any] | None:
    for codec in codecs:
        if isinstance(codec, Mapping) and codec.get("name") == "sharding_indexed":
            return dict(codec["configuration"])
    return None


def _name(codec: Any, key: str) -> str:
    return str(codec[key]) if isinstance(codec, Mapping) else str(codec)

"""Tiles on disk: what is segmented survives a kill, and memory stays that of one tile.

A record is one file: a line of JSON, then compressed arrays. It appears under its name only
when it is whole; one that is damaged counts as missing. Probabilities, where they are asked for,
are compressed plane by plane, because images are written so.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cellseg.data import ZYX
from cellseg.engine.plan import Direction
from cellseg.engine.tile import Sightings, TileLabels, no_objects, no_sightings
from cellseg.files import storage_errors
from cellseg.machine import machine

_COLUMNS = ("area", "centroid", "low", "high", "score", "kind")
_SIGHTINGS = ("ids", "parents", "own")
_MAGIC = b"cellseg tile 1\n"


@contextmanager
def quickly(path: Path) -> Iterator[BinaryIO]:
    """A file to write whole, that a kill can neither damage nor cut short.

    It is not forced onto the disk: after a power cut it may be missing, and is made again.
    """
    # Processes of two computers may have the same number, above all in containers.
    writer = f"{zlib.crc32(machine().encode()):08x}-{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{writer}.part")
    with storage_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_quickly(path: Path, data: bytes) -> None:
    """Write all of a file as ``quickly`` does."""
    with quickly(path) as file:
        file.write(data)


def save(path: Path, tile: TileLabels) -> None:
    """Write the record of a tile.

    Raises:
        StorageError: the disk is full, or permission is missing.
    """
    from imagecodecs import lz4_encode

    blobs: list[bytes] = []
    index: dict[str, tuple[int, int, str, tuple[int, ...]]] = {}
    position = 0
    arrays: dict[str, NDArray[Any]] = {"core": tile.core}
    arrays |= {_key(direction): strip for direction, strip in tile.strips.items()}
    arrays |= {name: getattr(tile.objects, name) for name in _COLUMNS}
    if tile.sightings is not None:
        arrays |= {f"seen {name}": getattr(tile.sightings, name) for name in _SIGHTINGS}
        if tile.sightings.labels is not None:
            arrays["seen labels"] = tile.sightings.labels
    for name, array in arrays.items():
        blob = bytes(lz4_encode(np.ascontiguousarray(array).tobytes())) if array.size else b""
        index[name] = (position, len(blob), array.dtype.str, array.shape)
        position += len(blob)
        blobs.append(blob)
    if tile.probabilities is not None:
        planes = [bytes(lz4_encode(p.tobytes())) for p in _planes(tile.probabilities)]
        ends = position + np.cumsum([0, *map(len, planes)], dtype=np.int64)
        index["planes"] = (int(ends[-1]), ends.nbytes, ends.dtype.str, tile.probabilities.shape)
        blobs += [*planes, ends.tobytes()]
    body = b"".join(blobs)
    head = json.dumps({"arrays": index, "crc": zlib.crc32(body), "size": len(body)}).encode()
    write_quickly(path, b"".join((_MAGIC, head, b"\n", body)))


class Record:
    """A tile read back, array by array."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def whole(self) -> bool:
        """Whether the file holds what was written."""
        with self._path.open("rb") as file:
            head = _head(file)
            body = file.read()
        return bool(len(body) == head["size"] and zlib.crc32(body) == head["crc"])

    @property
    def core(self) -> NDArray[Any]:
        """The labels of the core."""
        return self._arrays(["core"])[0]

    def strip(self, direction: Direction) -> NDArray[Any]:
        """The labels in the window towards ``direction``."""
        return self._arrays([_key(direction)])[0]

    def column(self, name: str) -> NDArray[Any]:
        """A field of the tile's ``Objects``."""
        return self._arrays([name])[0]

    @property
    def count(self) -> int:
        """Number of objects of the tile."""
        with self._path.open("rb") as file:
            return int(_head(file)["arrays"]["area"][3][0])

    @property
    def sightings(self) -> Sightings:
        """What the tile's tracker says; only of tiles that were tracked."""
        with self._path.open("rb") as file:
            halo = "seen labels" in _head(file)["arrays"]
        names = [f"seen {name}" for name in (*_SIGHTINGS, *(["labels"] if halo else []))]
        ids, parents, own, *labels = self._arrays(names)
        return Sightings(ids, parents, own, labels[0] if labels else None)

    @property
    def classes(self) -> int:
        """Number of classes of the tile's probabilities."""
        with self._path.open("rb") as file:
            return int(_head(file)["arrays"]["planes"][3][0])

    def probabilities(self, kind: int, first: int, last: int) -> NDArray[np.float16]:
        """The probability of a class in some planes of the core, ``(last - first, y, x)``."""
        from imagecodecs import lz4_decode

        with self._path.open("rb") as file:
            position, length, code, (_, depth, height, width) = _head(file)["arrays"]["planes"]
            begin = file.tell()
            file.seek(begin + position)
            ends = np.frombuffer(file.read(length), code)[kind * depth :]
            block = np.empty((last - first, height, width), np.float16)
            for z in range(first, last):
                file.seek(begin + int(ends[z]))
                data = file.read(int(ends[z + 1] - ends[z]))
                raw = lz4_decode(data, out=block[0].nbytes)
                block[z - first] = np.frombuffer(raw, np.float16).reshape(height, width)
        return block

    def _arrays(self, names: Sequence[str]) -> list[NDArray[Any]]:
        from imagecodecs import lz4_decode

        arrays = []
        with self._path.open("rb") as file:
            index = _head(file)["arrays"]
            begin = file.tell()
            for name in names:
                position, length, code, shape = index[name]
                dtype = np.dtype(code)
                if not length:
                    arrays.append(np.zeros(shape, dtype))
                    continue
                file.seek(begin + position)
                size = int(np.prod(shape)) * dtype.itemsize
                raw = lz4_decode(file.read(length), out=size)
                arrays.append(np.frombuffer(raw, dtype).reshape(shape))
        return arrays


class NoRecord(Record):
    """Of a tile that is not segmented: background, with a probability of 0 for every class.

    Args:
        shape: of its core, ``(z, y, x)``.
        classes: number of classes of the image's probabilities.
    """

    def __init__(self, shape: ZYX, classes: int = 0) -> None:
        self._shape = shape
        self._classes = classes

    def whole(self) -> bool:
        """There is nothing that could be damaged."""
        return True

    @property
    def core(self) -> NDArray[Any]:
        """Background."""
        return np.zeros(self._shape, np.uint16)

    def column(self, name: str) -> NDArray[Any]:
        """A field of ``Objects`` without any."""
        return np.asarray(getattr(no_objects(), name))

    @property
    def count(self) -> int:
        """None."""
        return 0

    @property
    def sightings(self) -> Sightings:
        """None."""
        return no_sightings()

    @property
    def classes(self) -> int:
        """As those of the tiles that are segmented."""
        return self._classes

    def probabilities(self, kind: int, first: int, last: int) -> NDArray[np.float16]:
        """Zeros, ``(last - first, y, x)``."""
        return np.zeros((last - first, *self._shape[1:]), np.float16)

    def strip(self, direction: Direction) -> NDArray[Any]:
        """Never asked for: there are no objects to compare."""
        raise LookupError("A tile that is not segmented has no windows.")


class PartsOnDisk:
    """``stitch.Parts`` of tiles with a record."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def counts(self) -> list[int]:
        """Number of objects in each tile."""
        return [record.count for record in self._records]

    def column(self, name: str) -> NDArray[Any]:
        """A field of ``Objects``, of all tiles one after the other."""
        return np.concatenate([record.column(name) for record in self._records])


def _planes(probabilities: NDArray[np.float16]) -> Iterator[NDArray[np.float16]]:
    """Every plane of every class, in C order."""
    for volume in probabilities:
        yield from volume


def _head(file: BinaryIO) -> dict[str, Any]:
    if file.readline() != _MAGIC:
        raise ValueError(f"{file.name} is no tile record")
    return dict(json.loads(file.readline()))


def is_whole(path: Path) -> bool:
    """Whether ``path`` is the undamaged record of a tile."""
    try:
        return Record(path).whole()
    except (OSError, ValueError, KeyError):
        return False


def _key(direction: Direction) -> str:
    return "strip" + "".join("-0+"[d + 1] for d in direction)

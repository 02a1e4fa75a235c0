"""What is refused of files from strangers: the limits, and the few questions behind them.

``docs/security.md`` lists the numbers. This module is light.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from cellseg.errors import CellsegError, DataError
from cellseg.locations import is_remote

MEGABYTE = 1 << 20
MOST_DECODED = 2 << 30
"""Bytes that are decoded at once: a tile, strip, chunk, or a picture that comes only as a whole."""
MOST_JSON = 64 * MEGABYTE
"""Bytes of a file of JSON that describes images or models."""
MOST_YAML = MEGABYTE // 2
"""Bytes of a file of YAML."""
MOST_TABLE = 200 * MEGABYTE
"""Bytes of a table of tracks."""
MOST_SIDE = 1 << 40
"""Pixels along an axis, and elements of an array of these: more is no image."""
MOST_ELEMENTS = 1 << 60
DEFLATE = 1032
"""How many bytes a byte of zlib, gzip or PNG can stand for, at most."""


def read_bytes(path: Path, most: int, error: type[CellsegError] = DataError) -> bytes:
    """A whole file that is not too large.

    Args:
        path: the file.
        most: bytes.
        error: what is raised.

    Raises:
        CellsegError: of the class ``error``: it is larger.
        OSError: it cannot be read.
    """
    if is_remote(path):
        content = path.read_bytes()
    elif path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise error(f"{path}: is no file.")
    else:
        with path.open("rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise error(
            f"{path}: has more than {most / MEGABYTE:g} MB, which is the most for its kind."
        )
    return content


def size_text(count: float) -> str:
    """A number of bytes as messages give it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def refuse_large_block(where: str, shape: tuple[int, ...], itemsize: int, what: str) -> None:
    """Raise a DataError where what can only be decoded as a whole does not fit into memory.

    Args:
        where: the file, and the array in it.
        shape: of the block.
        itemsize: bytes of an element.
        what: what messages call the block, such as ``a chunk``.
    """
    count = itemsize
    for length in shape:
        count *= length
    if count > MOST_DECODED:
        size = " x ".join(map(str, shape))
        raise DataError(
            f"{where}: {what} has {size} pixels, {size_text(count)}; it is decoded as a whole, and "
            f"at most {size_text(MOST_DECODED)} are.",
            hint="Save it in smaller tiles or chunks, such as 256 x 256.",
        )


def refuse_absurd(where: str, shape: tuple[int, ...]) -> None:
    """Raise a DataError for a shape that no image has."""
    count = 1
    for length in shape:
        count *= max(length, 1)
    if len(shape) > 32 or min(shape, default=0) < 0 or max(shape, default=0) > MOST_SIDE:
        raise DataError(f"{where}: its shape {_few(shape)} is none of an image.")
    if count > MOST_ELEMENTS:
        raise DataError(f"{where}: its shape {_few(shape)} asks for {count:.1e} pixels.")


def _few(shape: tuple[int, ...]) -> str:
    text = " x ".join(map(str, shape[:8]))
    return text if len(shape) <= 8 else f"{text} x ... ({len(shape)} axes)"


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` lies in ``folder`` once all links are followed; it need not exist."""
    place, home = os.path.realpath(path), os.path.realpath(folder)
    return place == home or place.startswith(home.rstrip(os.sep) + os.sep)


def links_out(folder: Path) -> Iterator[Path]:
    """The symbolic links in a folder, or in folders in it, that lead out of it."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not is_inside(path, folder):
                yield path


def member(container: Path, name: object) -> Path:
    """The place in a container that its metadata name.

    Args:
        container: a folder, or an address.
        name: as the metadata have it, with ``/`` between folders.

    Raises:
        DataError: it lies elsewhere, by its name or by a symbolic link.
    """
    text = str(name)
    parts = text.split("/")
    windows = bool(PureWindowsPath(text).drive) or "\\" in text
    place = container / text.replace("\0", "")
    near = is_remote(container) or is_inside(place, container)
    if text.startswith("/") or ".." in parts or "\0" in text or windows or not near:
        raise DataError(
            f"{container}: its metadata name a place that is not in it: {text[:200]!r}."
        )
    return place

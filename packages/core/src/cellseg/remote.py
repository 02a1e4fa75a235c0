"""Files at addresses, through fsspec. Only ``cellseg.locations`` imports this, for an address.

Credentials, endpoints and other settings of stores come from the environment and from the
configuration files of fsspec and the stores alone; nothing of them is kept here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from upath.extensions import ProxyUPath  # noqa: TID253

from cellseg.errors import CellsegError, DataError, StorageError
from cellseg.locations import at_once, documents_seen

R = TypeVar("R")

NODE_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
"""What a Zarr group or array has one of."""
_OPTIONS: Mapping[str, object] = {"use_listings_cache": False}
"""For fsspec: what others write must be seen."""
ATTEMPTS = 4
"""Of requests by http; the packages of the other stores try again by themselves."""
PAUSE = 0.25
"""Seconds before the second attempt; doubled each time."""
_MAGIC = frozenset("*?[]")
_CREDENTIALS = (
    "Give credentials to the environment (such as AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY), or FSSPEC_S3_ANON=true for public data: see docs/remote-images.md."
)


class RemotePath(ProxyUPath):
    """A path at an address: a file, or whatever has files below it."""

    __slots__ = ()

    def read_bytes(self) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: it cannot be read.
        """
        content = document(self) if self.name in NODE_FILES else _content(self)
        if content is None:
            raise FileNotFoundError(2, "there is no such file", str(self))
        return content

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """All of a file as text, UTF-8 unless told."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Write a whole file; nobody sees a part of it.

        Raises:
            StorageError: it cannot be written.
        """
        with writing(self):
            _again(self, lambda: _system(self).pipe_file(self.path, bytes(data)))
        seen = documents_seen()
        if seen is not None:
            seen.pop(str(self), None)
        return len(data)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Write a whole file of text."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether a file, a Zarr group or array, or anything below it is there."""
        if self.name in NODE_FILES:
            return document(self) is not None
        return self._is_node() or bool(_asked(self, "exists"))

    def is_file(self) -> bool:
        """Whether this is a file."""
        if self.name in NODE_FILES:
            return document(self) is not None
        return not self._is_node() and bool(_asked(self, "isfile"))

    def is_dir(self) -> bool:
        """Whether this is a Zarr group or array, or has files below it that can be listed."""
        if self.name in NODE_FILES:
            return False
        return self._is_node() or (not self.by_http and bool(_asked(self, "isdir")))

    def _is_node(self) -> bool:
        """Whether it has a metadata file of Zarr that is usual or, by http, any."""
        names = NODE_FILES if self.by_http else NODE_FILES[:2]
        return any(document(self / name) is not None for name in names)

    @property
    def by_http(self) -> bool:
        """Whether it is reached by http, where nothing can be listed or written."""
        return self.protocol in ("http", "https")

    def iterdir(self) -> Iterator[RemotePath]:
        """What is directly below it, sorted by name.

        Raises:
            DataError: it cannot be listed.
        """
        if self.by_http:
            raise DataError(
                f"{self}: what is in a folder cannot be listed by http.",
                hint="Give the address of the OME-Zarr itself.",
            )
        listed = _asked(self, "ls", detail=False)
        names = {str(one).rstrip("/").rpartition("/")[2] for one in listed}
        return iter([self / name for name in sorted(names - {self.name, ""})])

    def resolve(self, strict: bool = False) -> RemotePath:
        """Itself."""
        return self

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def expanduser(self) -> RemotePath:
        """Itself."""
        return self

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing to do: stores have no folders."""


def document(path: RemotePath) -> bytes | None:
    """The metadata file of a Zarr group or array; None where there is none.

    Where things that are not there are forbidden too, as in public buckets that nobody may list,
    a file counts as missing if the node has the files of the other format.

    Raises:
        DataError: it cannot be read.
    """
    seen = documents_seen()
    if seen is None:
        return _document(path)
    if path.name == NODE_FILES[0] and _in_format_2(path, seen):
        return None
    if str(path) not in seen:
        seen[str(path)] = _document(path)
    return seen[str(path)]


def fetch(paths: Sequence[Any]) -> None:
    """Read metadata files at once; what cannot be read is left to whoever asks for it."""
    seen = documents_seen()
    assert seen is not None
    wanted = [
        path
        for path in dict.fromkeys(paths)
        if str(path) not in seen and not (path.name == NODE_FILES[0] and _in_format_2(path, seen))
    ]

    def read(path: Any) -> tuple[str, bytes | None] | None:
        try:
            return str(path), _document(path)
        except DataError:  # told to whoever reads it
            return None

    seen.update(one for one in at_once(read, wanted) if one is not None)


def _in_format_2(path: RemotePath, seen: Mapping[str, bytes | None]) -> bool:
    """Whether a node is in a group of Zarr's format 2, which holds none of format 3."""
    group = str(path).rpartition("/")[0].rpartition("/")[0]
    while group.count("/") > 2:
        if seen.get(f"{group}/{NODE_FILES[1]}") and f"{group}/{NODE_FILES[0]}" in seen:
            return seen[f"{group}/{NODE_FILES[0]}"] is None
        group = group.rpartition("/")[0]
    return False


def _document(path: RemotePath) -> bytes | None:
    try:
        return _content(path)
    except DataError as error:
        if not isinstance(error.__cause__, PermissionError) and _status(error.__cause__) != 403:
            raise
        others = NODE_FILES[1:] if path.name == NODE_FILES[0] else NODE_FILES[:1]
        for name in others:
            try:
                if _content(path.with_name(name)) is not None:
                    return None
            except DataError:
                continue
        raise


def _content(path: RemotePath) -> bytes | None:
    with reading(path):
        try:
            return bytes(_again(path, lambda: _system(path).cat_file(path.path)))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if "bucket does not exist" in str(error):
                raise
            return None


def remove_below(path: Any, first: Sequence[str] = ()) -> None:
    """Remove all that is below an address, if anything is.

    Args:
        path: the address.
        first: names of files directly below it that are removed before the others.

    Raises:
        StorageError: it cannot be removed.
    """
    system, start = _system(path), path.path.rstrip("/") + "/"
    if not path.name:
        raise ValueError(f"{path}: a whole bucket is never removed")
    with writing(path):
        try:
            found = _again(path, lambda: system.find(path.path))
        except FileNotFoundError:
            found = []
        early = [start + name for name in first if start + name in found]
        later = sorted({one for one in found if one.startswith(start)} - set(early))
        for some in (early, later):
            if some and not any(_MAGIC & set(one) for one in some):
                system.rm(some)  # many with one request
            else:
                for one in some:
                    system.rm_file(one)


@contextmanager
def uploading(path: Any) -> Iterator[Path]:
    """A temporary file of this computer to write to, which is uploaded when it is whole.

    Raises:
        StorageError: it cannot be written there.
    """
    with tempfile.TemporaryDirectory(prefix="cellseg-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with writing(path):
            _again(path, lambda: _system(path).put_file(str(temporary), path.path))


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what a store says into a DataError that names the address.

    A file that is not there stays a FileNotFoundError.
    """
    try:
        yield
    except (CellsegError, MemoryError):
        raise
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            raise DataError(f"{path}: there is no such bucket.") from error
        raise
    except Exception as error:  # stores raise many kinds; none of them becomes data
        reason, hint = told(error)
        raise DataError(f"{path}: cannot be read: {reason}.", hint=hint) from error


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn what a store says into a StorageError that names the address."""
    try:
        yield
    except (CellsegError, MemoryError):
        raise
    except Exception as error:  # stores raise many kinds; none of them is passed over
        reason, hint = told(error)
        if isinstance(error, FileNotFoundError):
            reason, hint = "there is no such bucket", "Make the bucket first."
        elif isinstance(error, NotImplementedError):
            reason, hint = "nothing can be written there", "Write elsewhere with --output."
        raise StorageError(f"{path}: cannot be written: {reason}.", hint=hint) from error


def told(error: BaseException) -> tuple[str, str | None]:
    """What went wrong with a store, in words, and what to do about it."""
    text = " ".join(str(error).split()).rstrip(".")
    kind = type(error).__name__
    if isinstance(error, PermissionError) or _status(error) in (401, 403) or "Credential" in kind:
        return f"access is denied ({text or kind})", _CREDENTIALS
    if isinstance(error, ConnectionError) or "Connect" in kind:
        return f"no connection ({text or kind})", (
            "Check the address and the network; for a store that is not Amazon's, "
            "AWS_ENDPOINT_URL says where it is."
        )
    return text or kind, None


def transient(error: BaseException) -> bool:
    """Whether an error of a request by http may go away by itself."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or module in ("aiohttp", "fsspec")


def _status(error: BaseException | None) -> int | None:
    """Of an answer by http."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _again(path: RemotePath, request: Callable[[], R]) -> R:
    """The answer to a request; by http it is made several times where that may help."""
    for attempt in range(ATTEMPTS if path.by_http else 1):
        try:
            return request()
        except Exception as error:
            if not path.by_http or attempt + 1 == ATTEMPTS or not transient(error):
                raise
        time.sleep(PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def _asked(path: RemotePath, method: str, **options: Any) -> Any:
    with reading(path):
        try:
            return _again(path, lambda: getattr(_system(path), method)(path.path, **options))
        except (FileNotFoundError, NotADirectoryError) as error:
            if "bucket does not exist" in str(error):
                raise
            return []


def _system(path: RemotePath) -> Any:
    return filesystem(str(path.protocol), os.getpid())


@lru_cache
def filesystem(scheme: str, process: int) -> Any:
    """The fsspec file system of a kind of address, one for a process; threads may share it."""
    import fsspec  # type: ignore[import-untyped]

    return fsspec.filesystem(scheme, **options(scheme))


def options(scheme: str) -> dict[str, object]:
    """How fsspec is to speak to a kind of store."""
    # Otherwise s3fs asks for the size of each file before it reads it: two requests instead of one.
    return {**_OPTIONS, "max_concurrency": 1} if scheme == "s3" else dict(_OPTIONS)

"""Zarr at addresses: stores that read and write through fsspec. Imported only for an address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import (  # noqa: TID253
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.core.buffer import default_buffer_prototype  # noqa: TID253
from zarr.storage import FsspecStore, WrapperStore  # noqa: TID253

from cellseg import remote
from cellseg.errors import DataError, StorageError
from cellseg.remote import NODE_FILES, transient

_KEPT = (*NODE_FILES, ".zmetadata")
_failures: ContextVar[list[Exception] | None] = ContextVar("failures", default=None)
"""What went wrong with the block that is being read."""


class ReadingStore(WrapperStore):  # type: ignore[misc]
    """An array, or what it is in, whose metadata is known already.

    Args:
        store: the store below.
        address: of its root.
        known: metadata files by key; all others are not there.
        check: gets the key and the content of each chunk before it is unpacked; raises to refuse.
        strict: a chunk that is missing is an error; else it reads as the fill value.
    """

    def __init__(
        self,
        store: Any,
        address: str,
        known: Mapping[str, bytes],
        check: Callable[[str, bytes], None],
        *,
        strict: bool,
    ) -> None:
        super().__init__(store)
        self._address = address
        self._known = known
        self._check = check
        self._strict = strict

    def with_read_only(self, read_only: bool = False) -> ReadingStore:
        """The same."""
        return self

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """A metadata file that is known, or a chunk."""
        if key.rpartition("/")[2] in _KEPT:
            known = self._known.get(key)
            return None if known is None else prototype.buffer.from_bytes(known)
        failures = _failures.get()
        if failures:
            return None  # what is read is not used
        try:
            return await self._chunk(key, prototype, byte_range)
        except Exception as error:
            if failures is None:
                raise
            failures.append(error)
            return None

    async def _chunk(self, key: str, prototype: Any, byte_range: Any) -> Any:
        found = await _patiently(self._address, lambda: self._store.get(key, prototype, byte_range))
        if found is None and self._strict:
            raise DataError(
                f"{self._address}: the chunk {key} is missing.",
                hint="Copy the image again; if it was written without its empty chunks, add "
                "--allow-missing-chunks.",
            )
        if found is not None and byte_range is None:
            self._check(key, found.to_bytes())
        return found if found is None else _part(found, byte_range)

    async def get_partial_values(
        self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]
    ) -> list[Any]:
        """Parts of chunks, at once."""
        wanted = (self.get(key, prototype, where) for key, where in key_ranges)
        return list(await asyncio.gather(*wanted))

    async def exists(self, key: str) -> bool:
        """Whether a metadata file is known; chunks are read to find out."""
        if key.rpartition("/")[2] in _KEPT:
            return key in self._known
        return await super().exists(key)  # type: ignore[no-any-return]


class WritingStore(WrapperStore):  # type: ignore[misc]
    """A group that is written: its metadata files are held back until ``publish``.

    Nothing is there before, so that no chunk needs to be removed.

    Args:
        store: the store below.
        address: of its root.
    """

    def __init__(self, store: Any, address: str) -> None:
        super().__init__(store)
        self._address = address
        self.held: dict[str, bytes] = {}
        self.failure: Exception | None = None

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """A metadata file that is held back, or a chunk."""
        if key.rpartition("/")[2] in _KEPT:
            held = self.held.get(key)
            return None if held is None else prototype.buffer.from_bytes(held)
        with remote.writing(self._address):
            return await self._store.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """Whether something is there."""
        return await self.get(key, default_buffer_prototype()) is not None

    async def set(self, key: str, value: Any) -> None:
        """Hold back a metadata file, or write a chunk.

        An error is raised when the next chunk comes: chunks that are written at the same time are
        waited for, so that none of them comes after all has been removed.
        """
        if key.rpartition("/")[2] in _KEPT:
            self.held[key] = value.to_bytes()
            return
        if self.failure is not None:
            raise self.failure
        try:
            with remote.writing(self._address):
                await self._store.set(key, value)
        except Exception as error:
            self.failure = error

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Nothing: zarr would make the groups above an array, which are written anyway."""

    async def delete(self, key: str) -> None:
        """Nothing: a chunk without objects has not been there before."""

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """The metadata files, what makes the whole visible last."""

        def rank(key: str) -> tuple[int, int, str]:
            folders, _, name = key.rpartition("/")
            return (-len(folders.split("/")) if folders else 0, _KEPT.index(name) == 1, key)

        for key in sorted(self.held, key=rank):
            yield key, self.held[key]


class Staged:
    """A path in a group that is written: of a metadata file, a group or an array."""

    def __init__(self, store: WritingStore, key: str = "") -> None:
        self.store = store
        self.key = key

    def __truediv__(self, name: str) -> Staged:
        return Staged(self.store, f"{self.key}/{name}" if self.key else name)

    def exists(self) -> bool:
        """Whether the metadata file is written."""
        return self.key in self.store.held

    def read_bytes(self) -> bytes:
        """The metadata file."""
        if not self.exists():
            raise FileNotFoundError(2, "there is no such file", self.key)
        return self.store.held[self.key]

    def write_bytes(self, data: bytes) -> None:
        """Hold back a metadata file."""
        self.store.held[self.key] = data

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing to do: stores have no folders."""


def remove_group(path: Any) -> None:
    """Remove a group at an address, its own metadata first.

    Raises:
        StorageError: it cannot be removed.
    """
    remote.remove_below(path, first=_KEPT)


@contextmanager
def staged(path: Any) -> Iterator[Staged]:
    """A group to write at an address, in place of what is there.

    Its metadata comes last, so that nobody takes a part of it for the whole; and what is left of an
    earlier try is removed first.

    Raises:
        StorageError: it cannot be written; nothing is left behind, unless removing fails, too.
    """
    remove_group(path)
    store = WritingStore(store_at(str(path), read_only=False), str(path))
    try:
        yield Staged(store)
        if store.failure is not None:
            raise store.failure
        for key, data in store.documents():
            (path / key).write_bytes(data)
    except BaseException:
        with suppress(StorageError):  # the error that led here matters more
            remote.remove_below(path)
        raise


def block_of(array: Any, key: tuple[slice, ...]) -> NDArray[Any]:
    """Read a part of an array that is in a ``ReadingStore``.

    Zarr would let the requests for all other chunks go on after an error; here they are not made.
    """
    failures: list[Exception] = []
    token = _failures.set(failures)
    try:
        block = np.asarray(array[key])
    except Exception as error:
        failures.append(error)
        raise failures[0] from None
    finally:
        _failures.reset(token)
    if failures:
        raise failures[0]
    return block


def store_at(address: str, *, read_only: bool) -> Any:
    """The store of zarr at an address."""
    how = remote.options(address.partition("://")[0])
    return FsspecStore.from_url(address, storage_options=how, read_only=read_only)


async def _patiently(address: str, request: Any) -> Any:
    """The answer of a store; by http it is asked several times where that may help."""
    attempts = remote.ATTEMPTS if address.startswith("http") else 1
    for attempt in range(attempts):
        try:
            return await request()
        except Exception as error:
            if attempt + 1 == attempts or not transient(error):
                raise
        await asyncio.sleep(remote.PAUSE * 2**attempt)


def _part(found: Any, byte_range: Any) -> Any:
    """What was asked for, of servers that give the whole file instead."""
    if isinstance(byte_range, RangeByteRequest):
        length = byte_range.end - byte_range.start
        return found if len(found) <= length else found[byte_range.start : byte_range.end]
    if isinstance(byte_range, SuffixByteRequest) and len(found) > byte_range.suffix:
        return found[len(found) - byte_range.suffix :]
    if isinstance(byte_range, OffsetByteRequest):
        raise DataError("A store was asked for the rest of a chunk, which no chunk needs.")
    return found

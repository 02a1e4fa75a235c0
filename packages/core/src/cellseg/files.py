"""Writing files so that a crash, a full disk or a kill leaves the old one or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from cellseg.errors import StorageError, UsageError
from cellseg.locations import existing, is_remote
from cellseg.machine import me

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "it is larger than the file system, or a limit of the system, allows",
    errno.EIO: "the disk reports an error",
    errno.ELOOP: "it is a symbolic link, or behind a circle of them",
}
_LOCKLESS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_LOCK_AT = 1 << 30
"""Where Windows locks a file: nobody else could read what lies there."""
_PATIENCE = 40
"""Times that a directory is removed into which others may still write."""
_LONG_GONE = 4
"""After so many looks in a row nobody writes into it any more."""
_locks: set[FileIO] = set()
"""Those that this process has open."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError that means "cannot write here" into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _REASONS:
            raise
        hint = "Free some space, or write elsewhere." if "disk" in _REASONS[error.errno] else None
        raise StorageError(
            f"{path}: cannot be written: {_REASONS[error.errno]}.", hint=hint
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, unless it is there.

    Raises:
        StorageError: a file is in its place, or permission is missing.
    """
    with storage_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            in_the_way = next(path for path in (folder, *folder.parents) if path.exists())
            raise StorageError(f"{in_the_way} is a file, not a folder.") from error


def refuse_to_replace(read: Iterable[Path], written: Iterable[Path]) -> None:
    """Raise a UsageError where results would take the place of what they are made from.

    Args:
        read: files and containers; looked at only where something is in the way of the results.
        written: those of the results.
    """
    there = {path.resolve(): path for path in existing(written)}
    for path in read if there else ():
        source = path.resolve()
        for place in (source, *source.parents):
            if place in there:
                raise UsageError(
                    f"{there[place]} would be replaced, but the results are made from it.",
                    hint="Write elsewhere with --output.",
                )


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` to write a file or directory to; renamed on success.

    It keeps the suffix of ``path``, because some writers choose the format by it. What is in a file
    is on the disk before it has its name; so a power cut, too, leaves the old one or the new one. A
    file for an address is uploaded when it is whole.

    Args:
        path: what appears when it is whole.
        durable: wait until a power cut cannot bring the old file back; not for directories.

    Raises:
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    if is_remote(path):
        from cellseg.remote import uploading

        with uploading(path) as temporary:
            yield temporary
        return
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    with storage_errors(path):
        make_folder(path.parent)
        try:
            yield temporary
            if path.is_dir() and not path.is_symlink():
                # A directory cannot be replaced in one step: set the old one aside first.
                old = path.with_name(f".old-{os.getpid()}-{path.name}")
                path.rename(old)
                try:
                    temporary.rename(path)
                except OSError:
                    old.rename(path)
                    raise
                shutil.rmtree(old)
            else:
                move_whole(temporary, path, durable=durable)
        finally:
            discard(temporary)


def discard(temporary: Path) -> None:
    """Remove what is half-written; the error that led here matters more than one of tidying up."""
    if not temporary.is_dir():
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return
    gone = 0
    for _ in range(_PATIENCE):
        shutil.rmtree(temporary, ignore_errors=True)
        time.sleep(0.05)  # a library's threads may not know yet that they write for nothing
        gone = 0 if temporary.exists() else gone + 1
        if gone == _LONG_GONE:
            return


def move_whole(temporary: Path, path: Path, *, durable: bool) -> None:
    """Give a file or directory its final name.

    Args:
        temporary: what is whole; a file is put on the disk first, what is in a directory is not.
        path: its name.
        durable: wait until it has its name after a power cut as well.
    """
    if temporary.is_file():
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable and hasattr(os, "O_DIRECTORY"):  # else, as on Windows, a folder cannot be waited for
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that has nothing to wait for
                raise
        finally:
            os.close(folder)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(directory: Path, names: Collection[str] | None = None) -> None:
    """Remove what a killed process left half-written; only where no other process writes.

    A directory that was about to be replaced gets its name back, unless the new one has it.

    Args:
        directory: where ``replacing`` wrote; it need not exist.
        names: of the files that were being written; None means any.
    """
    for kind in (".old-", ".part-"):
        for left in directory.glob(f"{kind}*") if directory.is_dir() else ():
            process, _, name = left.name.removeprefix(kind).partition("-")
            while name.startswith(kind):  # of a writer that does as we do
                name = name.removeprefix(kind).partition("-")[2]
            if names is not None and not (name in names and process.isdigit()):
                continue
            if kind == ".old-" and name and not (directory / name).exists():
                left.rename(directory / name)
            else:
                remove(left)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; it is never in memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Write a whole file, or leave what was there; ``durable`` as of ``replacing``."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    wait: bool = False,
    unsupported: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Whether this process holds the lock of a file. However a process ends, it holds none then.

    The file is there as long as somebody holds the lock, and says who: a line of JSON for each,
    with what ``cellseg.machine.me`` tells, and ``since``. On NFS the lock holds for all computers.

    Args:
        path: of the file that stands for the lock; its folder must be there.
        shared: others may hold it too, if theirs is shared.
        wait: until it is free; then what is given is always True.
        unsupported: called where the file system knows no locks; what is given is True then,
            because nothing could be done otherwise.

    Raises:
        StorageError: the file cannot be written.
        FileNotFoundError: there is no such folder.
    """
    with storage_errors(path):
        file = _take(path, shared, wait, unsupported)
    try:
        yield file is not None
    finally:
        if file is not None:
            _give_back(file, path, shared)


def open_own(path: Path) -> FileIO:
    """A file to append to, and to read, which is made if it is not there; never one elsewhere that
    a symbolic link leads to.

    Raises:
        OSError: as of ``os.open``; a link is ``ELOOP``.
    """
    no_links = getattr(os, "O_NOFOLLOW", 0)  # there are hardly any on Windows
    opened: FileIO = open(
        path, "ab+", buffering=0, opener=lambda name, flags: os.open(name, flags | no_links, 0o666)
    )
    return opened


def _take(path: Path, shared: bool, wait: bool, unsupported: Callable[[], None]) -> FileIO | None:
    """The open file, if its lock is got."""
    while True:
        file = open_own(path)
        _locks.add(file)
        try:
            try:
                got = _lock(file, shared, wait)
            except OSError as error:
                if error.errno not in _LOCKLESS:
                    raise
                unsupported()
                got = True
            if got and not _lies_at(file, path):  # the one before removed it as it ended
                _close(file)
                continue
            if got:
                if not shared:
                    file.truncate(0)
                line = {**me(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
                file.write(json.dumps(line).encode() + b"\n")
                return file
        except BaseException:
            _close(file)
            raise
        _close(file)
        return None


def _give_back(file: FileIO, path: Path, shared: bool) -> None:
    """Unlock, and remove the file unless others need it."""
    if file.closed:  # in a process that was forked, which has no part in it
        return
    try:
        with suppress(OSError):  # what stays there hinders nobody
            if _lies_at(file, path) and (not shared or _lock(file, False, False)):
                if sys.platform == "win32":
                    _close(file)
                path.unlink()
    finally:
        _close(file)


def _close(file: FileIO) -> None:
    _locks.discard(file)
    file.close()


def _lies_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: FileIO, shared: bool, wait: bool) -> bool:
    """Lock an open file; closing it gives the lock back."""
    if sys.platform == "win32":
        return _lock_range(file, shared, wait)
    import fcntl

    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_range(file: FileIO, shared: bool, wait: bool) -> bool:
    """The same on Windows, which knows no shared ones: each of these locks one of many bytes."""
    import msvcrt

    many = 1000
    while True:
        for first, count in [(n, 1) for n in range(many)] if shared else [(0, many)]:
            file.seek(_LOCK_AT + first)
            with suppress(OSError):
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, count)  # type: ignore
                return True
        if not wait:
            return False
        time.sleep(0.1)


def _let_go() -> None:
    """A process that is forked must not hold what its parent holds, and may give back."""
    for file in _locks:
        file.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

"""Writing files so that a crash, a full disk or a kill leaves the old one or the new one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cellseg.errors import StorageError, UsageError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}


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
    there = {path.resolve(): path for path in written if path.exists()}
    for path in read if there else ():
        source = path.resolve()
        for place in (source, *source.parents):
            if place in there:
                raise UsageError(
                    f"{there[place]} would be replaced, but the results are made from it.",
                    hint="Write elsewhere with --output.",
                )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write a file or directory to; renamed on success.

    It keeps the suffix of ``path``, because some writers choose the format by it.

    Raises:
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    with storage_errors(path):
        make_folder(path.parent)
        try:
            yield temporary
            if temporary.is_file():
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            if path.is_dir() and not path.is_symlink():
                # A directory cannot be replaced in one step: set the old one aside first.
                old = path.with_name(f".old-{os.getpid()}-{path.name}")
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
        finally:
            if temporary.is_dir():  # the error that led here matters more than one of tidying up
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(directory: Path, names: Collection[str] | None = None) -> None:
    """Remove what a killed process left half-written; only where no other process writes.

    Args:
        directory: where ``replacing`` wrote; it need not exist.
        names: of the files that were being written; None means any.
    """
    for left in directory.glob(".part-*") if directory.is_dir() else ():
        process, _, name = left.name.removeprefix(".part-").partition("-")
        if names is None or (name in names and process.isdigit()):
            remove(left)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file, or leave what was there."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)

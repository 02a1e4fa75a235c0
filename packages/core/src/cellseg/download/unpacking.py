"""Unpacking ZIP archives that come from elsewhere."""

from __future__ import annotations

import lzma
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from cellseg.errors import CellsegError, DataError, StorageError
from cellseg.files import storage_errors
from cellseg.limits import DEFLATE, size_text

MOST_MEMBERS = 1_000_000
"""Files in an archive."""
MOST_RATIO = DEFLATE
"""How many times as large as the archive its files may be in all."""
_HEADER = 30
"""Bytes before a member, without its name."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    flat: bool = False,
    overwrite: bool = False,
    error: type[CellsegError] = DataError,
) -> list[str]:
    """Unpack a ZIP archive into ``folder``; all of it or, on an error, nothing.

    Args:
        archive: the file.
        folder: where to.
        flat: leave out the folders within the archive.
        overwrite: replace files that are there.
        error: what is raised.

    Returns:
        The files, relative to ``folder``, sorted.

    Raises:
        CellsegError: of the class ``error``: it is damaged, has a member that would land outside
            ``folder`` or is a link, or a file of one of the names is there.
        StorageError: the disk is full, or the folder cannot be written.
    """
    temporary = folder / f".part-{archive.name}.unpacked"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            names = _extract(archive, temporary, flat, error)
            there = [name for name in names if (folder / name).exists()]
            if there and not overwrite:
                raise error(
                    f"{folder / there[0]}: is there already.",
                    hint="Remove it, or replace it with --force.",
                )
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).replace(folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return names


def _extract(archive: Path, target: Path, flat: bool, error: type[CellsegError]) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as opened:
            _refuse_bomb(archive, opened.infolist(), error)
            members = [member for member in opened.infolist() if not member.is_dir()]
            named = {
                member.filename: _safe_name(archive, member, flat, error) for member in members
            }
            if len(set(named.values())) < len(members):
                raise error(f"{archive}: several files in it have one name.")
            needed = sum(member.file_size for member in members)
            free = shutil.disk_usage(target.parent).free
            if needed > free:
                raise StorageError(
                    f"{target.parent}: {needed / 1e9:.2f} GB are needed to unpack {archive.name}, "
                    f"{free / 1e9:.2f} GB are free.",
                    hint="Free some space, or write elsewhere with -o.",
                )
            for member in members:
                path = target / named[member.filename]
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as packed, path.open("wb") as out:
                    while block := _read(packed):
                        out.write(block)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as problem:
        raise error(f"{archive}: has a file and a folder of one name.") from problem
    except (
        zipfile.BadZipFile,
        OverflowError,
        ValueError,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,  # it is encrypted
    ) as problem:
        raise error(
            f"{archive}: is no ZIP archive that can be read: {str(problem).rstrip('.')}.",
            hint="Get it again with --force.",
        ) from problem
    return sorted(named.values())


def _read(packed: IO[bytes]) -> bytes:
    try:
        return packed.read(1 << 20)
    except (OSError, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise zipfile.BadZipFile(str(error)) from error  # so say bzip2 and lzma what zlib says


def _refuse_bomb(archive: Path, members: list[zipfile.ZipInfo], error: type[CellsegError]) -> None:
    """Refuse what no packer makes: members that share bytes, far too many, or far too large."""
    if len(members) > MOST_MEMBERS:
        raise error(f"{archive}: has {len(members)} files; at most {MOST_MEMBERS} are unpacked.")
    end = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        if member.header_offset < end:
            raise error(f"{archive}: {member.filename!r} shares bytes with another file in it.")
        end = member.header_offset + _HEADER + member.compress_size
    size, unpacked = archive.stat().st_size, sum(member.file_size for member in members)
    if unpacked > MOST_RATIO * size:
        raise error(
            f"{archive}: has {size_text(size)}, and would unpack to {size_text(unpacked)}; at most"
            f" {MOST_RATIO} times as much is unpacked."
        )


def _safe_name(
    archive: Path, member: zipfile.ZipInfo, flat: bool, error: type[CellsegError]
) -> str:
    name = member.filename
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    unsafe = path.is_absolute() or windows.drive or windows.root or "\\" in name
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the packer says nothing
    if unsafe or ".." in path.parts or not path.parts or kind not in (0, stat.S_IFREG):
        raise error(f"{archive}: has a file that would land elsewhere, {name!r}; nothing is done.")
    return path.name if flat else str(path)

"""What ``cellseg doctor`` says of folders: free space, the kind of file system, locks."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cellseg.diagnosis import GIB, nearest_folder
from cellseg.specs import Finding

LITTLE_DISK = 5 * GIB
_TEMPORARY = "Temporary files"
_SHARED = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|cifs|smb|9p|afs|panfs|glusterfs|fuse\.sshfs")
"""File systems that several computers see."""


def storage(directory: Path, output: Path | None) -> Iterator[Finding]:
    """The working directory, where results will go, and where temporary files go.

    Args:
        directory: the working directory.
        output: where the user will write; need not exist yet.
    """
    elsewhere = "Go where you may write, or give --output a path elsewhere."
    yield from folder("Working directory", directory, elsewhere)
    if output is not None:
        place = nearest_folder(output)
        if output.exists() and not output.is_dir():
            yield Finding("problem", "Output", f"{output}: is a file", "Choose another --output.")
        else:
            yield from folder("Output", place, "Choose another --output.")
    moved = "Choose another folder for them: export TMPDIR=FOLDER"
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Finding("problem", _TEMPORARY, str(error), moved)
        return
    yield from folder(_TEMPORARY, temporary, moved)


def folder(what: str, place: Path, advice: str) -> Iterator[Finding]:
    """Whether a folder can be written, how much fits, and whether its files can be locked."""
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place) as file:
            locks = _locks(file.fileno())
    except OSError as error:
        yield Finding("problem", what, f"{place}: {error.strerror or error}", advice)
        return
    kind = file_system(place)
    value = f"{place}: {free / GIB:.1f} GiB free"
    if kind:
        value += f" on {kind}{', which several computers share' if _SHARED.search(kind) else ''}"
    if free < LITTLE_DISK:
        yield Finding("warning", what, value, "Results of large images may not fit: free some.")
    elif kind in ("tmpfs", "ramfs") and what != _TEMPORARY:
        in_memory = "It lies in main memory, and is gone after a restart: write elsewhere."
        yield Finding("warning", what, value, in_memory)
    else:
        yield Finding("ok", what, value)
    if not locks:
        advice = (
            "Let no two processes write into one run or output folder here, or have the file"
            " system mounted with locks (flock)."
        )
        yield Finding("warning", f"{what}: locks", "files cannot be locked here", advice)


def file_system(place: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that a folder lies on, such as ``ext4``; empty if unknown.

    Args:
        place: the folder.
        mounts: the table of mounted file systems; Linux has one.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real, best = place.resolve(), ("", "")
    for line in lines:
        _, point, kind = line.split(" ")[:3]
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)
        if real.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def _locks(file: int) -> bool:
    """Whether flock works on a file, which nobody else has."""
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO):
            return False
        raise
    return True

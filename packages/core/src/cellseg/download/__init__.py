"""Getting files over HTTP: resumed where they were cut, checked before they get their name.

Bytes arrive in ``.part-NAME`` beside the target, which becomes NAME when its size and checksum are
right. What a cut, a kill or a full disk leaves is continued by the next call, if the server can and
the file there is still the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.download.remote import Remote, Settings, check, shown, source_of
from cellseg.events import Emit
from cellseg.files import storage_errors

__all__ = ["Fetched", "Remote", "Settings", "fetch"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here."""

    path: Path
    sha256: str
    compared: bool
    """Whether there was a checksum to compare it with."""
    fresh: bool
    """Whether it came now; else it was there."""


def fetch(remote: Remote, folder: Path, settings: Settings, emit: Emit) -> Fetched:
    """Get one file; one that is there and as expected is left alone.

    With ``force``, one without a checksum is never as expected.

    ``Progress`` counts megabytes (10^6 bytes), from 1.

    Raises:
        ConfigError: an address that is not HTTP, or ``insecure`` without a SHA-256.
        CellsegError: of the class ``settings.error``: it cannot be reached, or is not as expected.
        StorageError: the disk is full, or the folder cannot be written.
    """
    from cellseg.download.transfer import download, forget  # what speaks HTTP takes time to import

    check(remote, settings)
    target = folder / remote.name
    if target.exists():
        sums = _sums(remote, target)
        unproven = settings.force and not remote.checksum  # it may be anything
        if _matches(remote, target, sums) and not unproven:
            return Fetched(target, sums["sha256"], bool(remote.checksum), fresh=False)
        if not settings.force:
            raise settings.error(
                f"{target}: is there, but is not the file expected: {_difference(remote, target)}.",
                hint="Remove it, or get it again with --force.",
            )
    with storage_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".part-{remote.name}"
        if settings.mirror and "://" not in settings.mirror:
            _copy(remote, Path(settings.mirror).expanduser(), part, settings, emit)
        else:
            download(remote, part, settings, emit)
        sums = _sums(remote, part)
        if not _matches(remote, part, sums):
            difference = _difference(remote, part)
            forget(part)
            raise settings.error(
                f"{shown(source_of(remote, settings))}: is not the file expected: {difference}. "
                "What came was removed.",
                hint="Try again later; if it stays so, the file there was changed or is damaged.",
            )
        part.replace(target)
        forget(part)
    return Fetched(target, sums["sha256"], bool(remote.checksum), fresh=True)


def _copy(remote: Remote, mirror: Path, part: Path, settings: Settings, emit: Emit) -> None:
    from cellseg.download.transfer import BLOCK, Meter, refuse_full

    source = mirror / remote.name
    if not source.is_file():
        raise settings.error(f"{source}: there is no such file in the mirror.")
    total = source.stat().st_size
    refuse_full(part, total)
    with source.open("rb") as file, part.open("wb") as out:
        meter = Meter(emit, total)
        while block := file.read(BLOCK):
            out.write(block)
            meter.at(out.tell())


def _sums(remote: Remote, path: Path) -> dict[str, str]:
    """The SHA-256 of a file, and the checksum that it is compared by."""
    kind = remote.checksum.partition(":")[0]
    made: dict[str, Any] = {"sha256": hashlib.sha256()}
    if kind == "md5":
        made[kind] = hashlib.md5(usedforsecurity=False)
    elif kind == "xxh128":
        import xxhash

        made[kind] = xxhash.xxh128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for each in made.values():
                each.update(block)
    return {kind: each.hexdigest() for kind, each in made.items()}


def _matches(remote: Remote, path: Path, sums: Mapping[str, str]) -> bool:
    if remote.size is not None and path.stat().st_size != remote.size:
        return False
    kind, _, digits = remote.checksum.partition(":")
    return not remote.checksum or sums[kind] == digits


def _difference(remote: Remote, path: Path) -> str:
    if remote.size is not None and path.stat().st_size != remote.size:
        return f"it has {path.stat().st_size} bytes instead of {remote.size}"
    kind, _, digits = remote.checksum.partition(":")
    return f"its {kind.upper()} is {_sums(remote, path)[kind]} instead of {digits}"

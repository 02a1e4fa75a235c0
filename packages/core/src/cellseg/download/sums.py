"""Whether a file is the one expected: its size and its checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellseg.download.remote import Checksum, Remote


def sums_of(path: Path, remote: Remote) -> dict[str, str]:
    """The SHA-256 of a file, and the sums that it is compared by; it is read once."""
    made: dict[str, Any] = {"sha256": hashlib.sha256()}
    for kind in {each.kind for each in remote.checksums} - {"sha256"}:
        if kind == "xxh128":
            import xxhash

            made[kind] = xxhash.xxh128()
        else:
            made[kind] = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for each in made.values():
                each.update(block)
    return {kind: each.hexdigest() for kind, each in made.items()}


def difference(path: Path, remote: Remote, sums: Mapping[str, str]) -> str:
    """In what a file differs from the one expected; empty where it is that one."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"it has {size} bytes instead of {remote.size}"
    wrong = [each for each in remote.checksums if not each.fits(sums[each.kind])]
    return "; ".join(_said(each, sums[each.kind]) for each in wrong)


def _said(checksum: Checksum, digits: str) -> str:
    if checksum.prefix:
        return f"its {checksum.kind.upper()} {digits} does not start with {checksum.digits}"
    return f"its {checksum.kind.upper()} is {digits} instead of {checksum.digits}"

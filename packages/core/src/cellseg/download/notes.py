"""What is noted beside a file that was downloaded: its SHA-256, and when it was found right.

With a note, a file of gigabytes need not be read again before each use: while its size and its
time of change are those of the note, nobody touched it. And where nobody published a checksum, the
note of what came first is what later copies are compared with.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cellseg.download.remote import Remote
from cellseg.errors import WeightsError
from cellseg.files import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What was found when a file was last read in full."""

    size: int
    """In bytes."""
    changed: int
    """Its time of change, in nanoseconds."""
    sha256: str
    compared: str
    """With which checksums, as ``Remote.checksum``; empty where nobody published one."""
    date: str
    """When this SHA-256 was seen first."""

    def fits(self, path: Path, remote: Remote) -> bool:
        """Whether a file is as it was then, and was compared with what is published now."""
        status = path.stat()
        same = (status.st_size, status.st_mtime_ns) == (self.size, self.changed)
        return same and self.compared == remote.checksum


def note_of(path: Path) -> Path:
    """Where the note of a file is."""
    return path.with_name(f".{path.name}.cellseg.json")


def read_note(path: Path) -> Noted | None:
    """The note of a file, which itself need not be there; None where there is none.

    Raises:
        WeightsError: it is damaged.
    """
    note = note_of(path)
    try:
        noted = Noted(**json.loads(note.read_bytes()))
        if not re.fullmatch("[0-9a-f]{64}", noted.sha256):
            raise ValueError("no SHA-256")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{note}: is damaged, so it does not tell what {path.name} must be.",
            hint=f"Remove both, and get the file again: rm {note} {path}",
        ) from error
    return noted


def write_note(path: Path, remote: Remote, sha256: str, before: Noted | None) -> Noted:
    """Note of a file that it was read, and is right."""
    status = path.stat()
    same = before is not None and before.sha256 == sha256
    noted = Noted(
        size=status.st_size,
        changed=status.st_mtime_ns,
        sha256=sha256,
        compared=remote.checksum,
        date=before.date if before is not None and same else f"{datetime.now(UTC):%Y-%m-%d}",
    )
    _write(path, noted)
    return noted


def distrust(path: Path, noted: Noted) -> None:
    """Note of a file that it is not right, so that it is read again before it is used."""
    _write(path, replace(noted, changed=0))


def _write(path: Path, noted: Noted) -> None:
    write_atomic(note_of(path), json.dumps(asdict(noted), indent=2) + "\n")

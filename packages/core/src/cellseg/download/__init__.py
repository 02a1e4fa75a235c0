"""Getting files over HTTP: resumed where they were cut, checked before they get their name.

Bytes arrive in ``.part-NAME`` beside the target, which becomes NAME when its size and checksums are
right. What a cut, a kill or a full disk leaves is continued by the next call, if the server can and
the file there is still the same. Who comes while another thread or process gets the same file waits
for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cellseg.download.environment import environment, offline
from cellseg.download.mirrors import copy, listed
from cellseg.download.notes import Noted, read_note, write_note
from cellseg.download.remote import Remote, Settings, check, shown, source_of
from cellseg.download.sums import difference, sums_of
from cellseg.events import Emit, Note
from cellseg.files import locked, storage_errors

__all__ = ["Fetched", "Remote", "Settings", "environment", "fetch", "offline"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here."""

    path: Path
    sha256: str
    compared: bool
    """Whether there was a whole checksum to compare it with."""
    fresh: bool
    """Whether it came now; else it was there."""


def fetch(
    remote: Remote, folder: Path, settings: Settings, emit: Emit, *, noting: bool = False
) -> Fetched:
    """Get one file; one that is there and as expected is left alone.

    With ``force``, one without a checksum is never as expected.

    ``Progress`` counts megabytes (10^6 bytes), from 1.

    Args:
        remote: the file.
        folder: where to.
        settings: how.
        emit: gets ``Progress`` and notes.
        noting: keep a note beside it, so that later calls need not read all of it, and compare
            with that where nobody published a checksum.

    Raises:
        ConfigError: an address that is not HTTP, or ``insecure`` without a SHA-256.
        CellsegError: of the class ``settings.error``: it cannot be reached, or is not as expected.
        WeightsError: the note is damaged.
        StorageError: the disk is full, or the folder cannot be written.
    """
    check(remote, settings)
    job = _Job(remote, folder / remote.name, settings, emit, noting)
    if job.target.exists():
        here = job.known() or (None if job.may_note else job.here())
        if here is not None:
            return here
    else:
        job.refuse_offline()
    with storage_errors(job.target):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(job.target, emit):
            return job.here() or job.get()  # another process may have got it meanwhile


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to get."""

    remote: Remote
    target: Path
    settings: Settings
    emit: Emit
    noting: bool

    @property
    def may_note(self) -> bool:
        """Whether a note can be written, or replaced."""
        return self.noting and os.access(self.target.parent, os.W_OK)

    def known(self) -> Fetched | None:
        """The file that is there, where its note says that it is right."""
        noted = self._noted()
        if noted is None or not noted.fits(self.target, self.remote):
            return None
        return Fetched(self.target, noted.sha256, self.remote.proven, fresh=False)

    def here(self) -> Fetched | None:
        """The file that is there, read and compared; None where it is to be got."""
        if not self.target.exists():
            return None
        known = self.known()
        if known is not None:
            return known
        noted = self._noted()
        if self.settings.force and not self.remote.checksum:  # it may be anything
            return None
        expected = self._expected(noted)
        sums = sums_of(self.target, expected)
        wrong = difference(self.target, expected, sums)
        if not wrong:
            self._note(sums["sha256"], noted)
            return Fetched(self.target, sums["sha256"], self.remote.proven, fresh=False)
        if self.settings.force:
            return None
        raise self.settings.error(
            f"{self.target}: is there, but is not the file expected: {wrong}{self._since(noted)}.",
            hint="Remove it, or get it again with --force.",
        )

    def get(self) -> Fetched:
        """Download or copy it, compare it, and give it its name."""
        from cellseg.download.transfer import download, forget  # what speaks HTTP is slow to import

        self.refuse_offline()
        noted, part = self._noted(), self.target.with_name(f".part-{self.target.name}")
        expected = self._expected(noted)
        mirror = self.settings.mirror_folder
        if self.settings.mirror and not self.remote.proven:
            copied = listed(self.remote, part, self.settings, self.emit)
            expected = _also(expected, copied) if copied else expected
        if mirror is not None:
            copy(self.remote, mirror, part, self.settings, self.emit)
        else:
            download(expected, part, self.settings, self.emit)
        sums = sums_of(part, expected)
        wrong = difference(part, expected, sums)
        if wrong:
            forget(part)
            source, since = shown(source_of(self.remote, self.settings)), self._since(noted)
            raise self.settings.error(
                f"{source}: is not the file expected: {wrong}{since}. What came was removed.",
                hint="Try again later; if it stays so, the file there was changed or is damaged."
                + (" If you trust the new one, get it with --force." if since else ""),
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        part.replace(self.target)
        forget(part)
        if self.noting:
            write_note(self.target, self.remote, sums["sha256"], noted)
        return Fetched(self.target, sums["sha256"], self.remote.proven, fresh=True)

    def refuse_offline(self) -> None:
        """Raise an error where a download is needed and forbidden."""
        if self.settings.offline and self.settings.mirror_folder is None:
            raise self.settings.error(
                f"{self.target} is missing, and nothing is downloaded offline.",
                hint=f"Get {shown(self.remote.url)} on another computer, and put it there. Or name "
                "a folder that has it: CELLSEG_MIRROR=FOLDER; on a computer that has the models, "
                "cellseg models export-cache FOLDER makes one.",
            )

    def _noted(self) -> Noted | None:
        return read_note(self.target) if self.noting and not self.settings.force else None

    def _expected(self, noted: Noted | None) -> Remote:
        """With what was noted where nobody published a whole checksum."""
        if noted is None or self.remote.proven:
            return self.remote
        return _also(self.remote, noted.sha256)

    def _since(self, noted: Noted | None) -> str:
        if noted is None or self.remote.proven:
            return ""
        return f", noted on {noted.date} (nobody published a checksum)"

    def _note(self, sha256: str, before: Noted | None) -> None:
        if self.may_note:
            write_note(self.target, self.remote, sha256, before)
        elif self.noting:
            self.emit(
                Note(
                    f"{self.target.parent}: cannot be written, so {self.target.name} is read and "
                    "compared each time; cellseg models verify, by its owner, mends that."
                )
            )


def _also(remote: Remote, sha256: str) -> Remote:
    """Expected to have this SHA-256 too."""
    return replace(remote, checksum=f"{remote.checksum} sha256:{sha256}".strip())


@contextmanager
def _alone(target: Path, emit: Emit) -> Iterator[None]:
    """No other thread or process gets this file meanwhile."""
    lock = target.with_name(f".{target.name}.lock")

    def lockless() -> None:
        emit(Note(f"{target.parent}: knows no locks; do not get {target.name} twice at once."))

    with locked(lock, unsupported=lockless) as got:
        if got:
            yield
            return
    emit(Note(f"{target.name}: another process is getting it; waiting."))
    with locked(lock, wait=True, unsupported=lockless):
        yield

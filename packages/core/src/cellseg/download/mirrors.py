"""Folders and addresses with copies of files, for computers that should not ask the publishers."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cellseg.download.remote import Checksum, Remote, Settings, shown, source_of
from cellseg.errors import CellsegError, DataError
from cellseg.events import Emit, Event, Progress

MANIFEST = "manifest.json"
"""Says of each file of a mirror what it was when it was copied."""
_ABSENT = (403, 404, 410)
"""How servers say that there is no such file; object stores say 403."""


def listed(remote: Remote, part: Path, settings: Settings, emit: Emit) -> str:
    """The SHA-256 that the manifest of a mirror states of a file; empty where it states none.

    Raises:
        CellsegError: of the class ``settings.error``: the manifest is damaged, or cannot be had.
    """
    where = source_of(Remote(url=remote.url, name=MANIFEST), settings)
    try:
        entries = json.loads(_manifest(where, part, settings, emit))["files"]
        found = next((str(one["sha256"]) for one in entries if one["file"] == remote.name), "")
        if found and not Checksum("sha256", found).valid:
            raise ValueError("no SHA-256")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise settings.error(
            f"{shown(where)}: is damaged.",
            hint="Write it again, where the mirror is: cellseg models export-cache FOLDER",
        ) from error


def copy(remote: Remote, mirror: Path, part: Path, settings: Settings, emit: Emit) -> None:
    """Fill ``part`` from a folder.

    Raises:
        CellsegError: of the class ``settings.error``: it is not there, or cannot be read.
        StorageError: the disk has no room for it.
    """
    from cellseg.download.transfer import BLOCK, Meter, refuse_full

    source = mirror / remote.name
    with _readable(source, settings):
        if not source.is_file():
            raise settings.error(
                f"{source}: there is no such file in the mirror; it is a copy of "
                f"{shown(remote.url)}.",
                hint="Put it there, or get it from its publisher: leave out --mirror and unset "
                "CELLSEG_MIRROR.",
            )
        file = source.open("rb")
    with file:
        total = source.stat().st_size
        refuse_full(part, total)
        meter = Meter(emit, total)
        with part.open("wb") as out:
            while block := file.read(BLOCK):
                out.write(block)
                meter.at(out.tell())


def _manifest(where: str, part: Path, settings: Settings, emit: Emit) -> bytes:
    """What it holds; an empty list of files where there is none."""
    nothing = b'{"files": []}'
    if settings.mirror_folder is not None:
        path = Path(where)
        with _readable(path, settings):
            return path.read_bytes() if path.exists() else nothing
    from cellseg.download.transfer import download, forget

    def told(event: Event) -> None:
        if not isinstance(event, Progress):  # which is of the file itself
            emit(event)

    beside = part.with_name(f"{part.name}-{MANIFEST}")
    plain = replace(settings, mirror="", headers={}, error=DataError)
    try:
        download(Remote(url=where, name=beside.name), beside, plain, told)
        return beside.read_bytes()
    except DataError as error:
        answer = error.__cause__ and error.__cause__.__cause__
        if isinstance(answer, urllib.error.HTTPError) and answer.code in _ABSENT:
            return nothing
        raise settings.error(str(error), hint="Try again, or name another mirror.") from error
    finally:
        forget(beside)


@contextmanager
def _readable(path: Path, settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, CellsegError):
            raise
        raise settings.error(f"{path}: cannot be read: {error.strerror}.") from error

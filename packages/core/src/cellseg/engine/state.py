"""The work directory of a prediction: what was asked for, and what is done of it.

request.json          what was asked for
items/000012/         an image in progress: a record or a failure for each tile
done/000012.json      an image that is written
workers/              what worker processes leave while they are at something
summary.json          all of it is done; nothing else but the request is left
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cellseg.engine.records import is_whole, write_quickly
from cellseg.errors import ConfigError, UsageError
from cellseg.files import locked, remove, storage_errors, write_atomic
from cellseg.locks import LOCK
from cellseg.options import flag


class WorkDir:
    """Where one prediction keeps its state; several processes may share it.

    Args:
        path: of the directory.
        what: what messages call what is done here.
        place: where messages say that it is; by default the folder of ``path``.
    """

    def __init__(self, path: Path, what: str = "prediction", place: Path | None = None) -> None:
        self.path = path
        self.place = place or path.parent
        self.what = what
        self._made: set[Path] = set()

    @property
    def started(self) -> bool:
        """Whether a prediction began here."""
        return (self.path / "request.json").is_file()

    def start(self, request: Mapping[str, object], keep: Collection[str] = ()) -> None:
        """Forget what was here, but for the entries to ``keep``, and remember a new request."""
        with storage_errors(self.path):
            for entry in self.path.iterdir() if self.path.exists() else ():
                if entry.name not in (LOCK, *keep):
                    remove(entry)
            self.path.mkdir(parents=True, exist_ok=True)
        self.join(request)

    def join(self, request: Mapping[str, object]) -> None:
        """Remember a request, or check that it is the one remembered.

        Raises:
            ConfigError: it differs; the message names the first difference.
        """
        file = self.path / "request.json"
        wanted = json.loads(json.dumps(request))
        if not file.is_file():
            write_atomic(file, json.dumps(wanted, indent=2) + "\n")
            return
        try:
            known = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{file} cannot be read: {error}",
                hint="Start anew with --overwrite.",
            ) from error
        for name in {**known, **wanted}:
            if known.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{self.place}: this {self.what} began with {_said(name, known)}, "
                    f"not with {_said(name, wanted)}.",
                    hint="Resume it with the settings it began with, or start anew with "
                    "--overwrite.",
                )

    def summary(self) -> dict[str, Any] | None:
        """What was made here, once all of it is."""
        try:
            return dict(json.loads((self.path / "summary.json").read_bytes()))
        except FileNotFoundError:
            return None

    def complete(self, summary: Mapping[str, object]) -> None:
        """Remember that everything is done, and forget the tiles."""
        write_atomic(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.tidy()

    def tidy(self) -> None:
        """Forget the tiles of what is done; again, where a kill came before the end of that."""
        for name in ("items", "done", "workers"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def item(self, item: int) -> Path:
        """The directory of an image in progress."""
        path = self.path / "items" / f"{item:06d}"
        self._make(path)
        return path

    def record(self, item: int, tile: int) -> Path:
        """The record of a tile."""
        return self.path / "items" / f"{item:06d}" / f"{tile:08d}.tile"

    def done_tiles(self, item: int) -> set[int]:
        """The tiles of an image with an undamaged record."""
        return {tile for tile in self._numbered(item, ".tile") if is_whole(self.record(item, tile))}

    def has_all(self, item: int, tiles: Sequence[int]) -> bool:
        """Whether these tiles, all of an image that are ever done, have a record."""
        if len(self._numbered(item, ".tile")) >= len(tiles):
            return True
        # On a network drive a listing may lag behind what others have written; a name does not.
        return all(self.record(item, tile).exists() for tile in tiles)

    def failed_tiles(self, item: int) -> set[int]:
        """The tiles of an image that failed, and have not been done since."""
        return self._numbered(item, ".failed")

    def fail(self, item: int, tile: int, reason: str) -> None:
        """Record that a tile could not be done."""
        write_quickly(self.item(item) / f"{tile:08d}.failed", reason.encode())

    def forgive(self, item: int, tile: int) -> None:
        """A tile that failed is done now."""
        self.record(item, tile).with_suffix(".failed").unlink(missing_ok=True)

    def finish(self, item: int, values: Mapping[str, object]) -> None:
        """Record that an image is written; its tiles are no longer needed."""
        self._make(self.path / "done")
        write_quickly(self.path / "done" / f"{item:06d}.json", json.dumps(values).encode())
        tiles = self.path / "items" / f"{item:06d}"
        if tiles.exists():
            shutil.rmtree(tiles, ignore_errors=True)

    def finished(self) -> dict[int, dict[str, Any]]:
        """The images that are written, by number."""
        found: dict[int, dict[str, Any]] = {}
        folder = self.path / "done"
        for file in sorted(folder.glob("[0-9]*.json")) if folder.exists() else ():
            try:
                found[int(file.stem)] = json.loads(file.read_bytes())
            except ValueError:  # cut short by a power cut; the image is made again
                continue
        return found

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Whether this process alone holds the lock ``name``; a dead process holds none."""
        path = self.path / f"{name}.lock"
        with ExitStack() as stack:
            try:
                alone = stack.enter_context(locked(path))
            except FileNotFoundError:  # somebody else has finished what is done there
                alone = False
            yield alone

    def _numbered(self, item: int, suffix: str) -> set[int]:
        folder = self.path / "items" / f"{item:06d}"
        if not folder.exists():
            return set()
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.endswith(suffix) and e.name[0] != "."]
        return {int(name.removesuffix(suffix)) for name in names}

    def _make(self, path: Path) -> None:
        if path not in self._made:
            with storage_errors(path):
                path.mkdir(parents=True, exist_ok=True)
            self._made.add(path)


def check_startable(work: WorkDir, *, resume: bool, overwrite: bool, shard: bool) -> None:
    """Refuse to mix up an earlier prediction with a new one.

    Raises:
        UsageError: an unfinished prediction is here, and nobody said what to do with it.
    """
    unfinished = work.started and work.summary() is None
    if unfinished and not (resume or overwrite or shard):
        raise UsageError(
            f"{work.place} holds an unfinished {work.what}.",
            hint="Go on with --resume, or start anew with --overwrite.",
        )
    if resume and not work.started:
        raise UsageError(
            f"There is no {work.what} to resume in {work.place}.",
            hint="Leave out --resume to start one.",
        )


def _said(name: str, values: Mapping[str, Any]) -> str:
    return f"{flag(name)} {values[name]}" if values.get(name) is not None else f"no {flag(name)}"

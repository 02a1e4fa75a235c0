"""A training run on disk: what was asked for, what happened, and what came out.

run/
    run.json        what was asked for: written once, before any work
    config.yaml     the resolved options, in the form that --config takes
    splits.json     which source image is in which split
    events.jsonl    what happened; only appended to
    checkpoint/     the trainer's own, enough to resume
    previews/       pictures of what the current weights do
    report.html     curves, previews, metrics
    model/          the bundle: enough to predict
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cellseg import events as event_types
from cellseg.errors import DataError
from cellseg.events import Event, Resumed
from cellseg.files import open_own, remove, storage_errors, write_atomic
from cellseg.locations import Location
from cellseg.locks import LOCK
from cellseg.splits import Splits

FILE = "run.json"
_BLOCK = 1 << 16


class Request(BaseModel):
    """What a run was asked to do: enough to do it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    backend_version: str = ""
    cellseg_version: str = ""
    data: Location
    settings: dict[str, Any]
    """Core's own options."""
    reader: str
    reader_options: dict[str, Any]
    options: dict[str, Any]
    """The backend's options."""
    normaliser: dict[str, Any]
    """What was measured on the training data before the first step."""
    examples: str = ""
    """What tells the examples that were learned from others; empty where there are none."""


@dataclass(frozen=True)
class RunDir:
    """A run on disk."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The trainer's own directory; not empty means that training can resume."""
        return self.path / "checkpoint"

    @property
    def model(self) -> Path:
        """The bundle."""
        return self.path / "model"

    @property
    def previews(self) -> Path:
        """Pictures of what the weights do to validation images."""
        return self.path / "previews"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def config(self) -> Path:
        """The resolved options, in the form that ``--config`` takes."""
        return self.path / "config.yaml"

    @property
    def splits(self) -> Path:
        """Which image is in which split."""
        return self.path / "splits.json"

    @property
    def log(self) -> Path:
        """The events, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def lock(self) -> Path:
        """What is there while a process trains here; its content says which."""
        return self.path / LOCK

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Refuse a directory that already holds a run, or anything else.

        What a process left that was killed before its run began is nothing.
        """
        if (path / FILE).exists():
            raise DataError(
                f"{path} already holds a run.",
                hint=f"Continue it: cellseg resume {path}; or choose another --output.",
            )
        if path.exists() and (not path.is_dir() or not _is_scrap(path)):
            raise DataError(f"{path} exists and is not empty.", hint="Choose another --output.")

    @classmethod
    def create(cls, path: Path, request: Request, config: dict[str, Any], splits: Splits) -> RunDir:
        """Start a new run; a failure leaves nothing, and ``run.json`` comes last.

        Raises:
            DataError: the directory holds something already.
            StorageError: it cannot be written.
        """
        import yaml

        cls.check_free(path)
        run, existed = cls(path), path.exists()
        try:
            for scrap in _without_lock(path) if existed else ():
                remove(scrap)
            with storage_errors(path):
                for directory in (run.checkpoint, run.model, run.previews):
                    directory.mkdir(parents=True, exist_ok=True)
            write_atomic(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            splits.save(run.splits)
            write_atomic(path / FILE, request.model_dump_json(indent=2) + "\n", durable=True)
        except BaseException:
            made = _without_lock(path) if existed else [path] if path.exists() else []
            for left in made:
                remove(left)
            raise
        return run

    def request(self) -> Request:
        """Read back what this run was asked to do.

        Raises:
            DataError: this is no run, or its ``run.json`` is damaged.
        """
        file = self.path / FILE
        try:
            return Request.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{self.path} is not a cellseg run: it has no {FILE}.",
                hint="Give the directory that cellseg train wrote.",
            ) from None
        except (OSError, ValidationError) as error:
            raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error

    def record(self, event: Event) -> None:
        """Append one event to the run's history."""
        line = {"at": datetime.now(UTC).isoformat(), "event": type(event).__name__}
        text = json.dumps(line | _plain(asdict(event))) + "\n"
        with storage_errors(self.log), open_own(self.log) as file:
            end = _whole_lines(file)
            file.truncate(end)  # what a kill in mid-line left
            try:
                left = text.encode()
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise

    def events(self) -> list[Event]:
        """What happened and lasted: steps that a resume did again are given once."""
        kept: list[Event] = []
        if not self.log.exists():
            return kept
        for line in self.log.read_text(encoding="utf-8").splitlines():
            event = _parse(line)
            if event is None:
                continue
            if isinstance(event, Resumed):
                after = event.step
                kept = [e for e in kept if not hasattr(e, "step") or e.step <= after]
            kept.append(event)
        return kept


def _without_lock(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.name != LOCK]


def _is_scrap(path: Path) -> bool:
    """Whether a directory holds nothing, or what ``RunDir.create`` did before it was killed.

    The lock tells it from files of the user, of any name: a process makes that in a folder that is
    empty, and removes it as it ends.
    """
    left = _without_lock(path)
    run = RunDir(path)
    folders = (run.checkpoint, run.model, run.previews)
    ours = {*folders, run.config, run.splits}
    return not left or (
        (path / LOCK).exists()
        and all(entry in ours or entry.name.startswith(".part-") for entry in left)
        and not any(any(folder.iterdir()) for folder in folders if folder.is_dir())
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics may be numpy or torch scalars; JSON wants floats."""
    if "metrics" in values:
        values["metrics"] = {name: float(value) for name, value in values["metrics"].items()}
    return values


def _whole_lines(file: FileIO) -> int:
    """Where the last line ends that is whole."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _parse(line: str) -> Event | None:
    """One event; None for a line that a kill cut short or a newer version wrote."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return None
    kind = getattr(event_types, str(values.pop("event", "")), None)
    if kind is None or not hasattr(kind, "__dataclass_fields__"):
        return None
    known = {field.name for field in fields(kind)}
    event: Event = kind(**{name: value for name, value in values.items() if name in known})
    return event

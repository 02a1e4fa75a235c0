"""Download a public data set, and say how to train on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.catalogue import DataFile, DataSet, data_set
from cellseg.download import Fetched, Settings, environment, fetch
from cellseg.download.unpacking import unpack
from cellseg.errors import ConfigError, DataError
from cellseg.events import Emit, Event, Note, Progress
from cellseg.files import storage_errors, write_atomic
from cellseg.locks import LOCK, sole

RECORD = "source.json"
"""What lies beside the data: where it came from, its licence, and what to cite."""


@dataclass(frozen=True)
class GotData:
    """A data set that is here."""

    data: DataSet
    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    """What the record says of each file, by its name at the source."""
    fresh: tuple[str, ...]
    """Those that came now."""

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "name": self.data.name,
            "output": str(self.folder),
            "reader": self.data.reader,
            "licence": self.data.licence,
            "citation": self.data.citation,
            "downloaded": list(self.fresh),
            "files": self.files,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        came = f"downloaded {len(self.fresh)}" if self.fresh else "all were there"
        yield f"Here:     {self.folder} ({len(self.files)} files; {came})"
        yield f"Holds:    {self.data.holds}"
        yield f"Licence:  {self.data.licence}"
        yield f"Cite:     {self.data.citation}"
        for name, entry in self.files.items():
            if not entry["compared"]:
                yield f"Unchecked: no checksum of {name} is known; its SHA-256 is {entry['sha256']}"
        if self.data.needs:
            yield f"Needs:    {self.data.needs}"
        more = f" {self.data.train}" if self.data.train else ""
        yield f"Check it: cellseg check-data {self.folder}"
        yield f"Train:    cellseg train {self.folder} --backend vista3d{more} -o RUN"


def get_data(
    name: str,
    output: Path | None = None,
    *,
    parts: tuple[str, ...] = (),
    settings: Settings | None = None,
    emit: Emit,
) -> GotData:
    """Download the files that are not there yet, check them, and unpack archives.

    Args:
        name: of a data set in the catalogue.
        output: the folder; if not given, one of its name.
        parts: only these of its parts.
        settings: how to download; by default as the environment says.
        emit: gets ``Progress`` in megabytes over all files, and notes.

    Raises:
        UsageError: there is no such data set, or no such part.
        DataError: a file cannot be had, or is not as expected; the folder holds another data set.
        StorageError: the disk is full, or the folder cannot be written.
    """
    data, settings = data_set(name), settings or environment()
    folder = output if output is not None else Path(name)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise DataError(f"{nearest}: is a file, not a folder.", hint="Give another folder with -o.")
    chosen, record = data.chosen(parts), _record(folder, data)
    here = all(_is_unpacked(folder, record.get(file.remote.name)) for file in chosen)
    with ExitStack() as held:
        if settings.force or not here:  # a folder that nobody may write into is fine otherwise
            held.enter_context(sole(folder, folder / LOCK, emit=emit))
        return _get(data, chosen, folder, settings, emit)


def _get(
    data: DataSet, chosen: Sequence[DataFile], folder: Path, settings: Settings, emit: Emit
) -> GotData:
    """Download what is not in the folder yet."""
    record = _record(folder, data)
    fresh: list[str] = []
    if settings.insecure and not all(f.remote.checksum.startswith("sha256:") for f in chosen):
        raise ConfigError(f"--insecure: no SHA-256 is known of all files of {data.name}.")
    done = 0
    sizes = [file.remote.size for file in chosen]
    total = None if None in sizes else sum(_megabytes(size or 0) for size in sizes)
    for file in chosen:
        if not settings.force and _is_unpacked(folder, record.get(file.remote.name)):
            continue
        meter = _Meter(emit, done, total)
        fetched = fetch(file.remote, folder, settings, meter)
        done = meter.last
        entry = _entry(file, fetched)
        if file.unpack:
            emit(Note(f"Unpacking {file.remote.name}."))
            names = unpack(fetched.path, folder, flat=file.flat, overwrite=settings.force)
            entry["unpacked"] = {one: (folder / one).stat().st_size for one in names}
        record[file.remote.name] = entry
        _write(folder, data, record)
        if file.unpack:
            with storage_errors(fetched.path):
                fetched.path.unlink()
        if fetched.fresh:
            fresh.append(file.remote.name)
    here = {f.remote.name: record[f.remote.name] for f in chosen}
    return GotData(data, folder, here, tuple(fresh))


class _Meter:
    """Counts the megabytes of one file after those of the files before it."""

    def __init__(self, emit: Emit, before: int, total: int | None) -> None:
        self._emit, self._before, self._total = emit, before, total
        self.last = before

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            step = self._before + event.step
            if step <= self.last:  # a new try, from the start
                return
            self.last = step
            event = replace(event, step=step, total=self._total)
        self._emit(event)


def _megabytes(size: int) -> int:
    return max(-(-size // 1_000_000), 1)


def _entry(file: DataFile, fetched: Fetched) -> dict[str, Any]:
    return {
        "url": file.remote.url,
        "bytes": fetched.path.stat().st_size,
        "sha256": fetched.sha256,
        "compared": fetched.compared,
    }


def _is_unpacked(folder: Path, entry: Mapping[str, Any] | None) -> bool:
    """Whether all that an archive held is there, in the size that it had."""
    sizes = (entry or {}).get("unpacked", {})
    return bool(sizes) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _record(folder: Path, data: DataSet) -> dict[str, dict[str, Any]]:
    path = folder / RECORD
    try:
        values = json.loads(path.read_bytes())
        name, files = values["name"], dict(values["files"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged.", hint="Remove it and try again.") from error
    if name != data.name:  # one record says one licence
        raise DataError(
            f"{folder}: holds the data set {name}.", hint="Give another folder with -o."
        )
    return files


def _write(folder: Path, data: DataSet, record: Mapping[str, Mapping[str, Any]]) -> None:
    values = {
        "name": data.name,
        "home": data.home,
        "licence": data.licence,
        "citation": data.citation,
        "files": record,
    }
    write_atomic(folder / RECORD, json.dumps(values, indent=2) + "\n")

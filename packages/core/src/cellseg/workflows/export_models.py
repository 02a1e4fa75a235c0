"""Copy models that are here to a folder, for computers that cannot or should not download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.download.mirrors import MANIFEST
from cellseg.download.sums import sums_of
from cellseg.errors import ConfigError, StorageError, WeightsError
from cellseg.events import Emit, Progress
from cellseg.files import make_folder, replacing, write_atomic
from cellseg.workflows.stored_models import StoredModel
from cellseg.workflows.verify_models import VerifiedFile, refuse_damaged, verify_models


@dataclass(frozen=True)
class Exported:
    """A folder that other computers can use as their mirror."""

    folder: Path
    copied: tuple[str, ...]
    there: tuple[str, ...]
    """Files that were there already, and are the same."""

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {"folder": str(self.folder), "copied": self.copied, "there": self.there}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"Here:    {self.folder} ({len(self.copied)} copied, {len(self.there)} were there)"
        yield f"Use it:  cellseg models pull --all --mirror {self.folder}"
        yield f"Or:      export CELLSEG_MIRROR={self.folder.absolute()} CELLSEG_OFFLINE=1"


def export_cache(folder: Path, models: Sequence[StoredModel], emit: Emit) -> Exported:
    """Copy the files that are here to a folder, each compared before and after, with a manifest.

    Args:
        folder: made if it is not there; files in it that are the same stay, and so do others.
        models: which.
        emit: gets ``Progress``, counting files.

    Raises:
        ConfigError: two files have one name.
        WeightsError: a file is damaged, here or there, or nothing is here.
        StorageError: they do not fit on the disk, which is found before any is copied.
    """
    files = {f.path: (m, f) for m in models for f in m.files if f.state == "here"}
    if not files:
        raise WeightsError(
            "None of these models is here.", hint="Get some: cellseg models pull NAME"
        )
    names = [path.name for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or MANIFEST in names:
        raise ConfigError(
            f"Two files are called {twice or MANIFEST}; a mirror holds one of each name.",
            hint="Name the models to export, and use a folder for each publisher.",
        )
    new = {path for path in files if not (folder / path.name).exists()}
    _refuse_full(folder, sum(file.size or 0 for path, (_, file) in files.items() if path in new))
    found = verify_models([replace(m, files=(f,)) for m, f in files.values()], lambda event: None)
    refuse_damaged(found, removed=False)
    make_folder(folder)
    entries = _entries(folder)
    copied: list[str] = []
    there: list[str] = []
    for step, each in enumerate(found, 1):
        target = folder / each.file.path.name
        (copied if each.file.path in new else there).append(target.name)
        if each.file.path in new:
            with replacing(target) as temporary:
                shutil.copyfile(each.file.path, temporary)
                _compare(temporary, target, each)
        else:
            _compare(target, target, each)
        entries[target.name] = _entry(each)
        _write(folder, entries)
        emit(Progress(step, len(found)))
    return Exported(folder, tuple(copied), tuple(there))


def _compare(path: Path, shown: Path, expected: VerifiedFile) -> None:
    sha256 = sums_of(path, replace(expected.file.remote, checksum=""))["sha256"]
    if sha256 != expected.sha256:
        raise WeightsError(
            f"{shown}: is not what {expected.file.path} is: its SHA256 is {sha256} instead of "
            f"{expected.sha256}.",
            hint=f"Remove it, and give the command again: rm {shown}",
        )


def _refuse_full(folder: Path, needed: int) -> None:
    nearest = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise StorageError(
            f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free.",
            hint="Free some space, or name fewer models.",
        )


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        return {entry["file"]: dict(entry) for entry in json.loads(path.read_bytes())["files"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: is damaged.", hint=f"Remove it, and give the command again: rm {path}"
        ) from error


def _entry(each: VerifiedFile) -> dict[str, Any]:
    return {
        "name": each.model.name,
        "file": each.file.path.name,
        "size": each.file.size,
        "sha256": each.sha256,
        "licence": each.model.model.licence,
        "citation": each.model.model.citation,
        "source": each.file.remote.url,
    }


def _write(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    listed = [entries[name] for name in sorted(entries)]
    write_atomic(folder / MANIFEST, json.dumps({"files": listed}, indent=2) + "\n")

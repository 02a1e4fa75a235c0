"""Read all files of models that are here, and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cellseg.download.notes import Noted, distrust, write_note
from cellseg.download.remote import need_xxhash
from cellseg.download.sums import difference, sums_of
from cellseg.errors import StorageError, WeightsError
from cellseg.events import Emit, Progress
from cellseg.files import storage_errors
from cellseg.workflows.stored_models import StoredFile, StoredModel


@dataclass(frozen=True)
class VerifiedFile:
    """A file that was read in full."""

    model: StoredModel
    file: StoredFile
    sha256: str
    wrong: str
    """In what it differs from the one expected; empty where it is right."""

    def __str__(self) -> str:
        return f"{self.file.path}: {self.wrong or 'right'} ({self.file.checked_by})"

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "model": self.model.name,
            "path": str(self.file.path),
            "sha256": self.sha256,
            "checked_by": self.file.checked_by,
            "damaged": self.wrong or None,
        }


def verify_models(models: Sequence[StoredModel], emit: Emit) -> list[VerifiedFile]:
    """Read the files that are here, and note which are right. None is changed or removed.

    Args:
        models: which.
        emit: gets ``Progress``, counting files.

    Raises:
        ConfigError: the package that a checksum needs is missing.
        WeightsError: a file cannot be read.
    """
    files = {f.path: (m, f) for m in models for f in m.files if f.state == "here"}
    found = []
    for step, (model, file) in enumerate(files.values(), 1):
        found.append(_verified(model, file))
        emit(Progress(step, len(files)))
    return found


def remove_damaged(found: Sequence[VerifiedFile]) -> list[Path]:
    """Remove the files that are not right; what was noted of them stays, to compare the next with.

    Raises:
        StorageError: permission is missing.
    """
    damaged = [each.file.path for each in found if each.wrong]
    for path in damaged:
        with storage_errors(path):
            path.unlink()
    return damaged


def refuse_damaged(found: Sequence[VerifiedFile], removed: bool) -> None:
    """Raise a WeightsError that lists the files that are not right, if any."""
    damaged = [each for each in found if each.wrong]
    if not damaged:
        return
    names = " ".join(dict.fromkeys(each.model.name for each in damaged))
    listed = "\n".join(f"{each.file.path}: {each.wrong}" for each in damaged)
    were = " and were removed" if removed else ""
    raise WeightsError(
        f"Of {len(found)} files, {len(damaged)} are damaged{were}.\n{listed}",
        hint=f"Get them again: cellseg models pull {names}{'' if removed else ' --force'}",
    )


def _verified(model: StoredModel, file: StoredFile) -> VerifiedFile:
    remote, noted = file.remote, file.noted
    expected = remote
    if noted is not None and not remote.proven:
        expected = replace(remote, checksum=f"{remote.checksum} sha256:{noted.sha256}".strip())
    need_xxhash(remote)
    try:
        sums = sums_of(file.path, expected)
        wrong = difference(file.path, expected, sums)
    except OSError as error:
        raise WeightsError(f"{file.path}: cannot be read: {error.strerror}.") from error
    if wrong and expected is not remote and noted is not None:
        wrong += f", noted on {noted.date}"
    noted = _note(file, sums["sha256"], right=not wrong)
    return VerifiedFile(model, replace(file, noted=noted), sums["sha256"], wrong)


def _note(file: StoredFile, sha256: str, *, right: bool) -> Noted | None:
    try:
        if right:
            return write_note(file.path, file.remote, sha256, file.noted)
        if file.noted is not None:
            distrust(file.path, file.noted)
    except StorageError:  # it is another user's: only where nothing else vouches for it, it matters
        if right and not file.remote.proven and file.noted is None:
            raise
    return file.noted

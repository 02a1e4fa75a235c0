"""Which published models there are, and which of their files are here. Reads no file in full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from cellseg.download.notes import Noted, read_note
from cellseg.download.remote import Remote
from cellseg.errors import PluginError, UsageError, WeightsError
from cellseg.plugins import Plugins
from cellseg.specs import PredictorSpec, PublishedModel, TrainerSpec
from cellseg.texts import did_you_mean

State: TypeAlias = Literal["here", "partial", "missing"]
"""``partial``: some files are here, or part of one is."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a model, and whether it is here."""

    remote: Remote
    path: Path
    """Where it is, or would be."""
    state: State
    size: int | None
    """Bytes of the whole file; None where nobody said, and it is not here."""
    noted: Noted | None = None
    """What was found when it was last read in full."""

    @property
    def checked_by(self) -> str:
        """What it is compared with, for people."""
        published = ", ".join(str(each) for each in self.remote.checksums)
        if self.remote.proven or self.noted is None:
            return published or "none published"
        noted = f"sha256 noted on {self.noted.date}, not published"
        return f"{published}; {noted}" if published else noted

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "name": self.remote.name,
            "path": str(self.path),
            "state": self.state,
            "bytes": self.size,
            "source": self.remote.url,
            "checksum": self.remote.checksum,
            "noted": {"sha256": self.noted.sha256, "date": self.noted.date} if self.noted else None,
        }


@dataclass(frozen=True)
class StoredModel:
    """A published model, who can start from it, and its files."""

    model: PublishedModel
    backends: tuple[str, ...]
    files: tuple[StoredFile, ...]
    called: Mapping[str, str] = field(default_factory=dict)
    """Other names of it, by the backends that use them."""

    @property
    def name(self) -> str:
        """What users type."""
        return self.model.name

    @property
    def names(self) -> tuple[str, ...]:
        """All its names."""
        return tuple(dict.fromkeys((self.name, *self.called.values())))

    @property
    def state(self) -> State:
        """Whether all of it is here."""
        states = {file.state for file in self.files}
        return states.pop() if len(states) == 1 else "partial"

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where that is not known of each."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def checked_by(self) -> str:
        """What its files are compared with, for people."""
        return " | ".join(dict.fromkeys(file.checked_by for file in self.files))

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "name": self.name,
            "names": list(self.names),
            "backends": list(self.backends),
            "state": self.state,
            "bytes": self.size,
            "licence": self.model.licence,
            "citation": self.model.citation,
            "token": self.model.token or None,
            "files": [file.to_dict() for file in self.files],
        }


def stored_models(plugins: Plugins) -> list[StoredModel]:
    """All models that the installed backends can start from, by name; imports every plugin.

    Models of one name must be the same; one model may have several names.

    Raises:
        PluginError: two backends mean different models by one name.
        WeightsError: a note beside a file is damaged.
    """
    found: dict[tuple[Path, tuple[Remote, ...]], dict[str, PublishedModel]] = {}
    owners: dict[str, str] = {}
    for backend, model in _offered(plugins):
        key = model.folder(), model.files
        known = next((other for other, uses in found.items() if model.name in _names(uses)), key)
        if known != key:
            raise PluginError(
                f"The backends {owners[model.name]} and {backend} mean different models by "
                f"{model.name!r}.",
                hint=f"Uninstall one of them: uv pip uninstall {plugins.package(backend)}",
            )
        owners.setdefault(model.name, backend)
        found.setdefault(key, {}).setdefault(backend, model)
    stored = [_stored(folder, uses) for (folder, _), uses in found.items()]
    return sorted(stored, key=lambda each: each.name)


def chosen_models(
    stored: Iterable[StoredModel],
    names: Sequence[str] = (),
    *,
    backend: str | None = None,
    here: bool = False,
) -> list[StoredModel]:
    """Some of the models.

    Args:
        stored: all.
        names: only these; all without any.
        backend: only those that this backend can start from.
        here: only those of which something is here.

    Raises:
        UsageError: there is no such model.
    """
    every = list(stored)
    by_name = {name: model for model in every for name in model.names}
    for name in names:
        if name not in by_name:
            raise UsageError(
                f"There is no model {name!r}.",
                hint=did_you_mean(name, by_name, "cellseg models list shows those there are."),
            )
    wanted = {by_name[name].name: by_name[name] for name in names} if names else None
    return [
        model
        for model in (every if wanted is None else wanted.values())
        if (backend is None or backend in model.backends) and (not here or model.state != "missing")
    ]


def model_paths(model: StoredModel) -> list[Path]:
    """The files of a model.

    Raises:
        WeightsError: one is missing.
    """
    for file in model.files:
        if file.state != "here":
            part = " whole" if file.state == "partial" else ""
            raise WeightsError(
                f"{model.name}: {file.path} is not{part} here.",
                hint=f"Get it: cellseg models pull {model.name}",
            )
    return [file.path for file in model.files]


def _offered(plugins: Plugins) -> Iterable[tuple[str, PublishedModel]]:
    trainers, predictors = plugins.all(TrainerSpec), plugins.all(PredictorSpec)
    for backend in sorted({*trainers, *predictors}):
        for card in (trainers.get(backend), predictors.get(backend)):
            for model in card.models if card else ():
                yield backend, model


def _names(uses: Mapping[str, PublishedModel]) -> set[str]:
    return {model.name for model in uses.values()}


def _stored(folder: Path, uses: Mapping[str, PublishedModel]) -> StoredModel:
    first = next(iter(uses.values()))
    return StoredModel(
        model=first,
        backends=tuple(uses),
        files=tuple(_file(folder, remote) for remote in first.files),
        called={backend: m.name for backend, m in uses.items() if m.name != first.name},
    )


def _file(folder: Path, remote: Remote) -> StoredFile:
    path = folder / remote.name
    noted = read_note(path)
    if path.is_file():
        return StoredFile(remote, path, "here", path.stat().st_size, noted)
    part = path.with_name(f".part-{path.name}").exists()
    return StoredFile(remote, path, "partial" if part else "missing", remote.size, noted)

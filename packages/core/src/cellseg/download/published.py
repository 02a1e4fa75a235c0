"""Files of published models: got where they are missing, compared, and noted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from cellseg.download import Fetched, fetch
from cellseg.download.environment import environment
from cellseg.download.remote import Remote, Settings, shown
from cellseg.errors import ConfigError, StorageError, WeightsError
from cellseg.events import Emit, Event, Note, Progress
from cellseg.specs import BaseWeights, PublishedModel

_HERE = ("localhost", "127.0.0.1", "::1")


def fetch_weights(model: PublishedModel, file: Remote, emit: Emit) -> tuple[Path, BaseWeights]:
    """One file of a model, downloaded if it is not there yet, and what a bundle says of it.

    Args:
        model: the model.
        file: one of its files.
        emit: gets notes alone: ``Progress`` is of what the weights are for, such as a training.

    Raises:
        WeightsError: it cannot be had, or is not the one expected.
    """
    fetched = fetch_file(model, file, environment(error=WeightsError), _Told(file, emit))
    return fetched.path, BaseWeights(
        name=file.name, source=file.url, licence=model.licence, sha256=fetched.sha256
    )


def fetch_file(model: PublishedModel, file: Remote, settings: Settings, emit: Emit) -> Fetched:
    """One file of a model, downloaded if it is not there yet.

    Args:
        model: the model.
        file: one of its files.
        settings: how. Its headers are sent where the publisher wants a token; where it has none,
            those of the environment are.
        emit: gets ``Progress`` in megabytes, and notes.

    Raises:
        ConfigError: a token cannot be sent.
        WeightsError: it cannot be had, or is not the one expected; a token is missing.
        StorageError: the disk is full, or the folder cannot be written.
    """
    folder = model.folder()
    if not model.token:  # one that another publisher wants is none of this one's business
        settings = replace(settings, headers={})
    elif not settings.mirror:
        settings = _with_token(model, file, settings, missing=not (folder / file.name).exists())
    return fetch(file, folder, settings, emit, noting=True)


class _Told:
    """Tells of a download now and then, without ``Progress``."""

    def __init__(self, file: Remote, emit: Emit) -> None:
        self._file, self._emit = file, emit
        self._next = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Progress):
            self._emit(event)
            return
        if event.step < self._next:
            return
        every = 100 if event.total is None else max(event.total // 10, 1)
        of = "" if event.total is None else f" of {event.total}"
        self._emit(Note(f"Getting {self._file.name}: {event.step}{of} MB."))
        self._next = event.step + every


def _with_token(
    model: PublishedModel, file: Remote, settings: Settings, *, missing: bool
) -> Settings:
    where = urlsplit(file.url)
    if where.scheme != "https" and where.hostname not in _HERE:
        raise ConfigError(f"{shown(file.url)}: a token is sent to https addresses alone.")
    headers = settings.headers or bearer(os.environ.get(model.token, ""), model.token)
    if not headers and not settings.offline and (missing or settings.force):
        raise WeightsError(
            f"{model.name}: its publisher wants a token, and {model.token} is not set.",
            hint=f"Get one at {where.scheme}://{where.hostname}, and set {model.token} to it; or "
            "put it into a file: cellseg models pull --token-file FILE.",
        )
    which = "that is given" if settings.headers else f"in {model.token}"
    refused = f": the token {which} is not accepted, or gives no access to this model"
    return replace(settings, headers=headers, refused=refused)


def bearer(token: str, source: str) -> Mapping[str, str]:
    """The header that carries a token; none without one.

    Raises:
        ConfigError: it has characters that no token has; ``source`` is where it is from.
    """
    if not token.strip():
        return {}
    if not token.strip().isascii() or not token.strip().isprintable() or " " in token.strip():
        raise ConfigError(f"{source} does not hold a token: it has spaces or other characters.")
    return {"Authorization": f"Bearer {token.strip()}"}


def read_token(path: Path) -> Mapping[str, str]:
    """The header that carries the token in a file.

    Raises:
        ConfigError: it is missing or empty, holds no token, or others can read it.
    """
    try:
        mode = path.stat().st_mode
        headers = bearer(path.read_text(encoding="ascii", errors="replace"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing.", hint="Give a file with a token.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}.") from error
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"{path}: others can read it, and it holds a token.", hint=f"chmod 600 {path}"
        )
    if not headers:
        raise ConfigError(f"{path} is empty.", hint="Give a file with a token.")
    return headers

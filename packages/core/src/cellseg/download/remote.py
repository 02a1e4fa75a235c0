"""Files elsewhere: where they are, how to get them, and what they must be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from cellseg.errors import CellsegError, ConfigError, DataError

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file to get."""

    url: str
    name: str
    """What it is called here; no folders."""
    size: int | None = None
    """In bytes, where it is known."""
    checksum: str = ""
    """``sha256:``, ``md5:`` or ``xxh128:`` (which needs the package xxhash) and the sum in
    hexadecimal digits; empty where nobody published one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to get files; the same for data and for weights."""

    mirror: str = ""
    """An address or a folder that holds files of the same names, to use instead."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Such as ``Authorization``. Never printed, and sent to the host of ``Remote.url`` alone."""
    force: bool = False
    """Replace a file that is there and is not as expected, or whose checksum nobody knows."""
    insecure: bool = False
    """Do not ask for a valid certificate; only for files with a SHA-256."""
    retries: int = 4
    """How often to try again, counted anew after each megabyte that arrived."""
    pause: float = 1.0
    """Seconds before the first new try; doubled each time."""
    timeout: float = 30.0
    """Seconds without a byte after which a connection is given up."""
    error: type[CellsegError] = DataError
    """What is raised: ``DataError`` or ``WeightsError``."""


def shown(url: str) -> str:
    """An address as messages may print it: without a user name or password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def check(remote: Remote, settings: Settings) -> None:
    """Refuse what makes no sense, before anything is done.

    Raises:
        ConfigError: a name or an address that is none, ``insecure`` without a SHA-256, or a
            checksum whose package is not installed.
    """
    if remote.name != Path(remote.name).name or remote.name in ("", ".", ".."):
        raise ConfigError(f"{remote.name!r}: is no file name.")
    kind, _, digits = remote.checksum.partition(":")
    lengths = {"sha256": 64, "md5": 32, "xxh128": 32}
    if remote.checksum and not re.fullmatch(f"[0-9a-f]{{{lengths.get(kind, 0)}}}", digits):
        raise ConfigError(f"{remote.name}: {remote.checksum!r} is no checksum.")
    if kind == "xxh128" and find_spec("xxhash") is None:
        raise ConfigError(
            f"{remote.name}: its checksum can be compared with the package xxhash alone.",
            hint="Install it: uv pip install xxhash",
        )
    if settings.insecure and kind != "sha256":
        raise ConfigError(
            f"{remote.name}: --insecure needs a SHA-256 to check the file by, and none is known."
        )
    source = source_of(remote, settings)
    local = settings.mirror and "://" not in settings.mirror
    if not local and urlsplit(source).scheme not in ("http", "https"):
        raise ConfigError(f"{shown(source)}: is no http or https address.")


def source_of(remote: Remote, settings: Settings) -> str:
    """The address of a file, or its path in a local mirror."""
    if not settings.mirror:
        return remote.url
    name = quote(remote.name) if "://" in settings.mirror else remote.name
    return f"{settings.mirror.rstrip('/')}/{name}"

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
    hexadecimal digits; ``md5-prefix:`` and ``sha256-prefix:`` and its first digits, such as
    publishers put into names. Several, which all must be right, are separated by spaces; empty
    where nobody published one."""

    @property
    def checksums(self) -> tuple[Checksum, ...]:
        """Those of ``checksum``."""
        return tuple(Checksum.of(text) for text in self.checksum.split())

    @property
    def proven(self) -> bool:
        """Whether a whole checksum is known; a few digits find damage, but prove nothing."""
        return any(not each.prefix for each in self.checksums)


@dataclass(frozen=True, slots=True)
class Checksum:
    """One checksum of a file."""

    kind: str
    """``sha256``, ``md5`` or ``xxh128``."""
    digits: str
    prefix: bool = False
    """Whether only the first digits are known."""

    @classmethod
    def of(cls, text: str) -> Checksum:
        """From the form that ``Remote.checksum`` has."""
        kind, _, digits = text.partition(":")
        return cls(kind.removesuffix("-prefix"), digits, kind.endswith("-prefix"))

    @property
    def valid(self) -> bool:
        """Whether it can be one."""
        length = LENGTHS.get(self.kind, 0)
        wanted = f"4,{length - 1}" if self.prefix else f"{length}"
        known = length and not (self.prefix and self.kind == "xxh128")
        return bool(known and re.fullmatch(f"[0-9a-f]{{{wanted}}}", self.digits))

    def fits(self, digits: str) -> bool:
        """Whether a file with this sum of its kind is the one."""
        return digits.startswith(self.digits) if self.prefix else digits == self.digits

    def __str__(self) -> str:
        return f"{self.kind} ({len(self.digits)} digits)" if self.prefix else self.kind


LENGTHS = {"sha256": 64, "md5": 32, "xxh128": 32}
"""Digits of each kind of checksum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to get files; the same for data and for weights."""

    mirror: str = ""
    """An address or a folder that holds files of the same names, to use instead."""
    offline: bool = False
    """Ask no other computer: only what is here, or in a mirror that is a folder, can be had."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Such as ``Authorization``. Never printed, and sent to the host of ``Remote.url`` alone."""
    refused: str = ""
    """What a message says, after the answer, where the server refuses this user (401, 403)."""
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

    @property
    def mirror_folder(self) -> Path | None:
        """The mirror, where it is a folder."""
        local = self.mirror and "://" not in self.mirror
        return Path(self.mirror).expanduser() if local else None


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
    kinds = {each.kind for each in remote.checksums if not each.prefix}
    if not all(each.valid for each in remote.checksums):
        raise ConfigError(f"{remote.name}: {remote.checksum!r} is no checksum.")
    need_xxhash(remote)
    if settings.insecure and "sha256" not in kinds:
        raise ConfigError(
            f"{remote.name}: --insecure needs a SHA-256 to check the file by, and none is known."
        )
    source = source_of(remote, settings)
    if settings.mirror_folder is None and urlsplit(source).scheme not in ("http", "https"):
        raise ConfigError(f"{shown(source)}: is no http or https address.")


def need_xxhash(remote: Remote) -> None:
    """Raise a ConfigError where the package is missing that a checksum needs."""
    if any(each.kind == "xxh128" for each in remote.checksums) and find_spec("xxhash") is None:
        raise ConfigError(
            f"{remote.name}: its checksum can be compared with the package xxhash alone.",
            hint="Install it: uv pip install xxhash",
        )


def source_of(remote: Remote, settings: Settings) -> str:
    """The address of a file, or its path in a local mirror."""
    if not settings.mirror:
        return remote.url
    if settings.mirror_folder is not None:
        return str(settings.mirror_folder / remote.name)
    return f"{settings.mirror.rstrip('/')}/{quote(remote.name)}"

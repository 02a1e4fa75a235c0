"""What a container or a cluster lets a process use: control groups of Linux, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NONE = 2**60
"""Version 1 says a number of this size for "no limit"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The tightest limits of the groups that a process is in; None where there are none."""

    memory: int | None = None
    """Bytes."""
    left: int | None = None
    """Bytes of memory that the group has not used; file caches count as not used."""
    processors: float | None = None


def limits(root: Path = Path("/")) -> Limits:
    """The limits of this process.

    Args:
        root: where /proc and /sys are, for tests.
    """
    memory = [_memory(folder) for folder in _folders(root, "memory")]
    known = [(most, left) for most, left in memory if most is not None]
    processors = [_processors(folder) for folder in _folders(root, "cpu")]
    return Limits(
        min((most for most, _ in known), default=None),
        min((left for _, left in known), default=None),
        min((count for count in processors if count is not None), default=None),
    )


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the group of this process, and of those that it is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = base / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _memory(folder: Path) -> tuple[int | None, int]:
    for most, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(_text(folder / most))
        if limit is not None and limit < _NONE:
            caches = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            taken = (_number(_text(folder / used)) or 0) - int(caches.get(cached, 0))
            return limit, max(0, limit - taken)
    return None, 0


def _processors(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split() or [
        _text(folder / "cpu.cfs_quota_us").strip(),
        _text(folder / "cpu.cfs_period_us").strip(),
    ]
    quota, period = (_number(word) for word in words)
    return quota / period if quota is not None and quota > 0 and period else None


def _text(path: Path) -> str:
    """What a file says; nothing where there is none, as in the other version and in the root."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """``max`` and -1 are no number."""
    return int(text) if text.strip().isdigit() else None

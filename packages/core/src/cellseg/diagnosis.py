"""What checks of plugins (``Spec.checks``) have in common. Light."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from cellseg.specs import Finding

GIB = 2**30


def installed(distribution: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def needed(distribution: str, module: str, install: str = "") -> Finding:
    """A finding about a package without which a plugin does not work.

    Nothing is imported: one that is there but broken is found where it is used.

    Args:
        distribution: its name where packages are installed from.
        module: its name in Python.
        install: the command that installs it; by default ``uv pip install`` with its name.
    """
    found = installed(distribution)
    if found is not None and find_spec(module) is not None:
        return Finding("ok", distribution, found)
    advice = install or f"uv pip install {distribution}"
    if found is None:
        return Finding("problem", distribution, "not installed", advice)
    return Finding(
        "problem",
        distribution,
        f"{found} is installed, but there is no module {module}",
        f"uv pip install --force-reinstall {distribution}",
    )


def optional(distribution: str, module: str, use: str, install: str = "") -> Finding:
    """A finding about a package that one option of a plugin needs; never a problem.

    Args:
        distribution: its name where packages are installed from.
        module: its name in Python.
        use: what it is for, such as ``--refine``.
        install: the command that installs it; by default ``uv pip install`` with its name.
    """
    if find_spec(module) is not None:
        return Finding("ok", distribution, f"{installed(distribution) or 'installed'}, for {use}")
    command = install or f"uv pip install {distribution}"
    return Finding("ok", distribution, f"not installed; for {use}: {command}")


def unmet(distribution: str, extra: str = "") -> Iterator[str]:
    """What a package asks for and does not get: ``NAME>=1 (0.9 is installed)``.

    Args:
        distribution: an installed package.
        extra: an extra of it; then only what that adds is looked at.
    """
    from packaging.requirements import Requirement

    for line in requires(distribution) or ():
        wanted = Requirement(line)
        of_extra = wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})
        if of_extra != bool(extra):
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        there = installed(wanted.name)
        if there is None:
            yield f"{wanted.name}{wanted.specifier} (not installed)"
        elif not wanted.specifier.contains(there, prereleases=True):
            yield f"{wanted.name}{wanted.specifier} ({there} is installed)"


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def writable(what: str, folder: Path, advice: str) -> Finding:
    """A finding about a folder that a plugin writes to, now or when it is made; writes nothing.

    Args:
        what: what the folder is.
        folder: where it is, or will be.
        advice: what to do where it cannot be written.
    """
    place = nearest_folder(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("problem", what, f"{folder}: no permission to write", advice)
    return Finding("ok", what, str(folder) if folder.is_dir() else f"{folder} (not made yet)")


def variable(name: str) -> str | None:
    """An environment variable; None where it is not set or empty."""
    return os.environ.get(name) or None

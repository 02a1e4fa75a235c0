"""Turning a template into a page that needs nothing but itself."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.files import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

_LIBRARIES = ("numpy", "torch", "lightning", "zarr")


def write_page(template: str, target: Path, values: Mapping[str, object]) -> Path:
    """Render ``templates/<template>`` into the file ``target``, which is replaced.

    Every value is escaped: nothing in a file name or a message can become markup.

    Raises:
        StorageError: the file cannot be written.
    """
    page = _environment().get_template(template).render(written=_now(), **values)
    write_atomic(target, page)
    return target


def data_uri(picture: bytes, kind: str = "png") -> str:
    """A picture file (``png``, ``webp``) as an address that holds the picture itself."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")


def versions(cellseg: str = "", backend: str = "", backend_version: str = "") -> dict[str, str]:
    """Names and versions of what the results depend on.

    Args:
        cellseg: the version that did the work; empty means the installed one.
        backend: name of the backend, if one took part.
        backend_version: its version.
    """
    found = {"cellseg": cellseg or _installed("cellseg-core")}
    if backend:
        found[backend] = backend_version or "unknown"
    found["Python"] = platform.python_version()
    found |= {name: _installed(name) for name in _LIBRARIES}
    found["System"] = f"{platform.system()} {platform.machine()}"
    return {name: number for name, number in found.items() if number}


def shown(value: object) -> str:
    """A value of an option as a person would write it."""
    if value is None or value == () or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value)
    return str(value)


def number(value: float) -> str:
    """At most four significant digits, without needless zeros."""
    return f"{value:.4g}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cellseg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "number": number}
    return environment


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")

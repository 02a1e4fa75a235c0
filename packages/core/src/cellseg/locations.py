"""Where images and results are: on this computer, or at an address such as ``s3://bucket/plate``.

Importing this costs nothing. What speaks to stores is in ``cellseg.remote``, which is imported when
a text turns out to be an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cellseg.errors import ConfigError, PluginError, UsageError

R = TypeVar("R")

SCHEMES: Mapping[str, str] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
    "file": "",
}
"""How addresses may begin, and the package that reads and writes there."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/[^/]")
_AT_ONCE = 16

Documents = dict[str, bytes | None]
"""Metadata files by address; None where there is none."""
_documents: ContextVar[Documents | None] = ContextVar("documents", default=None)


def location(text: str | Path) -> Path:
    """The place that a text names.

    Args:
        text: a path of this computer, or an address. What is a path already is given back.

    Returns:
        A ``Path``; of an address a path that has its methods, whose ``str`` is the address.

    Raises:
        ConfigError: the address is of an unknown kind, names no bucket, host or file, or holds a
            password or a query.
        PluginError: the package for such addresses is not installed.
    """
    if not isinstance(text, str):
        return text
    if not is_address(text):
        return Path(text)
    scheme, rest = _parts(text)
    if scheme == "file":
        return _file(text)
    if scheme != "memory" and not rest.split("/")[0]:
        what = "host" if scheme.startswith("http") else "bucket"
        raise ConfigError(f"{text}: names no {what}, as {scheme}://NAME/image.zarr does.")
    _refuse_secrets(text, scheme, rest)
    _require(text, scheme)
    from cellseg.remote import RemotePath

    path: Any = RemotePath(f"{scheme}://{rest.rstrip('/')}")
    return path  # type: ignore[no-any-return]


def is_address(text: str) -> bool:
    """Whether a text is an address and no path of this computer."""
    return _ADDRESS.fullmatch(text) is not None


def is_remote(path: Path) -> bool:
    """Whether a place is an address."""
    return not isinstance(path, PurePath)


def refuse_remote(path: Path | None, what: str) -> None:
    """Raise a UsageError where a place is an address; ``what`` is what cannot be there."""
    if path is not None and is_remote(path):
        refuse_address(str(path), what)


def refuse_address(text: str, what: str) -> None:
    """Raise a UsageError where a text is an address; ``what`` is what cannot be there."""
    if is_address(text):
        raise UsageError(
            f"{shown(text)}: {what} must be on this computer; only OME-Zarr images can be read "
            "and written at addresses.",
            hint="Give a folder or file of this computer, or of a file system that it shares.",
        )


def collapsed(path: Path) -> bool:
    """Whether a path was an address before ``Path`` took one of its slashes away."""
    found = _COLLAPSED.match(str(path))
    return found is not None and found.group(1) in SCHEMES


def at_once(function: Callable[[Path], R], paths: Iterable[Path]) -> list[R]:
    """``function`` of each path, in their order; of addresses many at the same time."""
    every = list(paths)
    if not any(map(is_remote, every)):
        return [function(path) for path in every]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE, "cellseg-ask") as threads:
        return list(threads.map(function, every))


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths where something is, in their order."""
    every = list(paths)
    there = at_once(lambda path: path.exists(), every)
    return [path for path, found in zip(every, there, strict=True) if found]


@contextmanager
def remembered() -> Iterator[Documents]:
    """Within this context each metadata file of an address is asked for once."""
    documents = _documents.get()
    if documents is not None:
        yield documents
        return
    documents = {}
    token = _documents.set(documents)
    try:
        yield documents
    finally:
        _documents.reset(token)


def documents_seen() -> Documents | None:
    """The metadata files that are remembered; None outside of ``remembered``."""
    return _documents.get()


def prefetch(paths: Iterable[Path]) -> None:
    """Read metadata files of addresses, many at the same time, for those who ask for them next."""
    far = [path for path in paths if is_remote(path)]
    if far and documents_seen() is not None:
        from cellseg.remote import fetch

        fetch(far)


def shown(text: str) -> str:
    """An address as messages may print it: without a user name, a password or a query."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return text
    place = found.group(2).partition("?")[0]
    host, slash, path = place.partition("/")
    return f"{found.group(1)}://{host.rpartition('@')[2]}{slash}{path}"


def takes_addresses(annotation: Any, metadata: Iterable[Any] = ()) -> bool:
    """Whether a field of this type is a ``Location``, or may be one."""
    if any(isinstance(item, _Place) for item in metadata):
        return True
    inner = get_args(annotation)
    return any(isinstance(one, _Place) or takes_addresses(one) for one in inner)


def is_place(annotation: Any) -> bool:
    """Whether a field of this type is a path, or may be one."""
    return annotation is Path or any(map(is_place, get_args(annotation)))


class _Place:
    """Tells pydantic how to read and write a ``Location``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            _validated,
            serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {"type": "string"}


def _validated(value: Any) -> Path:
    if isinstance(value, str):
        try:
            return location(value)
        except ConfigError as error:  # of which pydantic keeps the message alone
            raise ValueError(" ".join(filter(None, (str(error), error.hint)))) from None
    if isinstance(value, PurePath):
        return Path(value)
    if hasattr(value, "__vfspath__"):
        kept: Path = value
        return kept
    raise ValueError("Input is not a path or an address")


Location = Annotated[Path, _Place()]
"""The type of a field that holds a path or an address; in JSON it is the text."""


def _parts(text: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(text)
    assert found is not None
    scheme, rest = found.group(1).lower(), found.group(2)
    if scheme not in SCHEMES:
        close = get_close_matches(scheme, SCHEMES, n=1, cutoff=0.5)
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(
            f"{shown(text)}: {scheme}:// is no kind of address that is known.",
            hint=f"Did you mean {close[0]}://?" if close else f"Known: {known}",
        )
    return scheme, rest


def _file(text: str) -> Path:
    found = urlsplit(text)
    if found.netloc not in ("", "localhost") or not found.path or found.query or found.fragment:
        raise ConfigError(
            f"{shown(text)}: names no file of this computer.",
            hint="Write file:///folder/name, with three slashes; or leave file:// out.",
        )
    return Path(url2pathname(found.path))


def _refuse_secrets(text: str, scheme: str, rest: str) -> None:
    host = rest.split("/")[0]
    if "@" in host and scheme not in ("az", "abfs"):
        raise ConfigError(
            f"{shown(text)}: holds a user name or a password, which would end in logs.",
            hint="Give them to the environment instead: see docs/remote-images.md.",
        )
    if scheme.startswith("http") and ("?" in rest or "#" in rest):
        raise ConfigError(
            f"{shown(text)}: holds a query, which the files of an image have no place for."
        )


def _require(text: str, scheme: str) -> None:
    wanted = dict.fromkeys(("fsspec", "upath", SCHEMES[scheme]))
    missing = [package for package in wanted if find_spec(package) is None]
    if not missing:
        return
    package = SCHEMES[scheme]
    more = "" if package in ("s3fs", "aiohttp", "fsspec") else f" {package}"
    name = {"upath": "universal-pathlib"}.get(missing[0], missing[0])
    raise PluginError(
        f"{shown(text)}: {scheme}:// addresses need the package {name}, which is not installed.",
        hint=f'Install it: uv pip install "cellseg-core[remote]"{more}',
    )

"""What the environment says about downloads; read here alone.

``CELLSEG_OFFLINE=1`` forbids them, ``CELLSEG_MIRROR`` is a folder or an address that holds copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cellseg.download.remote import Settings
from cellseg.errors import CellsegError, ConfigError, DataError

OFFLINE = "CELLSEG_OFFLINE"
MIRROR = "CELLSEG_MIRROR"
_SWITCH = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def environment(
    *, mirror: str = "", error: type[CellsegError] = DataError, force: bool = False
) -> Settings:
    """Settings of a download as the environment has them.

    Args:
        mirror: goes before that of the environment.
        error: what is raised.
        force: as ``Settings.force``.

    Raises:
        ConfigError: a variable holds something that it cannot mean.
    """
    said = os.environ.get(OFFLINE, "").strip().lower()
    if said not in _SWITCH:
        raise ConfigError(
            f"{OFFLINE}={said}: is neither yes nor no.", hint=f"Set it to 1, or unset {OFFLINE}."
        )
    return Settings(
        mirror=mirror or os.environ.get(MIRROR, ""),
        offline=_SWITCH[said],
        error=error,
        force=force,
    )


@contextmanager
def offline(asked: bool = True) -> Iterator[None]:
    """No downloads inside, neither by this process nor by those that it starts."""
    before = os.environ.get(OFFLINE)
    if asked:
        os.environ[OFFLINE] = "1"
    try:
        yield
    finally:
        if asked and before is None:
            del os.environ[OFFLINE]
        elif asked and before is not None:
            os.environ[OFFLINE] = before

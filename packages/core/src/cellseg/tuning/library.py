"""Optuna, imported when it is needed, and the database that it writes to."""

from __future__ import annotations

import logging
import random
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError, PluginError, StorageError

HEARTBEAT = 20
"""Seconds between the signs of life of a trial."""
GRACE = 120
"""Seconds without one after which a trial is lost."""
_SECONDS_LOCKED = 60
"""How long to wait for other processes that write to the same SQLite file."""
_TABLES_TRIED = 10
"""How often to look for tables that others make at the same time."""


def load() -> Any:
    """The module ``optuna``, silent.

    Raises:
        PluginError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise PluginError(
            f"cellseg tune needs Optuna, which is not installed: {error}",
            hint="Install it: uv pip install 'cellseg-core[tune]'",
        ) from error
    if optuna.logging.get_verbosity() < logging.ERROR:
        optuna.logging.set_verbosity(logging.ERROR)
    # Its heartbeats are called experimental, and meant for a loop that is not ours.
    warnings.filterwarnings("ignore", module=r"optuna\..*")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_storage(url: str) -> Any:
    """The database at an address of SQLAlchemy, with its tables.

    Raises:
        ConfigError: this is no address, or the driver of the database is not installed.
        StorageError: there is no database, or it cannot be opened.
    """
    optuna = load()
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    local = url.startswith("sqlite")
    arguments = {"connect_args": {"timeout": _SECONDS_LOCKED}} if local else {"pool_pre_ping": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = _with_tables(url, arguments)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(
            f"--storage {masked(url)}: {error}",
            hint="An address of SQLAlchemy, such as postgresql+psycopg://user@host/name.",
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"--storage {masked(url)}: the driver of this database is missing: {error}",
            hint="Install it, such as: uv pip install 'psycopg[binary]'",
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise StorageError(f"{masked(url)}: cannot be opened: {reason}") from error
    if local:
        # Two processes that read before they write would both take the same trial.
        sqlalchemy.event.listen(storage.engine, "connect", _no_hidden_begin)
        sqlalchemy.event.listen(storage.engine, "begin", _begin)
        storage.engine.dispose()
    return storage


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Turn the error of a database that stays away, or locked, into one that users understand.

    Raises:
        StorageError: it names the database.
    """
    optuna = load()
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise StorageError(
            f"{masked(url)}: the database does not answer: {reason}",
            hint="Go on with the search when it does: cellseg resume DIR",
        ) from error


def lasting(url: str) -> str:
    """An address that means the same from any working directory.

    Raises:
        ConfigError: the database would end with the process.
    """
    if not url.startswith("sqlite"):
        return url
    driver, _, file = url.partition(":///")
    if not file or file == ":memory:":
        raise ConfigError(
            f"--storage {url}: a database in memory is gone when the process ends.",
            hint="Name a file, such as sqlite:///search.db",
        )
    return url if file.startswith("file:") else f"{driver}:///{Path(file).absolute()}"


def masked(url: str) -> str:
    """An address without its password."""
    url = re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&]*(?:password|passwd|pwd)=)[^&]*", r"\1***", url)


def _with_tables(url: str, arguments: dict[str, Any]) -> Any:
    """The storage; computers that begin at once all find no tables, and all make them."""
    optuna = load()
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    left = _TABLES_TRIED
    while True:
        try:
            return optuna.storages.RDBStorage(
                url, engine_kwargs=arguments, heartbeat_interval=HEARTBEAT, grace_period=GRACE
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__
            made = isinstance(error, IntegrityError) or isinstance(cause, IntegrityError)
            left -= 1
            if not left or not (made or "already exists" in str(cause)):
                raise
            time.sleep(random.uniform(0.1, 0.5))


def _no_hidden_begin(connection: Any, record: object) -> None:
    connection.isolation_level = None


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")

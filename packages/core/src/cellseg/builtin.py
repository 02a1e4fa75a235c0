"""The plugin that ships with core: its readers, and the exporter that packs a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cellseg.hookspecs import hookimpl
from cellseg.specs import DatasetSpec


@hookimpl
def cellseg_datasets() -> Iterator[DatasetSpec[Any]]:
    """Core's readers."""
    yield from ()

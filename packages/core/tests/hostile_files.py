"""What tests of hostile files share: how they are opened, and what may come of it."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset

PIXELS = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def opened(path: Path, **options: object) -> Sample:
    return open_dataset(Plugins(), path, "auto", options, False)[0]


def refused(path: Path, match: str, **options: object) -> None:
    """Opening, or else reading a corner, is a DataError that names the file."""
    with pytest.raises(DataError, match=match) as error:
        sample = opened(path, **options)
        sample.image[tuple(slice(0, min(n, 64)) for n in sample.image.shape)]
    text = str(error.value)
    assert path.name in text and "\n" not in text and len(text) < 600, text


def taken(path: Path, **options: object) -> Any:
    sample = opened(path, **options)
    return np.asarray(sample.image[tuple(slice(0, min(n, 64)) for n in sample.image.shape)])


def deflated(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    blocks = [packer.compress(bytes(2**20)) for _ in range(megabytes)]
    return b"".join([*blocks, packer.flush()])


class Creates:
    """What runs when a pickle with it is loaded: a folder appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))

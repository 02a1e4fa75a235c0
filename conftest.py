"""One thread each: two are up to 30 times slower on the tiny models of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled images; skips, with the reason, where it is absent."""
    folder = Path(__file__).parent / "../shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real images in ../shared/data")
    return folder.resolve()

"""A sample of ``benchmarks/faults.py``: real kills and full disks, at random moments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


@pytest.mark.parametrize(
    ("moments", "jobs", "least"),
    [(12, ["train", "export", "augment"], 4), (8, ["predict"], 6), (20, ["tune"], 2)],
    ids=["train", "predict", "tune"],
)
def test_struck_at_random_moments(moments: int, jobs: list[str], least: int) -> None:
    chosen = [word for job in jobs for word in ("--job", job)]
    done = subprocess.run(
        [sys.executable, "faults.py", "--moments", str(moments), "--disks", "2", *chosen],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
    )
    found = re.search(r"RESULT kills_survived=(\d+) target==(\d+) met", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) >= least, "a moment chosen by the clock may come too late"
    if "full disk" in done.stdout:
        assert "RESULT full_disks_survived" in done.stdout and "short" not in done.stdout

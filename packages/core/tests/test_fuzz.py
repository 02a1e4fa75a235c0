"""Damaged files of every kind: an error of cellseg, or data as promised (see ``fuzz_targets``)."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, Bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 25
_edit = st.tuples(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**16))


def fuzzed(name: str, folder: Path, examples: int, derandomize: bool = True) -> None:
    """Damage and read a target; anything but an error of cellseg comes out."""
    if name.startswith("weights"):
        pytest.importorskip("torch")
    bench = Bench(TARGETS[name], folder)

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(which=st.integers(0, 63), edits=st.lists(_edit, min_size=1, max_size=6))
    def run(which: int, edits: list[tuple[int, int, int]]) -> None:
        bench.try_(which, edits)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_in_an_error_or_in_data(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path / "data", EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_other_damage_each_time(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path / "data", 300, derandomize=False)


@pytest.mark.slow
def test_the_benchmark_fuzzes(tmp_path: Path) -> None:
    """A second of each of two targets under atheris; it finds a crash where there is one."""
    import subprocess
    import sys

    pytest.importorskip("atheris")
    script = Path(__file__).parents[3] / "benchmarks/fuzz.py"
    done = subprocess.run(
        [sys.executable, script, "--seconds", "2", "--crashes", tmp_path, "tracks-csv", "bundle"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RESULT crashes=0 target=0 met" in done.stdout

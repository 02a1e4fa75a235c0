"""The page on security names tests that there are, and the numbers of the code."""

from __future__ import annotations

import re
from pathlib import Path

from cellseg import example_rois, geojson, limits, prompt_files, yaml_files
from cellseg.download import unpacking
from cellseg.engine import items

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs/security.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    folders = ("packages", "apps", "tests")
    files = [file for folder in folders for file in (REPO / folder).rglob("*test*.py")]
    defined = {
        name
        for file in files
        for name in re.findall(r"def (test_\w+)\(", file.read_text(encoding="utf-8"))
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40 and not named - defined


def test_the_limits_are_those_of_the_code() -> None:
    assert limits.MOST_DECODED == 2 << 30 and "| 2 GiB of pixels |" in PAGE
    assert (limits.MOST_SIDE, limits.MOST_ELEMENTS) == (1 << 40, 1 << 60)
    assert "| 2^40; 2^60 |" in PAGE
    assert items.MOST_TILES == 50_000_000 and "| 50 million |" in PAGE
    assert limits.MOST_JSON == 64 << 20 and "| 64 MB |" in PAGE
    assert limits.MOST_YAML == 1 << 19 and yaml_files.MOST_VALUES == 100_000
    assert "| 0.5 MB, 100 000 values |" in PAGE
    assert geojson.MOST_BYTES == limits.MOST_TABLE == 200 << 20 and "| 200 MB |" in PAGE
    assert (prompt_files._MOST_COLUMNS, example_rois.MOST_REGIONS) == (100, 200_000)
    assert "| 100; 200 000 |" in PAGE
    assert (unpacking.MOST_RATIO, unpacking.MOST_MEMBERS) == (1032, 1_000_000)
    assert "| 1032 times its size, a million files |" in PAGE

"""Ranges as users write them."""

from __future__ import annotations

import pytest

from cellseg.errors import ConfigError
from cellseg.ranges import Ranges, is_current, read_ranges


@pytest.mark.parametrize(
    ("text", "places", "plain"),
    [
        ("1-3, 5-8", (0, 1, 2, 4, 5, 6, 7), "1-3, 5-8"),
        ("4", (3,), "4"),
        (" 2 - 3 ", (1, 2), "2-3"),
        ("5,1,3-4,2-3", (0, 1, 2, 3, 4), "1-5"),
        ("7-7,2", (1, 6), "2, 7"),
    ],
)
def test_what_is_written_is_what_is_meant(text, places, plain):
    ranges = read_ranges(text, "--batch-z")
    assert ranges.among(8, "a has 8 planes") == places
    assert str(ranges) == plain
    assert read_ranges(plain, "--batch-z") == ranges
    assert Ranges.of("--batch-z", places) == ranges


@pytest.mark.parametrize("text", ["all", " All "])
def test_all_is_no_range(text):
    assert read_ranges(text, "--batch-z") is None


def test_current_is_recognised():
    assert is_current(" Current ")
    assert not is_current("all")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "1,",
        "1;3",
        "a",
        "1-",
        "-3",
        "1-2-3",
        "1.5",
        "0",
        "0-2",
        "²",
        "9" * 99,
        "2, all",
    ],
)
def test_unreadable_ranges_name_the_flag(text):
    with pytest.raises(ConfigError, match="--batch-time") as caught:
        read_ranges(text, "--batch-time")
    assert "1-3, 5-8" in caught.value.hint


def test_a_reversed_range_says_how_it_was_meant():
    with pytest.raises(ConfigError, match="'8-5' ends before it begins") as caught:
        read_ranges("1-3, 8-5", "--batch-xy")
    assert "5-8" in caught.value.hint


def test_a_range_beyond_the_end_is_refused_without_being_counted_out():
    with pytest.raises(ConfigError, match="--batch-z '2-999999999': a has 3 planes") as caught:
        read_ranges("2-999999999", "--batch-z").among(3, "a has 3 planes")
    assert "1 to 3" in caught.value.hint

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.painting import largest_pieces, paint

SQUARE = np.ones((1, 4, 4), bool)


def test_the_higher_score_keeps_the_overlap() -> None:
    found = paint([SQUARE, SQUARE], [(0, 0, 0), (0, 0, 2)], [0.4, 0.9], (1, 4, 6))
    assert found.labels[0, 0].tolist() == [2, 2, 1, 1, 1, 1]
    assert found.scores == {1: 0.9, 2: 0.4}


def test_the_order_of_the_masks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((1, 5, 5)) > 0.3 for _ in range(4)]
    corners = [(0, 0, 0), (0, 2, 1), (0, 1, 3), (0, 3, 3)]
    scores = [0.5, 0.5, 0.8, 0.2]
    results = [
        paint(
            [masks[i] for i in order],
            [corners[i] for i in order],
            [scores[i] for i in order],
            (1, 8, 8),
        )
        for order in itertools.permutations(range(4))
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result.labels, results[0].labels)
        assert result.scores == results[0].scores


@given(st.integers(-6, 10), st.integers(-6, 10))
def test_what_lies_beyond_the_tile_is_cut_off(y: int, x: int) -> None:
    found = paint([SQUARE], [(0, y, x)], [1.0], (1, 8, 8))
    seen = len(range(max(y, 0), min(y + 4, 8))) * len(range(max(x, 0), min(x + 4, 8)))
    assert int((found.labels == 1).sum()) == seen
    assert len(found.scores) == (seen > 0)


def test_a_covered_mask_leaves_no_gap_in_the_ids() -> None:
    small = np.ones((1, 2, 2), bool)
    found = paint(
        [small, SQUARE, small], [(0, 1, 1), (0, 0, 0), (0, 6, 6)], [0.1, 0.9, 0.2], (1, 8, 8)
    )
    assert np.unique(found.labels).tolist() == [0, 1, 2]


def test_no_masks_are_an_empty_tile() -> None:
    assert not paint([], [], [], (1, 3, 3)).labels.any()


def test_what_cannot_be_painted() -> None:
    with pytest.raises(ValueError, match="1 masks, 0 corners"):
        paint([SQUARE], [], [0.5], (1, 4, 4))
    with pytest.raises(ValueError, match="between 0 and 1"):
        paint([SQUARE], [(0, 0, 0)], [1.5], (1, 4, 4))


def test_the_largest_piece_of_each_label_stays() -> None:
    labels = np.array(
        [
            [1, 1, 0, 2, 0, 1],
            [0, 0, 1, 2, 0, 1],  # touches the first piece at a corner
            [2, 0, 0, 0, 0, 0],
            [2, 0, 3, 0, 3, 0],
        ],
        np.uint32,
    )
    wanted = labels.copy()
    wanted[:2, 5] = 0
    wanted[2:, 0] = 0  # as large as the other, which comes first
    wanted[3, 4] = 0
    found = largest_pieces(labels)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, wanted)
    assert not largest_pieces(np.zeros((3, 4), np.uint32)).any()

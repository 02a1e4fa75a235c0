"""Which pixels polygons cover, against a point-in-polygon rule in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.errors import DataError
from cellseg.outlines import check_polygons, covered, ellipse, rectangle
from cellseg.outputs.geojson import outlines

SIDE = 12
QUARTERS = st.integers(0, 4 * SIDE).map(lambda n: n / 4)
RINGS = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=3, max_size=8)


def drawn(polygons, shape=(SIDE, SIDE)):
    canvas = np.zeros(shape, bool)
    found = covered([tuple(np.array(r, float) for r in polygon) for polygon in polygons])
    if found is not None:
        mask, (y, x) = found
        assert mask.any(0)[[0, -1]].all() and mask.any(1)[[0, -1]].all()
        canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return canvas


def inside(y, x, rings):
    """Even-odd, in fractions: a ray to the left, counting what begins at or above, and at or left
    of the point."""
    odd = False
    for ring in rings:
        for one, other in zip(ring, [*ring[1:], ring[0]], strict=True):
            (ya, xa), (yb, xb) = ([Fraction(v) for v in point] for point in (one, other))
            if (ya <= y) != (yb <= y):
                odd ^= xa + (y - ya) * (xb - xa) / (yb - ya) <= x
    return odd


def oracle(rings):
    half = Fraction(1, 2)
    return np.array([[inside(y + half, x + half, rings) for x in range(SIDE)] for y in range(SIDE)])


@given(st.lists(RINGS, min_size=1, max_size=2))
@settings(max_examples=60, deadline=None)
def test_pixels_are_those_whose_centre_lies_inside(rings):
    np.testing.assert_array_equal(drawn([rings]), oracle(rings))


@given(RINGS)
@settings(max_examples=60, deadline=None)
def test_neither_direction_nor_start_of_a_ring_matters(ring):
    first = drawn([[ring]])
    np.testing.assert_array_equal(drawn([[ring[::-1]]]), first)
    np.testing.assert_array_equal(drawn([[ring[1:] + ring[:1]]]), first)
    np.testing.assert_array_equal(drawn([[[*ring, ring[0]]]]), first)


@given(st.lists(st.tuples(st.floats(0, SIDE), st.floats(0, SIDE)), min_size=2, max_size=6))
@settings(max_examples=100, deadline=None)
def test_abutting_polygons_share_no_pixel_and_leave_none_out(cut):
    # Both halves of a square, divided by any line whose rows go downwards.
    cut = [(0.0, 5.0), *sorted(cut), (float(SIDE), 7.0)]
    left = [(0.0, 0.0), *cut, (float(SIDE), 0.0)]
    right = [(0.0, float(SIDE)), (float(SIDE), float(SIDE))]
    right = [right[0], right[1], *cut[::-1]]
    one, other = drawn([[left]]), drawn([[right]])
    assert not (one & other).any() and (one | other).all()


def test_a_rectangle_between_pixels_is_these_pixels():
    canvas = drawn([rectangle(2, 3, 5, 9)])
    expected = np.zeros((SIDE, SIDE), bool)
    expected[2:5, 3:9] = True
    np.testing.assert_array_equal(canvas, expected)


def test_a_centre_on_an_edge_belongs_to_what_is_right_of_it_or_below():
    canvas = drawn([rectangle(2.5, 3.5, 5.5, 8.5)])
    expected = np.zeros((SIDE, SIDE), bool)
    expected[2:5, 3:8] = True
    np.testing.assert_array_equal(canvas, expected)


def test_holes_and_islands():
    square = rectangle(0, 0, 12, 12)[0]
    hole, island = rectangle(2, 2, 10, 10)[0], rectangle(5, 5, 7, 7)
    canvas = drawn([(square, hole), island])
    expected = np.ones((SIDE, SIDE), bool)
    expected[2:10, 2:10] = False
    expected[5:7, 5:7] = True
    np.testing.assert_array_equal(canvas, expected)


def test_an_ellipse_is_what_its_equation_says():
    corners = np.array([(1.0, 2.0), (1.0, 11.0), (8.0, 11.0), (8.0, 2.0)])
    y, x = np.indices((SIDE, SIDE)) + 0.5
    expected = ((y - 4.5) / 3.5) ** 2 + ((x - 6.5) / 4.5) ** 2 < 1
    np.testing.assert_array_equal(drawn([ellipse(corners)]), expected)


@given(st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_outlines_that_we_write_are_read_back(seed):
    mask = np.random.default_rng(seed).random((SIDE, SIDE)) < 0.6
    polygons = [[[(y, x) for x, y in ring] for ring in polygon] for polygon in outlines(mask)]
    if not polygons:
        return
    as_arrays = [tuple(np.array(ring, float) for ring in polygon) for polygon in polygons]
    check_polygons(as_arrays, "here")  # they touch themselves at corners, which is no harm
    np.testing.assert_array_equal(drawn(polygons), mask)


def test_nothing_is_covered_between_two_centres():
    assert covered([rectangle(2.6, 2.6, 3.4, 3.4)]) is None


def test_pieces_that_share_an_edge_are_fine():
    left, right = rectangle(0, 0, 4, 4), rectangle(0, 4, 4, 8)
    check_polygons([left, right], "here")
    assert drawn([left, right]).sum() == 32


def ring(*points):
    """Of x, y."""
    return (np.array([(y, x) for x, y in points], float),)


@pytest.mark.parametrize(
    ("polygons", "said"),
    [
        ([ring((0, 0), (4, 4), (4, 0), (0, 4))], "crosses itself at x 2, y 2"),
        (  # the crossing is a vertex
            [ring((0, 0), (2, 2), (4, 4), (4, 0), (2, 2), (0, 4))],
            "crosses itself at x 2, y 2",
        ),
        ([ring((0, 0), (9, 0), (9, 9), (5, 9), (5, -0.5))], "crosses itself"),
        ([ring((1, 1), (5, 5), (9, 9))], "x 1, y 1 has no area"),
        ([ring((1, 1), (5, 5), (1, 1))], "x 1, y 1 has no area"),
        ([ring((0, 0), (5, 0), (5, 5), (0, 5)), ring((4, 4), (9, 4), (9, 9), (4, 9))], "crosses"),
        (
            [ring((0, 0), (9, 0), (9, 9), (0, 9)), ring((2, 2), (4, 2), (4, 4))],
            "nested shells at x 2, y 2",
        ),
        (
            [(*ring((0, 0), (5, 0), (5, 5), (0, 5)), *ring((3, 3), (7, 3), (7, 4), (3, 4)))],
            "crosses itself at x 5, y 3",
        ),
        (
            [(*ring((0, 0), (5, 0), (5, 5), (0, 5)), *ring((7, 7), (9, 7), (9, 9)))],
            "hole lies outside shell at x 7, y 7",
        ),
    ],
)
def test_polygons_without_a_clear_inside_are_refused(polygons, said):
    with pytest.raises(DataError, match=said) as caught:
        check_polygons(polygons, "cells.geojson, feature 3")
    assert str(caught.value).startswith("cells.geojson, feature 3: ")


@pytest.mark.parametrize(
    "polygon",
    [
        ring((0, 0), (2, 0), (2, 2), (4, 2), (4, 4), (2, 4), (2, 2), (0, 2)),  # two corners meet
        ring((0, 0), (4, 0), (4, 4), (6, 4), (4, 4), (0, 4)),  # a spike
        ring((0, 0), (4, 0), (4, 0), (4, 4), (0, 4), (0, 0)),  # closed, and a vertex twice
    ],
)
def test_polygons_that_touch_themselves_are_fine(polygon):
    check_polygons([polygon], "here")

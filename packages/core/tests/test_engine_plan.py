"""Tiles cover every voxel once, whatever the shape; neighbours compare the same window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cellseg.data import Tiling
from cellseg.engine.plan import Plan

lengths = st.integers(1, 90)


@given(
    st.tuples(st.integers(1, 20), lengths, lengths),
    st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(0, 4), st.integers(0, 20), st.integers(0, 20)),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_voxel_is_in_exactly_one_core(shape, core, halo, volumetric):
    plan = Plan.cut(shape, Tiling(core, halo), volumetric)
    assume(len(plan) < 500)
    seen = np.zeros(shape, int)
    for tile in range(len(plan)):
        box, read = plan.core_box(tile), plan.read_box(tile)
        seen[box.slices] += 1
        assert min(box.shape) >= 1
        assert all(0 <= a <= b for a, b in zip(read.start, box.start, strict=True))
        assert all(b <= n for b, n in zip(read.stop, shape, strict=True))
        for axis in range(3) if volumetric else (1, 2):
            assert read.shape[axis] <= core[axis] + 2 * halo[axis]
        for direction, other in plan.neighbours(tile):
            window = plan.window(tile, direction)
            assert window == plan.window(other, tuple(-d for d in direction))
            for seer in (read, plan.read_box(other)):
                assert all(a <= b for a, b in zip(seer.start, window.start, strict=True))
                assert all(a >= b for a, b in zip(seer.stop, window.stop, strict=True))
    assert (seen == 1).all()


def test_what_fits_into_a_tile_with_its_halo_is_not_cut():
    assert len(Plan.cut((1, 152, 152), Tiling((1, 128, 128), (0, 12, 12)), False)) == 1
    assert len(Plan.cut((1, 153, 152), Tiling((1, 128, 128), (0, 12, 12)), False)) == 2


def test_planes_are_not_neighbours_unless_volumetric():
    flat = Plan.cut((4, 30, 30), Tiling((8, 64, 64), (2, 8, 8)), volumetric=False)
    assert flat.grid == (4, 1, 1)
    assert not any(flat.neighbours(tile) for tile in range(4))
    deep = Plan.cut((40, 30, 30), Tiling((8, 64, 64), (2, 8, 8)), volumetric=True)
    assert deep.grid == (5, 1, 1)
    assert [other for _, other in deep.neighbours(1)] == [0, 2]


@pytest.mark.parametrize("length", [1025, 1500, 2049, 8192])
def test_cores_are_even_and_tileable(length):
    plan = Plan.cut((1, length, length), Tiling((1, 1024, 1024), (0, 0, 0)), False)
    assert plan.core[1] % 16 == 0
    last = plan.core_box(len(plan) - 1).shape[1]
    assert last > 0.8 * plan.core[1]


@given(
    st.tuples(st.integers(1, 9), lengths, lengths),
    st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(0, 4), st.integers(0, 20), st.integers(0, 20)),
)
@settings(max_examples=100, deadline=None)
def test_what_is_short_enough_is_seen_whole_with_what_borders_on_it(shape, core, halo):
    plan = Plan.cut(shape, Tiling(core, halo), True)
    assume(len(plan) < 500)
    for axis, longest in enumerate(plan.surely_whole):
        for tile in range(len(plan)):
            box, read = plan.core_box(tile), plan.read_box(tile)
            for first in (box.start[axis] - longest + 1, box.stop[axis] - 1) if longest else ():
                low, high = max(first - 1, 0), min(first + longest + 1, shape[axis])
                assert read.start[axis] <= low and high <= read.stop[axis]

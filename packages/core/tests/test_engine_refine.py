"""Holes that are filled, and objects that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg.data import Segmentation
from cellseg.engine.holes import fill_holes
from cellseg.engine.plan import Plan
from cellseg.engine.refine import Refinement, refine
from cellseg.engine.stitch import Stitched
from cellseg.engine.tile import tile_labels


def slowly_filled(plane, most):
    """Hole by hole, with scipy."""
    from scipy.ndimage import binary_dilation, label

    holes, count = label(plane == 0)
    filled = plane.copy()
    for number in range(1, count + 1):
        hole = holes == number
        at_border = hole[0].any() or hole[-1].any() or hole[:, 0].any() or hole[:, -1].any()
        around = np.unique(plane[binary_dilation(hole) & ~hole])
        if hole.sum() <= most and not at_border and len(around) == 1:
            filled[hole] = around[0]
    return filled


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 4, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_holes_are_filled_as_scipy_says(seed, most, dtype):
    rng = np.random.default_rng(seed)
    # Large areas of a few ids, with background scattered over them.
    ids = rng.integers(1, 4, (2, 5, 4)).repeat(9, 1).repeat(11, 2)
    volume = (ids * (rng.random(ids.shape) < 0.75)).astype(dtype)
    before = volume.copy()
    filled = fill_holes(volume, most)
    assert (volume == before).all(), "the argument stays as it is"
    assert filled.dtype == dtype
    for plane, expected in zip(filled, volume, strict=True):
        np.testing.assert_array_equal(plane, slowly_filled(expected, most))
    assert (filled > 0).sum() > (volume > 0).sum()


def test_which_holes_are_filled():
    plane = np.zeros((20, 40), np.int64)
    plane[2:10, 2:10] = 7
    plane[4:6, 4:6] = 0  # four pixels
    plane[12:19, 2:10] = 1 << 40
    plane[14:17, 4:7] = 0
    plane[15, 5] = 3  # another object in the hole
    plane[2:10, 20:25], plane[2:10, 25:30] = 4, 5
    plane[5, 24:26] = 0  # between two objects
    plane[12:20, 20:30] = 6
    plane[15:20, 24] = 0  # open to the border
    filled = fill_holes(plane[None], 4)[0]
    assert (filled[4:6, 4:6] == 7).all()
    filled[4:6, 4:6] = 0
    np.testing.assert_array_equal(filled, plane)
    assert fill_holes(plane[None], 3)[0].tolist() == plane.tolist(), "four are too many"


def test_long_holes_stay_where_they_are_too_long():
    plane = np.ones((20, 30), np.uint8)
    plane[3:5, 3:15] = 0
    plane[8:15, 20:22] = 0
    empty = [
        [bool((filled == 0).any()) for filled in (found[3:5], found[8:15])]
        for longest in (None, (7, 12), (6, 12), (7, 11), (0, 0))
        for found in [fill_holes(plane[None], 99, longest)[0]]
    ]
    assert empty == [[False, False], [False, False], [False, True], [True, False], [True, True]]


def test_without_holes_nothing_is_copied():
    for labels in (np.zeros((2, 5, 6), np.uint8), np.ones((1, 1, 1), np.uint32)):
        assert fill_holes(labels, 10) is labels


def test_a_view_is_filled_too():
    labels = np.zeros((40, 30, 2), np.uint16)
    labels[5:20, 5:20, 1] = 2
    labels[9, 9, 1] = 0
    view = labels.transpose(2, 0, 1)
    assert fill_holes(view, 1)[1, 9, 9] == 2


def chosen(labels, planes=True, **values):
    """Old ids of what is kept, in the order of the new ids, which run from 1 without gaps."""
    plan = Plan(labels.shape, labels.shape, (0, 0, 0))
    tile = tile_labels(Segmentation(labels), plan, 0)
    count = len(tile.objects)
    whole = Stitched(np.arange(1, count + 1, dtype=np.uint32), np.array([0, count]), tile.objects)
    how = Refinement(**values)
    found = refine(whole, labels, plan, how, planes=planes, pause=lambda: None)
    new = found.table(0)[tile.core]
    kept = [int(np.unique(tile.core[new == i + 1]).item()) for i in range(len(found.objects))]
    assert set(np.unique(new)) - {0} == set(range(1, len(kept) + 1))
    sizes = np.bincount(new.ravel(), minlength=len(kept) + 1)[1:]
    assert found.objects.area.tolist() == sizes.tolist()
    return kept


@pytest.fixture
def plane():
    """Objects 1 to 5: of 100 pixels at the border, 1, 2 and 3 pixels from it, and of 64 inside."""
    labels = np.zeros((1, 100, 100), np.uint16)
    labels[0, 0:10, 40:50] = 1
    labels[0, 40:50, 1:11] = 2
    labels[0, 88:98, 40:50] = 3
    labels[0, 40:50, 87:97] = 4
    labels[0, 40:48, 40:48] = 5
    return labels


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"min_area": 64}, [1, 2, 3, 4, 5]),
        ({"min_area": 65}, [1, 2, 3, 4]),
        ({"min_area": 101}, []),
        ({"border_margin": 1}, [2, 3, 4, 5]),
        ({"border_margin": 2}, [3, 4, 5]),
        ({"border_margin": 3}, [4, 5]),
        ({"border_margin": 4}, [5]),
        ({"border_margin": 1 << 40}, []),
        ({"keep_largest": 5}, [1, 2, 3, 4, 5]),
        ({"keep_largest": 4}, [1, 2, 3, 4]),
        ({"keep_largest": 2}, [1, 2]),  # of four as large the first from above
        ({"border_margin": 2, "keep_largest": 1}, [4]),
        ({"border_margin": 3, "keep_largest": 2, "min_area": 65}, [4]),
    ],
)
def test_what_is_left_out(plane, values, kept):
    assert chosen(plane, **values) == kept


def test_the_first_of_two_as_large_does_not_depend_on_their_ids(plane):
    for order in ([0, 4, 3, 2, 1, 5], [0, 2, 5, 1, 3, 4]):
        swapped = np.array(order)[plane]
        assert chosen(swapped, keep_largest=1) == [order[1]]


def test_the_largest_of_each_plane_or_of_the_volume():
    labels = np.zeros((3, 20, 40), np.uint16)
    for z, (first, second) in enumerate([(3, 4), (9, 5), (6, 6)]):
        labels[z, 2:5, 2 : 2 + first] = 2 * z + 1
        labels[z, 10:13, 20 : 20 + second] = 2 * z + 2
    assert chosen(labels, keep_largest=1) == [2, 3, 5]
    assert chosen(labels, keep_largest=2) == [1, 2, 3, 4, 5, 6]
    assert chosen(labels, planes=False, keep_largest=2) == [3, 5]


def test_the_border_along_z_does_not_count():
    labels = np.zeros((2, 20, 20), np.uint8)
    labels[0, 8:12, 8:12] = 1
    labels[1, 0:4, 8:12] = 2
    assert chosen(labels, planes=False, border_margin=5) == [1]

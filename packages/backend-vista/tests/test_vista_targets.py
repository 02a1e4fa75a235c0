"""What the network should say about a patch."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_vista.targets import contacts, core, depth, edges, relative, voxel_weights


def boxes() -> np.ndarray:
    labels = np.zeros((9, 16, 16), np.uint32)
    labels[1:8, 1:8, 2:9] = 5
    labels[1:8, 8:15, 2:9] = (2 << 28) | 5
    return labels


def test_edges_are_where_something_else_is_near() -> None:
    labels = boxes()
    expected = np.zeros(labels.shape, bool)
    padded = np.pad(labels, 1, mode="edge")
    for z, y, x in np.ndindex(labels.shape):
        expected[z, y, x] = len(np.unique(padded[z : z + 3, y : y + 3, x : x + 3])) > 1
    np.testing.assert_array_equal(edges(labels), expected & (labels > 0))
    np.testing.assert_array_equal(edges(labels[4]), edges(labels[3:6])[1])


def test_ids_beyond_float32_stay_apart() -> None:
    labels = np.full((4, 4), 1 << 30, np.uint32)
    labels[:, 2:] += 1
    assert edges(labels)[:, 1:3].all() and not edges(labels)[:, 0].any()
    assert contacts(labels).all()


def test_depth_is_the_distance_to_something_else() -> None:
    deep = depth(boxes())
    assert deep[4, 4, 5] == 4 and deep[4, 7, 5] == 1 and deep[0].max() == 0
    assert depth(boxes()[4])[4, 5] == 4
    assert np.isinf(depth(np.ones((3, 4, 4), np.uint32))).all()


def test_depth_counts_in_voxels_of_the_finest_axis() -> None:
    labels = np.zeros((5, 40, 40), np.uint32)
    labels[1:4, 4:36, 4:36] = 1
    assert depth(labels, (10.0, 1.0, 1.0))[2, 20, 20] == pytest.approx(17, abs=1.1)
    assert depth(labels, (0.03, 0.006, 0.006))[2, 20, 20] == pytest.approx(10)


def test_the_patchs_border_is_no_edge() -> None:
    labels = np.zeros((8, 8), np.uint32)
    labels[:, :4] = 1
    assert depth(labels)[4, 0] == 4 and not edges(labels)[:, 0].any()


def test_the_distance_map_rises_to_one_halfway_in() -> None:
    labels = boxes()[4]
    deep = depth(labels)
    share = relative(labels, deep)
    assert share.max() == 1 and share.min() == 0
    risen = core(deep, share, 0)
    assert risen[4, 5] == 1 and risen[3, 5] == 1 and risen[1, 5] == 0.5


def test_with_a_reach_thin_arms_count_like_thick_ones() -> None:
    labels = np.zeros((40, 60), np.uint32)
    labels[4:36, 4:36] = 1
    labels[18:23, 36:58] = 1
    deep = depth(labels)
    risen = core(deep, relative(labels, deep), 3)
    assert risen[20, 50] == 1 and core(deep, relative(labels, deep), 0)[20, 50] < 0.5


def test_contacts_lie_between_objects_only() -> None:
    found = contacts(boxes()[4])
    assert found[7, 5] and found[9, 5] and not found[3, 5] and not found[1, 12]


def test_weights_grow_at_edges_and_in_the_middle() -> None:
    labels = boxes()
    deep = depth(labels)
    weights = voxel_weights(labels, relative(labels, deep), 10, 5)
    assert weights[4, 4, 5] == 5 and weights[0, 0, 0] == 1
    assert weights[4, 7, 5] == 10 * (1 + 4 / 4)
    assert voxel_weights(labels, relative(labels, deep), 1, 1).max() == 1

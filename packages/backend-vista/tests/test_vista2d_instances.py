"""Targets, and the way back from maps to cells."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.predict_options import Vista2dPredictOptions
from cellseg_vista.targets import contacts, depth, edges, pixel_weights


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.indices(shape)
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def two_cells() -> np.ndarray:
    labels = np.zeros((40, 60), np.uint32)
    labels[disc(labels.shape, (20, 20), 11)] = 3
    labels[disc(labels.shape, (20, 40), 11) & (labels == 0)] = 2**31
    return labels


def perfect(labels: np.ndarray, dimensions: int = 4) -> PixelMaps:
    """What a network without faults would say."""
    ids = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    places = np.random.default_rng(0).normal(size=(ids.max() + 1, dimensions)) * 5
    return PixelMaps(
        np.where(labels > 0, 0.9, 0.1).astype(np.float32),
        depth(labels),
        np.moveaxis(places[ids], -1, 0).astype(np.float32),
    )


def test_edges_lie_inside_objects_and_tell_touching_ones_apart() -> None:
    labels = two_cells()
    found = edges(labels)
    assert not (found & (labels == 0)).any()
    for y, x in np.argwhere(labels > 0):
        around = labels[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert found[y, x] == (np.unique(around).size > 1)


def test_the_rim_of_a_patch_is_no_edge() -> None:
    assert not edges(np.ones((8, 8), np.uint8)).any()


def test_contacts_lie_where_two_objects_are_near() -> None:
    labels = two_cells()
    found = contacts(labels)
    for y, x in np.ndindex(labels.shape):
        around = labels[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        assert found[y, x] == (len(set(np.unique(around)) - {0}) > 1)
    assert not contacts(np.zeros((5, 7), int)).any()


def test_depth_is_one_in_the_middle_and_zero_outside() -> None:
    labels = two_cells()
    depths = depth(labels)
    assert depths.dtype == np.float32
    assert (depths[labels == 0] == 0).all() and (depths[labels > 0] > 0).all()
    for label in (3, 2**31):
        assert depths[labels == label].max() == 1
    middle = depths[20, 10:51]
    assert middle[20 - 10] == 1 and middle[30 - 10] < 0.3  # low where the two touch


@pytest.mark.parametrize(
    "labels", [np.zeros((5, 7), int), np.ones((5, 7), int), np.eye(6, dtype=int)]
)
def test_degenerate_labels_have_targets(labels: np.ndarray) -> None:
    depths = depth(labels)
    weights = pixel_weights(labels, depths, 10, 10)
    assert np.isfinite(depths).all() and (weights >= 1).all()
    assert (depths > 0).sum() == (labels > 0).sum()


def test_perfect_maps_give_the_cells_back() -> None:
    labels = two_cells()
    found, scores = find_instances(perfect(labels), Vista2dPredictOptions())
    assert found.max() == 2
    for label in (3, 2**31):  # where two touch, the border may lie a pixel off
        one = labels == label
        other = found == np.bincount(found[one]).argmax()
        assert (one & other).sum() / (one | other).sum() > 0.95
    assert scores == {1: pytest.approx(0.9), 2: pytest.approx(0.9)}


def test_pieces_with_one_embedding_are_joined_and_others_are_not() -> None:
    labels = two_cells()
    maps = perfect(labels)
    alike = PixelMaps(maps.foreground, maps.distance, np.zeros_like(maps.embedding))
    assert find_instances(alike, Vista2dPredictOptions())[0].max() == 1
    assert find_instances(alike, Vista2dPredictOptions(bandwidth=0))[0].max() == 2
    apart = labels.copy()
    apart[:, 30] = 0  # no longer neighbours
    lonely = perfect(apart)
    far = PixelMaps(lonely.foreground, lonely.distance, np.zeros_like(lonely.embedding))
    assert find_instances(far, Vista2dPredictOptions())[0].max() == 2


def test_every_foreground_pixel_belongs_to_a_cell() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        maps = PixelMaps(
            rng.random((33, 47), np.float32),
            rng.random((33, 47), np.float32),
            rng.normal(size=(3, 33, 47)).astype(np.float32),
        )
        options = Vista2dPredictOptions(min_size=0, bandwidth=float(rng.choice([0, 0.5, 2])))
        labels, scores = find_instances(maps, options)
        assert ((labels > 0) == (maps.foreground > 0.5)).all()
        assert set(np.unique(labels)) - {0} == set(scores) == set(range(1, labels.max() + 1))


def test_small_cells_are_dropped() -> None:
    labels = two_cells()
    labels[1:4, 1:4] = 9
    assert find_instances(perfect(labels), Vista2dPredictOptions(min_size=9))[0].max() == 3
    assert find_instances(perfect(labels), Vista2dPredictOptions(min_size=10))[0].max() == 2


def test_nothing_is_found_in_nothing() -> None:
    labels, scores = find_instances(perfect(np.zeros((20, 30), np.uint32)), Vista2dPredictOptions())
    assert labels.shape == (20, 30) and not labels.any() and scores == {}

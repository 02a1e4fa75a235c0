"""From maps to cells, in planes, with the options that vista2d has by default."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.predict_options import Vista2dPredictOptions
from cellseg_vista.targets import depth


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
    inside = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    deep = depth(labels, (1.0,) * labels.ndim)
    return PixelMaps(
        np.stack([1 - inside, inside]),
        (deep / max(deep.max(), 1)).astype(np.float32),
        np.moveaxis(places[ids], -1, 0).astype(np.float32),
    )


def alike(maps: PixelMaps) -> PixelMaps:
    """The same without any difference in the embedding."""
    return PixelMaps(maps.probabilities, maps.distance, np.zeros_like(maps.embedding))


def test_perfect_maps_give_the_cells_back() -> None:
    labels = two_cells()
    found = find_instances(perfect(labels), Vista2dPredictOptions())
    assert found.labels.max() == 2 and found.labels.dtype == np.int32
    for label in (3, 2**31):  # where two touch, the border may lie a pixel off
        one = labels == label
        other = found.labels == np.bincount(found.labels[one]).argmax()
        assert (one & other).sum() / (one | other).sum() > 0.95
    assert found.scores == {1: pytest.approx(0.9), 2: pytest.approx(0.9)}
    assert found.classes == {1: 1, 2: 1}


def test_pieces_with_one_embedding_are_joined_and_others_are_not() -> None:
    maps = perfect(two_cells())
    assert find_instances(maps, Vista2dPredictOptions()).labels.max() == 2
    assert find_instances(alike(maps), Vista2dPredictOptions()).labels.max() == 1
    assert find_instances(alike(maps), Vista2dPredictOptions(bandwidth=0)).labels.max() == 2
    apart = two_cells()
    apart[:, 30] = 0  # no longer neighbours
    assert find_instances(alike(perfect(apart)), Vista2dPredictOptions()).labels.max() == 2


def test_every_foreground_pixel_belongs_to_a_cell() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        inside = rng.random((33, 47), np.float32)
        maps = PixelMaps(
            np.stack([1 - inside, inside]),
            rng.random((33, 47), np.float32),
            rng.normal(size=(3, 33, 47)).astype(np.float32),
        )
        options = Vista2dPredictOptions(min_size=0, bandwidth=float(rng.choice([0, 0.5, 2])))
        found = find_instances(maps, options)
        assert ((found.labels > 0) == (inside > 0.5)).all()
        ids = set(np.unique(found.labels)) - {0}
        assert ids == set(found.scores) == set(range(1, found.labels.max() + 1))


def test_small_cells_are_dropped() -> None:
    labels = two_cells()
    labels[1:4, 1:4] = 9
    maps = perfect(labels)
    assert find_instances(maps, Vista2dPredictOptions(min_size=9)).labels.max() == 3
    assert find_instances(maps, Vista2dPredictOptions(min_size=10)).labels.max() == 2


def test_nothing_is_found_in_nothing() -> None:
    maps = perfect(np.zeros((20, 30), np.uint32))
    found = find_instances(maps, Vista2dPredictOptions())
    assert found.labels.shape == (20, 30) and not found.labels.any()
    assert found.scores == found.classes == {}

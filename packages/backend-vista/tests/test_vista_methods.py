"""All methods of making objects, in planes and volumes, with noise, classes and odd shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from cellseg.metrics import overlaps, score, tally
from cellseg_vista.calibrate import search
from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.instances.graph import completed, joined
from cellseg_vista.instances.mutex import offsets
from cellseg_vista.predict_options import Vista2dPredictOptions, Vista3dPredictOptions

METHODS: list[dict[str, Any]] = [
    {"method": "watershed"},
    {"method": "watershed", "flood": "embedding"},
    {"method": "agglomerate"},
    {"method": "cluster", "bandwidth": 1.0},
    {"method": "mutex", "bandwidth": 1.5},
]
SHAPES = [(72, 80), (24, 48, 48)]


def neurites(shape: tuple[int, ...], seed: int = 0, pitch: int = 16) -> np.ndarray:
    """Touching objects that run along the first axis; the foreground fills the image."""
    rng = np.random.default_rng(seed)
    plane = shape[-2:]
    count = [n // pitch for n in plane]
    points = (np.stack(np.mgrid[: count[0], : count[1]], -1).reshape(-1, 2) + 0.5) * pitch
    points += rng.uniform(-3, 3, points.shape)
    grid = np.stack(np.mgrid[: plane[0], : plane[1]], -1)
    slices = []
    for z in range(shape[0] if len(shape) == 3 else 1):
        moved = points + 3 * np.sin(z / 9 + points[::-1])
        slices.append(((grid[:, :, None] - moved) ** 2).sum(-1).argmin(-1) + 1)
    return np.stack(slices).reshape(shape).astype(np.int32)


def seen(labels: np.ndarray, noise: float, seed: int = 1) -> PixelMaps:
    """What a network with some faults would say: borders are blurred, all maps are noisy."""
    import edt

    rng = np.random.default_rng(seed)
    places = rng.normal(size=(int(labels.max()) + 1, 8)) * 1.5
    embedding = np.moveaxis(places[labels], -1, 0)
    embedding = np.stack([gaussian_filter(plane, 0.8) for plane in embedding])
    embedding += noise * rng.normal(size=embedding.shape)
    depth = np.minimum(edt.edt(labels.astype(np.uint32)) / 4, 1) * (labels > 0)
    depth = np.clip(depth + 0.1 * gaussian_filter(rng.normal(size=labels.shape), 1), 0, 1)
    inside = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    return PixelMaps(
        np.stack([1 - inside, inside]), depth.astype(np.float32), embedding.astype(np.float32)
    )


def options_for(labels: np.ndarray, **values: Any) -> Vista2dPredictOptions | Vista3dPredictOptions:
    kind = Vista2dPredictOptions if labels.ndim == 2 else Vista3dPredictOptions
    return kind(**values)


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """Adapted Rand error."""
    return score([tally(overlaps(found, truth))])["are"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("values", METHODS, ids=str)
def test_touching_objects_are_told_apart_in_noise(
    values: dict[str, Any], shape: tuple[int, ...]
) -> None:
    truth = neurites(shape)
    found = find_instances(seen(truth, 0.15), options_for(truth, **values))
    assert error(found.labels, truth) < 0.12
    assert abs(int(found.labels.max()) - len(np.unique(truth))) <= 2


@pytest.mark.parametrize("values", METHODS[3:], ids=str)
def test_embeddings_part_what_the_distance_map_runs_together(values: dict[str, Any]) -> None:
    truth = neurites((24, 48, 48))
    maps = seen(truth, 0.1)
    blind = PixelMaps(maps.probabilities, np.ones_like(maps.distance), maps.embedding)
    found = find_instances(blind, Vista3dPredictOptions(**values))
    assert error(found.labels, truth) < 0.15


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 7), (1, 20, 20), (5, 3, 40), (9, 13, 17)])
@pytest.mark.parametrize("values", METHODS, ids=str)
def test_all_of_the_foreground_is_in_objects_of_one_class(
    values: dict[str, Any], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    raw = rng.random((4, *shape)).astype(np.float32) ** 3
    maps = PixelMaps(
        raw / raw.sum(0), rng.random(shape, np.float32), rng.normal(size=(3, *shape)).astype("f4")
    )
    options = Vista3dPredictOptions(min_size=0, **values)
    found = find_instances(maps, options)
    foreground = maps.probabilities[1:].sum(0) > 0.5
    np.testing.assert_array_equal(found.labels > 0, foreground)
    kinds = maps.probabilities[1:].argmax(0) + 1
    of_label = np.array([0, *(found.classes[i] for i in range(1, found.labels.max() + 1))])
    np.testing.assert_array_equal(of_label[found.labels], np.where(foreground, kinds, 0))
    assert set(found.scores) == set(found.classes) == set(np.unique(found.labels)) - {0}
    again = find_instances(maps, options)
    np.testing.assert_array_equal(again.labels, found.labels)
    assert again.scores == found.scores


def test_one_class_can_be_chosen() -> None:
    truth = neurites((24, 48, 48))
    maps = seen(truth, 0.1)
    right = np.arange(48) >= 24
    inside = maps.probabilities[1]
    maps = PixelMaps(
        np.stack([maps.probabilities[0], inside * ~right, inside * right]),
        maps.distance,
        maps.embedding,
    )
    both = find_instances(maps, Vista3dPredictOptions())
    one = find_instances(maps, Vista3dPredictOptions(class_id=2))
    assert set(both.classes.values()) == {1, 2} and set(one.classes.values()) == {2}
    np.testing.assert_array_equal(one.labels > 0, (both.labels > 0) & right)


def test_what_shares_an_embedding_from_afar_is_not_one_object() -> None:
    truth = np.zeros((12, 24, 60), np.int32)
    truth[:, 4:20, 4:20], truth[:, 4:20, 40:56] = 1, 2
    maps = seen(truth, 0.05)
    same = np.where(truth > 0, 1, 0) * np.ones((4, 1, 1, 1), np.float32)
    for values in METHODS:
        found = find_instances(
            PixelMaps(maps.probabilities, maps.distance, same.astype(np.float32)),
            Vista3dPredictOptions(**values),
        )
        assert found.labels.max() == 2, values


def test_an_object_across_blocks_of_the_clustering_is_one() -> None:
    truth = np.zeros((8, 40, 150), np.int32)
    truth[:, 8:20], truth[:, 20:32] = 1, 2
    found = find_instances(seen(truth, 0.1), Vista3dPredictOptions(method="cluster", bandwidth=1))
    assert found.labels.max() == 2 and error(found.labels, truth) < 0.05


def test_left_over_voxels_go_to_the_touching_piece_nearest_in_the_embedding() -> None:
    pieces = np.array([[1, 1, 0, 0, 0, 2, 2, 0, 3]], np.int32)
    embedding = np.array([[[0.0, 0, 1, 2, 6, 9, 9, 9, 9]]], np.float32)
    mask = np.ones(pieces.shape, bool)
    found = completed(pieces, mask, embedding, 2)
    np.testing.assert_array_equal(found, [[1, 1, 1, 1, 2, 2, 2, 2, 2]])
    alone = completed(np.zeros_like(pieces), pieces > 0, embedding, 2)
    np.testing.assert_array_equal(alone > 0, pieces > 0)
    assert len(np.unique(alone)) == 4


def test_joining_is_over_chains_of_near_pieces() -> None:
    pieces = np.array([[1, 2, 3, 0, 4]], np.int32)
    embedding = np.array([[[0.0, 1, 2, 0, 2]]], np.float32)
    found = joined(pieces, embedding, 1.5)
    assert len(set(found[0, :3])) == 1 and found[0, 3] == 0 and found[0, 4] not in found[0, :3]
    np.testing.assert_array_equal(joined(pieces, embedding, 0.5) > 0, pieces > 0)
    assert len(np.unique(joined(pieces, embedding, 0.5))) == 5


def test_long_edges_reach_as_far_along_each_axis() -> None:
    short, long = offsets((30.0, 10.0, 10.0))
    assert short == [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    assert (-3, 0, 0) in long and (0, -9, 0) in long
    assert not set(long) & set(short) and len(set(long)) == len(long)
    assert all(abs(z) <= 3 and abs(y) <= 9 and abs(x) <= 9 for z, y, x in long)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "mutex", "seed_threshold": 0.3},
        {"method": "mutex", "flood": "embedding"},
        {"method": "cluster", "flood": "embedding"},
        {"method": "cluster", "bandwidth": 0},
        {"aggregation": "max"},
        {"patch_size": (4, 64, 64)},
        {"class_id": 0},
    ],
)
def test_options_that_cannot_act_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Vista3dPredictOptions(**values)


def test_planes_take_windows_of_planes() -> None:
    assert Vista2dPredictOptions(patch_size=(1, 32, 48)).patch_size == (1, 32, 48)
    with pytest.raises(ValidationError, match="1 Y X"):
        Vista2dPredictOptions(patch_size=(8, 32, 32))


def test_the_search_finds_a_method_and_thresholds_that_work() -> None:
    truth = neurites((16, 32, 32))
    maps = seen(truth, 0.3)
    blind = PixelMaps(maps.probabilities, np.ones_like(maps.distance), maps.embedding)
    best = search([(blind, truth.astype(np.uint32))], Vista3dPredictOptions, (1.0,) * 3).options
    found = find_instances(blind, best).labels
    default = find_instances(blind, Vista3dPredictOptions()).labels
    assert error(found, truth) < 0.2 < error(default, truth)


def test_the_search_leaves_out_what_is_not_known() -> None:
    truth = neurites((16, 32, 32)).astype(np.uint32)
    maps = seen(truth.astype(np.int32), 0.1)
    hidden = truth.copy()
    hidden[:, :, 16:] = 0xFFFFFFFF
    spoilt = PixelMaps(maps.probabilities, maps.distance.copy(), maps.embedding.copy())
    spoilt.embedding[:, :, :, 20:] = 0
    pairs = [(maps, hidden)], [(spoilt, hidden)]
    clean, dirty = (search(pair, Vista3dPredictOptions, (1.0,) * 3).options for pair in pairs)
    assert clean == dirty

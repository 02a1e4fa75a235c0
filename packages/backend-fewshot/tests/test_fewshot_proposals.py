"""Points to ask for: grids, peaks, blobs, and their union."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cellseg_fewshot.proposals import blob_points, grid_points, merge_points, peak_points


def _discs(size: tuple[int, int], discs: list[tuple[int, int, int]]) -> NDArray[np.float32]:
    """1 in discs, each ``(y, x, radius)`` around the middle of a pixel, and 0 elsewhere."""
    y, x = np.indices(size)
    inside = [(y - cy) ** 2 + (x - cx) ** 2 <= r * r for cy, cx, r in discs]
    return np.any(inside, axis=0).astype(np.float32)


def _nearest(points: NDArray[np.float32], place: tuple[float, float]) -> float:
    return float(np.hypot(*(points - np.asarray(place)).T).min())


def test_a_grid_has_its_points_in_the_middle_of_its_cells() -> None:
    points = grid_points((6, 8), 2)
    assert points.tolist() == [[1.5, 2.0], [1.5, 6.0], [4.5, 2.0], [4.5, 6.0]]
    assert points.dtype == np.float32


def test_a_grid_has_no_upper_limit_and_may_be_empty() -> None:
    assert len(np.unique(grid_points((512, 512), 256), axis=0)) == 256**2
    assert grid_points((10, 10), 0).shape == (0, 2)
    with pytest.raises(ValueError, match="-1 points per side"):
        grid_points((10, 10), -1)


def test_peaks_are_the_middles_of_the_highest_cells_by_falling_height() -> None:
    similarity = np.zeros((10, 12), np.float32)
    similarity[2, 3], similarity[7, 9] = 0.5, 0.9
    points = peak_points(similarity, (4.0, 5.0), 8.0, (40, 60))
    assert points.tolist() == [[30.0, 47.5], [10.0, 17.5]]


def test_of_two_near_peaks_the_higher_one_stays() -> None:
    similarity = np.zeros((20, 20), np.float32)
    similarity[5, 5], similarity[5, 8] = 0.5, 0.9
    near = peak_points(similarity, (2.0, 2.0), 10.0, (40, 40))
    far = peak_points(similarity, (2.0, 2.0), 4.0, (40, 40))
    assert near.tolist() == [[11.0, 17.0]]
    assert len(far) == 2


def test_low_peaks_are_left_out_and_flat_maps_have_none() -> None:
    similarity = np.zeros((10, 10), np.float32)
    similarity[2, 2], similarity[7, 7] = 0.2, 0.9
    assert len(peak_points(similarity, (1.0, 1.0), 2.0, (10, 10), 0.5)) == 1
    assert peak_points(np.ones((10, 10), np.float32), (1.0, 1.0), 2.0, (10, 10)).shape == (0, 2)
    assert peak_points(np.zeros((0, 0), np.float32), (1.0, 1.0), 2.0, (1, 1)).shape == (0, 2)


def test_a_peak_in_a_cell_beyond_the_plane_is_moved_inside() -> None:
    similarity = np.zeros((3, 3), np.float32)
    similarity[2, 2] = 1.0
    points = peak_points(similarity, (16.0, 16.0), 16.0, (36, 33))
    assert points.tolist() == [[35.5, 32.5]]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("radius", [4, 9, 25])
def test_blobs_are_found_bright_and_dark_at_every_size(sign: int, radius: int) -> None:
    places = [(40, 50, radius), (110, 120, radius)]
    plane = 0.5 + 0.3 * sign * _discs((160, 170), places)
    points = blob_points(plane[None].astype(np.float32), [2.0 * radius])
    for y, x, _ in places:
        assert _nearest(points, (y + 0.5, x + 0.5)) <= max(1.0, radius / 4)
    first = {tuple(np.round(one / 20).astype(int)) for one in points[:2]}
    assert first == {(2, 3), (6, 6)}  # the most marked ones


def test_scales_between_the_smallest_and_the_largest_example_are_covered() -> None:
    discs = [(30, 30, 5), (30, 90, 8), (100, 40, 12), (100, 110, 20)]
    plane = _discs((150, 150), discs)[None]
    points = blob_points(plane, [10.0, 40.0])
    for y, x, radius in discs:
        assert _nearest(points, (y + 0.5, x + 0.5)) <= max(1.0, radius / 4)


def test_blobs_of_each_channel_are_found() -> None:
    plane = np.stack([_discs((80, 80), [(20, 20, 6)]), _discs((80, 80), [(60, 55, 6)])])
    points = blob_points(plane, [12.0])
    assert _nearest(points, (20.5, 20.5)) < 1
    assert _nearest(points, (60.5, 55.5)) < 1


def test_blobs_do_not_depend_on_the_order_of_the_examples_or_on_contrast() -> None:
    rng = np.random.default_rng(0)
    plane = (_discs((90, 100), [(20, 30, 6), (60, 70, 10)]) + rng.normal(0, 0.05, (90, 100)))[None]
    plane = plane.astype(np.float32)
    points = blob_points(plane, [12.0, 20.0, 15.0])
    assert np.array_equal(points, blob_points(plane, [20.0, 15.0, 12.0]))
    assert np.allclose(points, blob_points(plane * 0.25 + 3, [12.0, 20.0, 15.0]))


def test_weak_blobs_are_left_out() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(0, 0.1, (1, 120, 120)).astype(np.float32)
    plane[0] += _discs((120, 120), [(60, 60, 8)])
    few, all_ = (blob_points(plane, [16.0], noise) for noise in (6.0, 0.0))
    assert len(few) < len(all_) / 4
    assert _nearest(few, (60.5, 60.5)) < 2


def test_nothing_is_no_blob() -> None:
    assert blob_points(np.ones((1, 50, 50), np.float32), [10.0]).shape == (0, 2)
    assert blob_points(np.ones((1, 50, 50), np.float32), []).shape == (0, 2)
    with pytest.raises(ValueError, match="diameter above 0"):
        blob_points(np.ones((1, 50, 50), np.float32), [0.0])


def test_a_plane_smaller_than_the_examples_is_no_error() -> None:
    plane = _discs((9, 7), [(4, 3, 2)])[None]
    points = blob_points(plane, [300.0])
    assert ((points >= 0) & (points <= (9, 7))).all()


def test_merged_points_are_apart_and_cover_all() -> None:
    points = np.random.default_rng(0).uniform(0, 60, (500, 2)).astype(np.float32)
    kept = merge_points(points, 5.0)
    between = np.hypot(*(kept[:, None] - kept[None]).transpose(2, 0, 1))
    assert between[~np.eye(len(kept), dtype=bool)].min() >= 5.0
    assert max(_nearest(kept, tuple(one)) for one in points) < 5.0
    assert {tuple(one) for one in kept.tolist()} <= {tuple(one) for one in points.tolist()}


def test_merging_does_not_depend_on_the_order_of_the_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 60, (300, 2)).astype(np.float32)
    again = merge_points(rng.permutation(points), 4.0)
    assert np.array_equal(merge_points(points, 4.0), again)


def test_merging_at_no_distance_leaves_repetitions_out() -> None:
    points = np.array([[3, 1], [1, 2], [3, 1], [1, 2.5]], np.float32)
    assert merge_points(points, 0.0).tolist() == [[1, 2], [1, 2.5], [3, 1]]
    assert merge_points(points, 0.5).tolist() == [[1, 2], [1, 2.5], [3, 1]]  # just as far apart
    assert merge_points(np.zeros((0, 2), np.float32), 3.0).shape == (0, 2)

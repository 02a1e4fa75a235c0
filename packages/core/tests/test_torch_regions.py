"""Boxes and random pixels of masks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cellseg.torch.regions import boxes_of, random_pixels  # noqa: E402


def test_pixels_are_drawn_from_all_of_a_mask() -> None:
    masks = torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, 2, 1:4], masks[1] = True, True
    for chance, x in ((0.0, 1), (0.5, 2), (0.999, 3)):
        points, there = random_pixels(masks, torch.full((3,), chance, dtype=torch.float64))
        assert points[0].tolist() == [x, 2] and there.tolist() == [True, True, False]
    assert points[1].tolist() == [5, 4]
    assert boxes_of(masks[:2]).tolist() == [[1, 2, 4, 3], [0, 0, 6, 5]]


def test_each_pixel_is_as_likely() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 1] = masks[0, 3, 0] = masks[0, 3, 3] = masks[0, 2, 2] = True
    chances = torch.linspace(0, 0.999, 400, dtype=torch.float64)
    points, there = random_pixels(masks.expand(400, -1, -1), chances)
    assert there.all()
    found, counts = points.unique(dim=0, return_counts=True)
    assert found.tolist() == [[0, 3], [1, 0], [2, 2], [3, 3]]
    assert counts.min() >= 98

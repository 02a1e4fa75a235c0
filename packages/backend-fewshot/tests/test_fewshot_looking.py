"""Where candidates are asked for, and what is known of them beside the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from scipy import ndimage  # noqa: E402

from cellseg.torch.mask_pooling import pool_masks  # noqa: E402
from cellseg.torch.masks import FoundMask  # noqa: E402
from cellseg_fewshot.candidates import Asking, find_candidates  # noqa: E402
from cellseg_fewshot.looking import Role, look  # noqa: E402
from cellseg_fewshot.views import FeatureMap, Shown  # noqa: E402


class Pixels:
    """A view whose features are the pixels, and that answers nothing."""

    def __init__(self, plane: np.ndarray) -> None:
        self.size = (plane.shape[1], plane.shape[2])
        self.features = FeatureMap(torch.from_numpy(plane), (1.0, 1.0))
        self.asked = 0

    def describe(self, masks: Sequence[FoundMask]) -> Any:
        return pool_masks(masks, self.features.values, self.features.step)

    def answer(self, points: np.ndarray) -> list[FoundMask]:
        self.asked += len(points)
        return []


def test_what_is_seen_is_told_apart_by_the_examples_that_it_touches() -> None:
    def mask(y: int, x: int, height: int, width: int) -> FoundMask:
        return FoundMask(np.ones((height, width), bool), (y, x), 1.0)

    plane = np.random.default_rng(0).random((1, 50, 60)).astype(np.float32)
    shown = [Shown(mask(5, 5, 10, 10), 1), Shown(mask(5, 17, 10, 10), 0)]
    known = {
        (6, 5, 10, 10): (Role.FOUND, 0),
        (5, 18, 10, 10): (Role.AVOIDED, 1),
        (7, 7, 4, 4): (Role.WRONG, 0),
        (0, 0, 40, 16): (Role.WRONG, 0),
        (14, 14, 9, 9): (Role.UNKNOWN, -1),  # a pixel of it is in an example
        (15, 5, 10, 10): (Role.UNKNOWN, -1),  # beside one
        (30, 30, 10, 10): (Role.UNKNOWN, -1),
    }
    seen = look(Pixels(plane), shown, [mask(*box) for box in known], 0)
    part = slice(2, 2 + len(known))
    assert list(zip(seen.roles[part], seen.examples[part], strict=True)) == list(known.values())
    np.testing.assert_allclose(seen.overlaps[[2, 5]], [90 / 110, 100 / 640])
    # Between 1.5 and 4.5 pixels from one example, where the other is not.
    for row, one, other in ((9, 0, 1), (10, 1, 0)):
        assert (seen.roles[row], seen.examples[row]) == (Role.AROUND, one)
        inside, taken = (np.zeros((50, 60), bool) for _ in range(2))
        for full, number in ((inside, one), (taken, other)):
            y, x = shown[number].mask.corner
            full[y : y + 10, x : x + 10] = True
        distance = ndimage.distance_transform_edt(~inside)
        ring = (distance > 1.5) & (distance <= 0.8 * np.sqrt(100 / np.pi)) & ~taken
        assert np.exp(seen.measured[row, 0]) == pytest.approx(ring.sum())
        assert seen.pooled[row, 0] == pytest.approx(plane[0][ring].mean(), rel=1e-4)


def test_a_grid_that_is_asked_for_is_not_thinned_out() -> None:
    plane = np.random.default_rng(0).random((1, 200, 220)).astype(np.float32)
    asking = Asking(
        points_per_side=50, peaks=False, blobs=False, areas=(1, 0), diameters=(80.0, 80.0, 80.0)
    )
    view, other = Pixels(plane), Pixels(plane)
    find_candidates(view, plane, asking)
    find_candidates(other, plane, replace(asking, points_per_side=None))
    assert view.asked == 50**2 and other.asked == 16**2

"""Validation patches: read when asked for, and spread over the images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from cellseg.data import Tiling
from cellseg.patches import PatchGrid
from cellseg.testing import blobs
from cellseg.torch.patches import ValidationPatches
from cellseg_vista.calibrate import pieces
from cellseg_vista.options import Vista2dOptions
from cellseg_vista.patches import Targets


class Unread:
    """An array on disk that counts how often it is read."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.reads += 1
        return self._array[key]


def test_of_many_images_only_the_tiles_that_are_looked_at_are_read() -> None:
    sizes = [(1, 64, 64), (1, 40, 700)] * 50
    samples = []
    for number, shape in enumerate(sizes):
        sample = blobs(number, shape)
        lazy = {"image": Unread(sample.image), "labels": Unread(sample.labels)}
        samples.append(replace(sample, **lazy))
    tiles = ValidationPatches(
        pieces(samples, Tiling(core=(1, 512, 512))), Targets(Vista2dOptions(), 2, samples), 7
    )
    assert len(tiles) == 7 and not any(sample.image.reads for sample in samples)
    assert {tiles[i]["image"].shape[-2:] for i in range(7)} == {(64, 64), (40, 512)}
    assert sum(sample.image.reads for sample in samples) == 7


def test_validation_patches_are_spread_evenly() -> None:
    samples = [blobs(seed) for seed in range(4)]
    grid = PatchGrid(samples, (1, 32, 32))
    assert len(grid) == 16
    patches = ValidationPatches(grid, Targets(Vista2dOptions(), 2, samples), 8)
    assert len(patches) == 8
    names = [grid[i].name for i in patches._chosen]
    assert names == [f"blobs-{seed}" for seed in range(4) for _ in range(2)]

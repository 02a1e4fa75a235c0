"""Synthetic cells: exact labels, reproducible, and hard enough to be worth a model."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from skimage.filters import gaussian, threshold_otsu

from cellseg.errors import ConfigError, StorageError
from cellseg.metrics import overlaps, score, tally
from cellseg.synthetic import make_image, write_dataset


def test_image_and_labels_are_what_they_claim() -> None:
    image, labels = make_image(0, (128, 160))
    assert image.shape == labels.shape == (128, 160)
    assert image.dtype == labels.dtype == np.uint16
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))  # no gap
    assert labels.max() >= 10
    assert image.max() < 65535  # nothing saturates
    for label in range(1, int(labels.max()) + 1):
        assert ndimage.label(labels == label)[1] == 1, "a cell is in one piece"
        assert (labels == label).sum() >= 40


def test_same_seed_same_image() -> None:
    first, second = make_image((3, 1), (64, 64)), make_image((3, 1), (64, 64))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], make_image((3, 2), (64, 64))[0])


def test_cells_are_brighter_than_background_and_many_touch() -> None:
    image, labels = make_image(1)
    assert image[labels > 0].mean() > 1.5 * image[labels == 0].mean()
    beside = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()])
    touching = beside[:, (beside.min(axis=0) > 0) & (beside[0] != beside[1])]
    assert len(np.unique(touching)) > labels.max() / 3


def test_no_cells_on_request() -> None:
    image, labels = make_image(0, (64, 64), count=0)
    assert not labels.any()
    assert image.std() > 0


def test_a_threshold_is_not_enough() -> None:
    image, labels = make_image(0)
    smooth = gaussian(image.astype(float), 1)
    found = ndimage.label(smooth > threshold_otsu(smooth))[0]
    assert score([tally(overlaps(found, labels))])["f1@0.50"] < 0.6


def test_write_dataset(tmp_path) -> None:
    assert write_dataset(tmp_path, count=2, size=64, seed=5) == ["cells_000", "cells_001"]
    for index in range(2):
        image = tifffile.imread(tmp_path / f"images/cells_{index:03d}.tif")
        labels = tifffile.imread(tmp_path / f"labels/cells_{index:03d}.tif")
        expected = make_image((5, index), (64, 64))
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(labels, expected[1])


def test_bad_requests(tmp_path) -> None:
    with pytest.raises(ConfigError, match="32"):
        make_image(0, (16, 64))
    with pytest.raises(ConfigError, match="-1"):
        make_image(0, (64, 64), count=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, OSError)):
        write_dataset(tmp_path / "file", count=1, size=64)

"""Pictures of validation images while a model trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellseg.errors import DataError
from cellseg.report.drawing import decoded
from cellseg.report.panels import SIDE, write_panels


def square(shape: tuple[int, ...], top: int) -> np.ndarray:
    labels = np.zeros(shape, np.uint32)
    labels[..., top : top + 8, 4:12] = 3
    return labels


def seen(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture, and where it is orange and blue."""
    picture = decoded(path.read_bytes())
    assert picture is not None
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return picture, red - blue > 60, blue - red > 60


def test_found_objects_are_orange_and_missed_ones_blue(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((2, 32, 32), np.float32)
    empty = square((32, 32), 4) * 0
    target = tmp_path / "new" / "epoch-0001.png"
    write_panels([(image, empty, square((32, 32), 4)), (image, square((32, 32), 4), empty)], target)
    picture, orange, blue = seen(target)
    half = picture.shape[1] // 2
    assert picture.shape[0] == SIDE, "enlarged by a whole number"
    assert orange[:, :half].any() and not orange[:, half:].any()
    assert blue[:, half:].any() and not blue[:, :half].any()


def test_panels_of_different_sizes_stand_side_by_side(tmp_path: Path) -> None:
    sizes = [(40, 20), (16, 64)]
    panels = [(np.zeros((1, *s), np.float32), square(s, 4), square(s, 4)) for s in sizes]
    write_panels(panels, tmp_path / "a.png")
    picture, orange, _ = seen(tmp_path / "a.png")
    tall, wide = (9 * 40, 9 * 20), (6 * 16, 6 * 64)
    assert picture.shape[0] == tall[0]
    assert picture.shape[1] == tall[1] + wide[1] + 6
    assert (picture[wide[0] + 1 :, tall[1] + 1 :] == 255).all()
    assert orange[:, : tall[1]].any() and orange[:, -wide[1] :].any()


def test_of_a_volume_a_plane_with_objects_is_drawn(tmp_path: Path) -> None:
    truth = np.zeros((5, 32, 32), np.uint32)
    truth[1] = square((32, 32), 10)
    image = np.zeros((1, 5, 32, 32), np.float32)
    write_panels([(image, truth, truth)], tmp_path / "volume.png")
    write_panels([(image[:, 1], truth[1], truth[1])], tmp_path / "plane.png")
    assert (tmp_path / "volume.png").read_bytes() == (tmp_path / "plane.png").read_bytes()
    assert seen(tmp_path / "volume.png")[1].any()


def test_shapes_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    image, labels = np.zeros((1, 32, 40), np.float32), square((32, 32), 4)
    with pytest.raises(DataError, match="do not belong together"):
        write_panels([(image, labels, labels)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())

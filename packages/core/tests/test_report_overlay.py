"""Pictures of prediction and truth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cellseg.errors import DataError
from cellseg.report.comparison import comparison
from cellseg.report.overlay import PREDICTION, TRUTH, overlay, plane_of, window_of


def decoded(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def like(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where black is mixed with at least 45 % of a colour: a line between two pixels has half."""
    share = picture.astype(float) @ colour / np.dot(colour, colour)
    rest = np.abs(picture - share[..., None] * np.array(colour)).max(axis=2)
    return (share > 0.45) & (rest < 30)


def square(top: int, left: int, side: int = 20) -> np.ndarray:
    labels = np.zeros((1, 64, 96), np.uint32)
    labels[0, top : top + side, left : left + side] = 7
    return labels


def test_contours_lie_on_the_borders_of_the_objects() -> None:
    image = np.zeros((1, 1, 64, 96), np.uint16)
    picture = decoded(overlay(image, square(10, 20), side=960))  # ten times as large
    assert picture.shape == (640, 960, 3)
    rows, columns = np.nonzero(like(picture, PREDICTION))
    assert abs(rows.min() - 100) <= 1 and abs(rows.max() - 300) <= 1
    assert abs(columns.min() - 200) <= 1 and abs(columns.max() - 400) <= 1
    assert not picture[105:295, 205:395].any()  # nothing inside
    assert not like(picture, TRUTH).any()


def test_truth_is_dashed_and_blue_and_prediction_solid_and_orange() -> None:
    one, other = square(5, 5), square(40, 60)
    picture = decoded(overlay(None, one, other, side=960))  # ten times as large
    orange, blue = like(picture, PREDICTION), like(picture, TRUTH)
    assert orange[:300, :300].any() and not orange[350:].any()
    assert blue[350:, 550:].any() and not blue[:300].any()
    along = slice(610, 790)  # a side of each square, corners left out
    solid = orange[48:53, 60:240].any(axis=0)
    dashed = blue[398:403, along].any(axis=0)
    assert solid.all()
    assert 0.2 < dashed.mean() < 0.9


def test_objects_without_a_partner_are_filled() -> None:
    found = decoded(overlay(None, square(10, 10), square(11, 10), side=96))
    missed = decoded(overlay(None, square(10, 10) * 0, square(10, 10), side=96))
    wrong = decoded(overlay(None, square(10, 10), square(10, 10) * 0, side=96))
    assert not found[15:25, 15:25].any()
    assert missed[20, 20, 2] > missed[20, 20, 0] > 0  # bluish
    assert wrong[20, 20, 0] > wrong[20, 20, 2]  # orange


def test_contrast_ignores_a_few_hot_pixels() -> None:
    image = np.linspace(100, 200, 64 * 96).reshape(1, 1, 64, 96).astype(np.float32)
    image[0, 0, 0, 0] = 1e9
    image[0, 0, 0, 1] = np.nan
    picture = decoded(overlay(image, square(0, 0) * 0, side=96))
    assert picture[-5:].mean() > 180 > 30 > picture[1:5].mean()


@pytest.mark.parametrize("shape", [(40, 30), (700, 400)])
def test_pictures_stay_small(shape) -> None:
    labels = np.zeros((1, *shape), np.uint16)
    picture = decoded(overlay(np.ones((3, 1, *shape)), labels, labels, side=100))
    assert max(picture.shape) <= 100
    assert picture.shape[0] * shape[1] == pytest.approx(picture.shape[1] * shape[0], rel=0.02)


def test_objects_without_any_background_and_single_pixels() -> None:
    labels = np.arange(1, 13, dtype=np.uint32).reshape(1, 3, 4)
    assert like(decoded(overlay(None, labels, labels, side=40)), PREDICTION).any()


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match="do not belong together"):
        overlay(np.zeros((1, 1, 9, 9)), np.zeros((1, 8, 8), int))
    with pytest.raises(DataError, match="do not belong together"):
        overlay(None, np.zeros((2, 8, 8), int))


def test_comparison_gives_partners_one_colour_and_leaves_the_rest_white() -> None:
    truth, prediction = square(10, 10), square(11, 10)
    truth[0, 40:60, 70:90] = 9  # missed
    prediction[0, 40:60, 10:30] = 3  # not there
    image = np.zeros((2, 1, 64, 96), np.uint8)
    sheet = decoded(comparison([(image, truth, prediction)] * 2, side=96))
    assert sheet.shape == (30 + 64 + 8 + 64, 3 * 96 + 2 * 8, 3)
    for top in (30, 30 + 64 + 8):
        plain, true, found = (sheet[top : top + 64, 104 * i : 104 * i + 96] for i in range(3))
        assert not plain.any()
        partners = true[20, 20], found[20, 20]
        assert (partners[0] == partners[1]).all() and np.ptp(partners[0]) > 40
        for alone in (true[50, 80], found[50, 20]):
            assert alone.min() > 100 and np.ptp(alone) == 0
        assert not found[50, 80].any() and not true[50, 20].any()


def test_plane_and_window() -> None:
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[9:12] = 1
    assert 9 <= plane_of(labels) < 12
    assert plane_of(labels[:1]) == 0
    y, x = window_of((1, 3000, 500))
    assert (y.stop - y.start, x.start, x.stop) == (1536, 0, 500)
    assert y.start == 732

from __future__ import annotations

import numpy as np
import pytest

from cellseg.classes import MOST_CLASSES, SHIFT, UNKNOWN, classes_of, encoded, without_classes


@pytest.mark.parametrize("kind", [1, 7, MOST_CLASSES])
@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.int32])
def test_an_id_carries_its_class(kind: int, dtype: type) -> None:
    ids = np.array([[0, 1, 2], [5, (1 << SHIFT) - 2, 0]], dtype)
    coded = encoded(ids, kind)
    assert coded.dtype == np.uint32 and int(coded.max()) < UNKNOWN
    np.testing.assert_array_equal(coded & ((1 << SHIFT) - 1), ids)
    np.testing.assert_array_equal(classes_of(coded), np.where(ids > 0, kind, 0))


def test_what_is_not_known_stays_so() -> None:
    ids = np.array([0, 3, UNKNOWN], np.int64)
    coded = encoded(ids, 2)
    assert coded.tolist() == [0, (2 << SHIFT) + 3, UNKNOWN]
    assert classes_of(coded).tolist() == [0, 2, -100]
    assert classes_of(coded, ignored=9).tolist() == [0, 2, 9]


def test_plain_ids_are_of_class_1() -> None:
    assert classes_of(np.array([0, 1, 99], np.uint16)).tolist() == [0, 1, 1]


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        encoded(np.array([0, -1]), 1)
    with pytest.raises(ValueError, match="end at"):
        encoded(np.array([(1 << SHIFT) - 1]), 1)
    for kind in (0, MOST_CLASSES + 1):
        with pytest.raises(ValueError, match=f"class {kind} "):
            encoded(np.array([1]), kind)


def test_small_plain_ids_are_left_alone() -> None:
    for ids in ([0, 7, (1 << SHIFT) - 1], [0, 4, UNKNOWN], []):
        given = np.array(ids, np.uint32)
        assert without_classes(given) is given


def test_large_plain_ids_are_not_taken_for_classes() -> None:
    ids = np.array([0, 7, 3 << SHIFT, UNKNOWN, 7, (3 << SHIFT) + 1, 0], np.uint32)
    plain = without_classes(ids)
    assert plain.dtype == np.uint32
    assert set(classes_of(plain).tolist()) == {0, 1, -100}
    same = ids[:, None] == ids[None]
    np.testing.assert_array_equal(plain[:, None] == plain[None], same)
    assert plain[0] == 0 and plain[3] == UNKNOWN

"""The overlap table: types, blocks, large ids, filters, and what must not change the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import cellseg.metrics.table as table_module
from cellseg.errors import DataError
from cellseg.metrics import OverlapTable, match, overlaps, score, tally

small_labels = arrays(np.int32, (6, 9), elements=st.integers(0, 5))


def listed(table: OverlapTable) -> dict[tuple[int, int], int]:
    ids = zip(table.truth_ids[table.rows], table.prediction_ids[table.columns], strict=True)
    return {(int(t), int(p)): int(n) for (t, p), n in zip(ids, table.shared, strict=True)}


def scores_of(prediction: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    return dict(score([tally(overlaps(prediction, truth), (0.2, 0.5, 0.75))]))


class Chunked:
    """A lazy array that remembers what was read, as zarr would."""

    def __init__(self, array: NDArray[Any], chunks: tuple[int, ...]) -> None:
        self.array, self.chunks = array, chunks
        self.shape, self.dtype = array.shape, array.dtype
        self.reads: list[tuple[slice, ...]] = []

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        self.reads.append(key)
        return self.array[key]


def test_a_small_table() -> None:
    truth = np.array([[0, 4, 4, 9, 9]])
    prediction = np.array([[2, 2, 3, 3, 0]])
    table = overlaps(prediction, truth)
    assert listed(table) == {(4, 2): 1, (4, 3): 1, (9, 3): 1}
    assert table.truth_sizes.tolist() == [2, 2]
    assert table.prediction_sizes.tolist() == [2, 2]
    assert table.voxels == 5
    assert table.iou.tolist() == pytest.approx([1 / 3] * 3)


def test_ids_of_any_size_and_type() -> None:
    ids = np.array([0, 2**24 + 1, 2**40, 2**63 + 5], np.uint64)
    index = np.array([[0, 1, 1, 2], [3, 3, 2, 2]])
    prediction = index.astype(np.uint8)
    table = overlaps(prediction, ids[index])
    assert listed(table) == {(int(ids[1]), 1): 2, (int(ids[2]), 2): 3, (int(ids[3]), 3): 2}
    assert match(table, 1.0).iou.tolist() == [1, 1, 1]
    # as float32, these two ids would be one
    near = np.array([[2**24, 2**24 + 1]], np.uint32)
    assert overlaps(near, near).truth_ids.tolist() == [2**24, 2**24 + 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, ">u2"])
def test_every_integer_type(dtype: str) -> None:
    truth = np.array([[0, 1, 1], [2, 2, 0]], dtype)
    assert listed(overlaps(truth, truth)) == {(1, 1): 2, (2, 2): 2}


def test_blocks_are_whole_chunks_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_BLOCK_VOXELS", 100)
    monkeypatch.setattr(table_module, "_PIECE_VOXELS", 7)
    monkeypatch.setattr(table_module, "_PENDING_TRIPLES", 5)
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 9, (2, 7, 11, 13)).astype(np.int32)
    lazy_truth, lazy_prediction = Chunked(truth, (2, 4, 5)), Chunked(prediction, (1, 4, 5))
    blockwise = overlaps(lazy_prediction, lazy_truth)
    monkeypatch.undo()
    assert listed(blockwise) == listed(overlaps(prediction, truth))
    assert len(lazy_truth.reads) > 5
    read = np.zeros(truth.shape, int)
    for key in lazy_truth.reads:
        read[key] += 1
        assert all(s.start % c == 0 for s, c in zip(key, lazy_truth.chunks, strict=True))
        assert truth[key].size <= 100
    assert (read == 1).all()


def test_an_array_without_voxels() -> None:
    table = overlaps(np.zeros((0, 4), int), np.zeros((0, 4), int))
    assert table.voxels == 0 and table.truth_ids.size == 0
    assert score([tally(table)])["f1@0.50"] == 0


def test_unusable_arrays() -> None:
    labels = np.zeros((3, 4), np.int32)
    with pytest.raises(DataError, match="3 x 4, the truth 4 x 3"):
        overlaps(labels, labels.T)
    with pytest.raises(DataError, match="prediction is float64"):
        overlaps(labels.astype(float), labels)
    with pytest.raises(DataError, match="truth is bool"):
        overlaps(labels, labels.astype(bool))
    with pytest.raises(DataError, match="label -1"):
        overlaps(labels, labels - 1)


def test_min_size_drops_slivers_on_both_sides() -> None:
    truth = np.array([[1, 1, 1, 1, 2, 0]])
    prediction = np.array([[7, 7, 7, 8, 8, 0]])
    table = overlaps(prediction, truth).at_least(3)
    assert listed(table) == {(1, 7): 3}
    truth[truth == 2], prediction[prediction == 8] = 0, 0
    assert score([tally(table)]) == score([tally(overlaps(prediction, truth))])


def test_ignored_label_takes_its_voxels_along() -> None:
    truth = np.array([[1, 1, 1, 255, 255, 255, 0, 0]])
    prediction = np.array([[5, 5, 5, 5, 6, 6, 6, 0]])
    table = overlaps(prediction, truth).without_label(255)
    # 6 lies mostly in the ignored region and is gone; 5 loses one voxel
    assert listed(table) == {(1, 5): 3}
    assert table.prediction_sizes.tolist() == [3]
    assert table.voxels == 5
    assert score([tally(table)])["f1@0.95"] == 1
    assert overlaps(prediction, truth).without_label(99).voxels == 8


@settings(max_examples=60, deadline=None)
@given(small_labels, small_labels, st.permutations(range(1, 6)))
def test_names_of_objects_do_not_matter(
    prediction: NDArray[Any], truth: NDArray[Any], order: list[int]
) -> None:
    renamed = np.array([0, *order])[prediction] * 2**33
    assert scores_of(renamed, truth) == pytest.approx(scores_of(prediction, truth), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(small_labels, small_labels)
def test_exchanging_prediction_and_truth(a: NDArray[Any], b: NDArray[Any]) -> None:
    there, back = scores_of(a, b), scores_of(b, a)
    for name in there:
        if name.startswith(("tp", "f1", "ap", "pq", "sq", "mSA", "dice")):
            assert there[name] == pytest.approx(back[name])
    assert there["precision@0.20"] == pytest.approx(back["recall@0.20"])
    assert there["voi_split"] == pytest.approx(back["voi_merge"])


@settings(max_examples=60, deadline=None)
@given(small_labels, small_labels)
def test_bounds_and_perfection(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    scores = scores_of(prediction, truth)
    for name, value in scores.items():
        if not name.startswith(("tp", "fp", "fn", "n_", "voi")):
            assert np.isnan(value) or -1e-12 <= value <= 1 + 1e-12, name
    perfect = scores_of(truth, truth)
    assert perfect["f1@0.75"] == perfect["dice_foreground"] == float(truth.any())
    assert perfect["voi_split"] == perfect["voi_merge"] == 0


@settings(max_examples=60, deadline=None)
@given(small_labels, small_labels)
def test_pooling_equals_images_side_by_side(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    # without background, and with ids of their own, the images' objects are just more objects
    prediction, truth = prediction + 1, truth + 1
    side_by_side = [np.hstack([a[:, :4], a[:, 4:] + 10]) for a in (prediction, truth)]
    parts = [tally(overlaps(prediction[:, s], truth[:, s])) for s in np.s_[:4, 4:]]
    whole = score([tally(overlaps(*side_by_side))])
    assert score(parts) == pytest.approx(whole, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(small_labels, small_labels, st.sampled_from([0.05, 0.1, 0.25, 0.4, 0.5]))
def test_matches_are_one_to_one_and_optimal(
    prediction: NDArray[Any], truth: NDArray[Any], threshold: float
) -> None:
    stardist = pytest.importorskip("stardist.matching")
    found = match(overlaps(prediction, truth), threshold)
    assert np.unique(found.rows).size == found.rows.size
    assert np.unique(found.columns).size == found.columns.size
    assert (found.iou >= threshold).all()
    theirs = stardist.matching(truth, prediction, threshold)
    assert found.iou.size == theirs.tp
    assert found.iou.sum() == pytest.approx(theirs.mean_true_score * theirs.n_true, rel=1e-5)


def test_tallies_at_different_thresholds_do_not_add_up() -> None:
    table = overlaps(np.ones((2, 2), int), np.ones((2, 2), int))
    with pytest.raises(ValueError, match="different thresholds"):
        score([tally(table, (0.5,)), tally(table, (0.75,))])


@pytest.mark.parametrize(
    ("thresholds", "name"),
    [
        ((0.5, 0.55, 0.6), "mSA@0.50:0.60"),
        ((0.5, 0.75), "mSA@0.50,0.75"),
        ((0.5,), "mSA@0.50"),
    ],
)
def test_the_mean_says_over_what(thresholds: tuple[float, ...], name: str) -> None:
    labels = np.ones((2, 2), int)
    assert score([tally(overlaps(labels, labels), thresholds)])[name] == 1

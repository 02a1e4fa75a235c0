"""Every score equals that of a well-kept library, on random and on degenerate labels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from cellseg.metrics import THRESHOLDS, match, overlaps, score, tally

stardist = pytest.importorskip("stardist.matching")
elf = pytest.importorskip("elf.evaluation")
skimage_metrics = pytest.importorskip("skimage.metrics")

Labels = NDArray[np.int32]


def blobs(seed: int, shape: tuple[int, ...] = (60, 70), count: int = 30) -> Labels:
    """Touching, overlapping discs with ids in random order."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for label in rng.permutation(count) + 1:
        centre = [rng.uniform(0, n) for n in shape]
        far = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        labels[far < rng.uniform(2, 8) ** 2] = label
    return labels


def shaken(labels: Labels, seed: int) -> Labels:
    """The same objects, shifted a little, some merged, some split, some gone, some new."""
    rng = np.random.default_rng(seed)
    moved = np.roll(labels, rng.integers(-2, 3, labels.ndim), tuple(range(labels.ndim)))
    ids = np.arange(labels.max() + 1)
    ids[rng.integers(1, ids.size, 3)] = ids[rng.integers(1, ids.size, 3)]
    ids[rng.integers(1, ids.size, 3)] = 0
    moved = ids[moved].astype(np.int32)
    half = rng.integers(1, ids.size)
    split = moved == half
    split[tuple(slice(0, n // 2) for n in labels.shape)] = False
    moved[split] = labels.max() + 3
    moved[-6:, -6:] = labels.max() + 9
    return moved


def halves() -> tuple[Labels, Labels]:
    """An object cut into exact halves, both of which have an IoU of exactly one half."""
    truth = np.zeros((8, 20), np.int32)
    truth[0, :8], truth[2, :8], truth[4, :4], truth[4, 4:8], truth[6, :10] = 1, 2, 3, 4, 5
    prediction = np.zeros_like(truth)
    prediction[0, :4], prediction[0, 4:8] = 1, 2
    prediction[2, :8], prediction[4, :8] = 3, 4
    prediction[6, :6] = 5  # an IoU of exactly 0.6
    return prediction, truth


def one_huge() -> tuple[Labels, Labels]:
    return np.ones((40, 40), np.int32), np.pad(np.full((20, 20), 7, np.int32), 10)


def nothing() -> Labels:
    return np.zeros((12, 12), np.int32)


PAIRS = {
    **{f"random-{seed}": (shaken(blobs(seed), seed), blobs(seed)) for seed in range(6)},
    "volume": (shaken(blobs(7, (9, 24, 26)), 7), blobs(7, (9, 24, 26))),
    "unrelated": (blobs(20), blobs(21)),
    "equal": (blobs(3), blobs(3)),
    "ties": halves(),
    "one-huge": one_huge(),
    "no-background": (blobs(1) + 1, blobs(2) + 1),
    "gaps": (blobs(4) * 1000, blobs(5) * 7),
    "no-prediction": (nothing(), np.pad(np.ones((4, 4), np.int32), 4)),
    "no-truth": (np.pad(np.ones((4, 4), np.int32), 4), nothing()),
    "neither": (nothing(), nothing()),
    "one-voxel": (np.ones((1, 1), np.int32), np.ones((1, 1), np.int32)),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def pair(request: pytest.FixtureRequest) -> tuple[Labels, Labels]:
    return request.param  # type: ignore[no-any-return]


LOW = (0.1, 0.2, 0.3, 0.4)


def test_matching_equals_stardist(pair: tuple[Labels, Labels]) -> None:
    prediction, truth = pair
    thresholds = (*LOW, *THRESHOLDS, 1.0)
    scores = score([tally(overlaps(prediction, truth), thresholds)])
    for threshold, theirs in zip(
        thresholds, stardist.matching(truth, prediction, thresholds), strict=True
    ):
        at = f"@{threshold:.2f}"
        assert scores["n_true"] == theirs.n_true and scores["n_pred"] == theirs.n_pred
        assert scores["tp" + at] == theirs.tp
        assert scores["fp" + at] == theirs.fp
        assert scores["fn" + at] == theirs.fn
        assert scores["precision" + at] == pytest.approx(theirs.precision)
        assert scores["recall" + at] == pytest.approx(theirs.recall)
        assert scores["f1" + at] == scores["rq" + at] == pytest.approx(theirs.f1)
        assert scores["ap" + at] == pytest.approx(theirs.accuracy)
        # stardist sums in float32
        assert scores["pq" + at] == pytest.approx(theirs.panoptic_quality, rel=1e-5)
        assert scores["sq" + at] == pytest.approx(theirs.mean_matched_score, rel=1e-5)


def test_pooled_equals_stardist_dataset() -> None:
    predictions, truths = zip(*PAIRS.values(), strict=True)
    pooled = score([tally(overlaps(p, t)) for p, t in PAIRS.values()])
    theirs = stardist.matching_dataset(truths, predictions, THRESHOLDS, show_progress=False)
    for threshold, expected in zip(THRESHOLDS, theirs, strict=True):
        at = f"@{threshold:.2f}"
        assert pooled["tp" + at] == expected.tp
        assert pooled["f1" + at] == pytest.approx(expected.f1)
        assert pooled["ap" + at] == pytest.approx(expected.accuracy)
        assert pooled["pq" + at] == pytest.approx(expected.panoptic_quality, rel=1e-5)


def test_matched_pairs_are_those_of_stardist() -> None:
    prediction, truth = PAIRS["random-2"]
    for threshold in (0.2, 0.6):
        theirs = stardist.matching(truth, prediction, threshold, report_matches=True)
        expected = {theirs.matched_pairs[i] for i in theirs.matched_tps}
        table = overlaps(prediction, truth)
        found = match(table, threshold)
        ids = zip(table.truth_ids[found.rows], table.prediction_ids[found.columns], strict=True)
        assert {(int(t), int(p)) for t, p in ids} == expected


def test_matching_and_msa_equal_elf(pair: tuple[Labels, Labels]) -> None:
    prediction, truth = pair
    scores = score([tally(overlaps(prediction, truth))])
    for threshold in THRESHOLDS:
        theirs = elf.matching(prediction, truth, threshold=threshold)
        assert scores[f"precision@{threshold:.2f}"] == pytest.approx(theirs["precision"])
        assert scores[f"recall@{threshold:.2f}"] == pytest.approx(theirs["recall"])
        assert scores[f"f1@{threshold:.2f}"] == pytest.approx(theirs["f1"])
        assert scores[f"ap@{threshold:.2f}"] == pytest.approx(theirs["segmentation_accuracy"])
    # elf's own thresholds come from arange: 0.6000000000000001 misses an IoU of exactly 0.6
    msa = elf.mean_segmentation_accuracy(prediction, truth, thresholds=THRESHOLDS)
    assert scores["mSA@0.50:0.95"] == pytest.approx(msa)


def test_dice_equals_elf(pair: tuple[Labels, Labels]) -> None:
    prediction, truth = pair
    scores = score([tally(overlaps(prediction, truth))])
    assert scores["dice_foreground"] == pytest.approx(elf.dice_score(prediction, truth), abs=1e-6)


def test_adapted_rand_equals_scikit_image(pair: tuple[Labels, Labels]) -> None:
    prediction, truth = pair
    scores = score([tally(overlaps(prediction, truth))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where nothing can be measured
        # what scikit-image calls precision is divided by the truth's pairs, and the reverse
        error, recall, precision = skimage_metrics.adapted_rand_error(truth, prediction)
    assert scores["are"] == pytest.approx(error, nan_ok=True)
    assert scores["are_precision"] == pytest.approx(precision, nan_ok=True)
    assert scores["are_recall"] == pytest.approx(recall, nan_ok=True)


def test_adapted_rand_precision_suffers_from_merging() -> None:
    truth = np.array([[1, 1, 2, 2]])
    merged, split = np.array([[1, 1, 1, 1]]), np.array([[1, 2, 3, 4]])
    scores = score([tally(overlaps(merged, truth))])
    assert scores["are_precision"] < 1 and scores["are_recall"] == 1
    assert score([tally(overlaps(split, truth))])["are_recall"] == 0


def test_voi_equals_scikit_image_and_elf(pair: tuple[Labels, Labels]) -> None:
    prediction, truth = pair
    scores = score([tally(overlaps(prediction, truth))])
    ours = [scores["voi_split"], scores["voi_merge"]]
    assert ours == pytest.approx(skimage_metrics.variation_of_information(truth, prediction))
    assert ours == pytest.approx(elf.variation_of_information(prediction, truth), abs=1e-12)


def test_table_equals_scikit_image(pair: tuple[Labels, Labels]) -> None:
    prediction, truth = pair
    table = overlaps(prediction, truth)
    dense = skimage_metrics.contingency_table(truth, prediction).toarray()
    assert table.voxels == dense.sum()
    assert table.truth_sizes.tolist() == dense.sum(1)[table.truth_ids].tolist()
    assert table.prediction_sizes.tolist() == dense.sum(0)[table.prediction_ids].tolist()
    rows, columns = dense[1:, 1:].nonzero()
    assert table.truth_ids[table.rows].tolist() == (rows + 1).tolist()
    assert table.prediction_ids[table.columns].tolist() == (columns + 1).tolist()
    assert table.shared.tolist() == dense[rows + 1, columns + 1].tolist()


def test_ctc_seg_equals_py_ctcmetrics(tmp_path: Path) -> None:
    evaluate = pytest.importorskip("ctc_metrics.scripts.evaluate")
    technical = pytest.importorskip("ctc_metrics.metrics")
    # it takes the lowest label of each image for the background, and wants an object in the truth
    usable = [p for p in PAIRS.values() if p[0].min() == p[1].min() == 0 < p[1].max()]
    pairs = [*usable, tuple(np.pad(labels, 2) for labels in one_huge())]
    files = []
    for number, (prediction, truth) in enumerate(pairs):
        files.append((tmp_path / f"t{number}.tif", tmp_path / f"p{number}.tif"))
        tifffile.imwrite(files[-1][0], truth)
        tifffile.imwrite(files[-1][1], prediction)
        theirs = evaluate.match_computed_to_reference_masks(
            [files[-1][0]], [files[-1][1]], threads=1
        )
        expected = technical.seg(theirs["labels_ref"], theirs["ious"])
        assert score([tally(overlaps(prediction, truth))])["ctc_seg"] == pytest.approx(expected)
    truths, predictions = zip(*files, strict=True)
    theirs = evaluate.match_computed_to_reference_masks(truths, predictions, threads=1)
    pooled = score([tally(overlaps(prediction, truth)) for prediction, truth in pairs])
    assert pooled["ctc_seg"] == pytest.approx(technical.seg(theirs["labels_ref"], theirs["ious"]))

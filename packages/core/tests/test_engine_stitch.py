"""Stitched labels equal those of the whole image: every object, none cut, none merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellseg.data import Segmentation, Tiling
from cellseg.engine import stitch as stitching
from cellseg.engine.plan import Plan
from cellseg.engine.records import Record, is_whole, save
from cellseg.engine.stitch import PartsInMemory, matches, stitch
from cellseg.engine.tile import tile_labels
from cellseg.errors import DataError


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def tiled(segment, shape, tiling, volumetric=True, least=0.5):
    plan = Plan.cut(shape, tiling, volumetric)
    parts = [
        tile_labels(Segmentation(segment(plan.read_box(t).slices)), plan, t)
        for t in range(len(plan))
    ]
    found = PartsInMemory([part.objects for part in parts])
    joined = stitch(plan, found, lambda i, d: parts[i].strips[d], least)
    labels = np.zeros(shape, np.uint32)
    for tile, part in enumerate(parts):
        labels[plan.core_box(tile).slices] = joined.table(tile)[part.core]
    return labels, joined.objects


def same_objects(a, b):
    """Equal up to the numbering."""
    if not ((a > 0) == (b > 0)).all():
        return False
    pairs = np.unique(np.stack([a[a > 0], b[a > 0]]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("shape", "core", "halo"),
    [
        ((1, 150, 170), (1, 40, 33), (0, 24, 24)),
        ((1, 97, 201), (1, 31, 64), (0, 30, 16)),
        ((40, 60, 70), (9, 20, 24), (16, 16, 16)),
    ],
)
def test_tiled_equals_whole(seed, shape, core, halo):
    import cc3d
    from engine_fakes import blobs

    mask = blobs(shape, seed, 0.25 if shape[0] > 1 else 0.35)[0] > 0
    labels, objects = tiled(
        lambda key: cc3d.connected_components(mask[key], connectivity=26),
        shape,
        Tiling(core, halo),
    )
    whole = cc3d.connected_components(mask, connectivity=26)
    assert whole.max() > 20
    assert same_objects(labels, whole)
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    assert ids.tolist() == list(range(1, len(objects) + 1))
    assert areas.tolist() == objects.area.tolist()
    for identity in (1, len(objects)):
        where = np.argwhere(labels == identity)
        assert objects.low[identity - 1].tolist() == where.min(0).tolist()
        assert objects.high[identity - 1].tolist() == (where.max(0) + 1).tolist()
        np.testing.assert_allclose(objects.centroid[identity - 1], where.mean(0), atol=1e-3)


def test_without_a_halo_objects_are_cut():
    """The test above can fail."""
    mask = np.zeros((1, 40, 200), bool)
    mask[0, 10:20, 90:110] = True
    labels, _ = tiled(
        lambda key: mask[key].astype(np.uint8), mask.shape, Tiling((1, 100, 100), (0, 0, 0))
    )
    assert labels.max() == 2


def test_touching_cells_stay_apart():
    truth = np.zeros((1, 64, 256), np.uint16)
    for number, x in enumerate(range(0, 256, 16)):
        truth[0, :, x : x + 16] = number + 1
    labels, _ = tiled(lambda key: truth[key], truth.shape, Tiling((1, 20, 40), (0, 16, 20)))
    assert same_objects(labels, truth)


def test_neighbours_that_disagree_a_little_do_not_join_two_cells():
    """The left tile sees the border 2 pixels too far right, the right one 2 too far left."""

    def segment(key):
        labels = np.zeros((1, 40, 200), np.uint8)
        border = 102 if key[2].start == 0 else 98
        labels[0, 5:35, 70:border] = 1
        labels[0, 5:35, border:130] = 2
        return labels[key]

    labels, objects = tiled(segment, (1, 40, 200), Tiling((1, 100, 100), (0, 20, 40)))
    assert len(objects) == 2
    assert labels[0, 20, 80] != labels[0, 20, 120]


def test_a_cell_that_one_tile_cut_in_two_is_one():
    def segment(key):
        labels = np.zeros((1, 40, 200), np.uint8)
        labels[0, 5:35, 80:120] = 1
        if key[2].start > 0:
            labels[0, 18:35, 80:120] = 2
        return labels[key]

    labels, objects = tiled(segment, (1, 40, 200), Tiling((1, 100, 100), (0, 20, 40)))
    assert len(objects) == 1
    assert labels[0, 5:35, 80:120].min() == 1


def test_a_cell_across_a_corner():
    mask = np.zeros((1, 128, 128), bool)
    for i in range(60, 68):
        mask[0, i, i] = True  # touches by corners only, through the corner of four tiles
    import cc3d

    labels, objects = tiled(
        lambda key: cc3d.connected_components(mask[key], connectivity=26),
        mask.shape,
        Tiling((1, 64, 64), (0, 16, 16)),
    )
    assert len(objects) == 1
    assert (labels > 0).sum() == 8


def test_matches_needs_the_share_of_the_smaller():
    left, right = np.zeros((1, 10, 10), int), np.zeros((1, 10, 10), int)
    left[0, :, :5] = 3
    right[0, :4, :5] = 9
    right[0, 8:, 4:] = 4
    a, b = matches(left, right, 0.5)
    assert (a.tolist(), b.tolist()) == ([3], [9])
    a, b = matches(left, right, 0.1)
    assert sorted(zip(a.tolist(), b.tolist(), strict=True)) == [(3, 4), (3, 9)]


def test_too_many_objects_for_uint32(monkeypatch):
    monkeypatch.setattr(stitching, "MOST_IDS", 3)
    truth = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2)
    with pytest.raises(DataError, match="4 objects"):
        tiled(lambda key: truth[key], truth.shape, Tiling((1, 2, 2), (0, 0, 0)))


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (np.uint8, 1),
        (np.int32, 1000),
        (np.int32, 1 << 28),
        (np.int64, 1 << 33),
        (np.uint64, 1),
        (np.uint64, 1 << 60),
    ],
)
def test_any_ids_are_renumbered_in_their_order(dtype, factor):
    labels = np.array([[[0, 5, 5, 2], [2, 0, 5, 3]]]).astype(dtype) * dtype(factor)
    plan = Plan.cut(labels.shape, Tiling((1, 64, 64), (0, 0, 0)), False)
    found = tile_labels(Segmentation(labels, {5 * factor: 0.5}, {2 * factor: 7}), plan, 0)
    assert found.core.tolist() == [[[0, 3, 3, 1], [1, 0, 3, 2]]]
    assert found.objects.area.tolist() == [2, 1, 3]
    assert found.objects.kind.tolist() == [7, -1, -1]
    assert found.objects.score[2] == 0.5
    assert np.isnan(found.objects.score[:2]).all()


def test_record_comes_back_and_damage_is_seen(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (1, 90, 90))
    plan = Plan.cut((1, 90, 90), Tiling((1, 40, 40), (0, 4, 4)), False)
    box = plan.read_box(4).slices
    tile = tile_labels(Segmentation(labels[box]), plan, 4)
    path = tmp_path / "4.tile"
    save(path, tile)
    back = Record(path)
    assert (back.core == tile.core).all()
    assert len(tile.strips) == 8
    for direction, strip in tile.strips.items():
        assert (back.strip(direction) == strip).all()
    assert (back.column("centroid") == tile.objects.centroid).all()
    assert back.count == len(tile.objects)
    assert is_whole(path)
    data = bytearray(path.read_bytes())
    for damaged in (data[:-5], data[:30], b"", data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        assert not is_whole(path)

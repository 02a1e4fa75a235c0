"""Objects of neighbouring planes become one: as a slow rewrite of the rule says, however tiled."""

from __future__ import annotations

import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cellseg.data import Segmentation, Tiling
from cellseg.engine.linking import Linking, link_planes
from cellseg.engine.plan import Plan
from cellseg.engine.refine import Refinement, refine
from cellseg.engine.stitch import PartsInMemory, stitch
from cellseg.engine.tile import Objects, tile_labels

WHOLE = Tiling((1, 4096, 4096), (0, 0, 0))
TILED = Tiling((1, 20, 24), (0, 20, 20))


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


class Counted:
    """Labels that know how often they were read."""

    def __init__(self, labels):
        self.labels, self.reads = labels, 0

    def __getitem__(self, key):
        self.reads += 1
        return self.labels[key]


def linked(planes, overlap=0.25, gap=0, tiling=WHOLE, scores=None):
    """The labels of a volume after linking, with their objects."""
    plan = Plan.cut(planes.shape, tiling, False)
    parts = []
    for tile in range(len(plan)):
        seen = planes[plan.read_box(tile).slices]
        parts.append(tile_labels(Segmentation(seen, scores or {}), plan, tile))
    found = PartsInMemory([part.objects for part in parts])
    joined = stitch(plan, found, lambda i, d: parts[i].strips[d], 0.5)

    def labels(joined):
        whole = np.zeros(planes.shape, np.uint32)
        for tile, part in enumerate(parts):
            whole[plan.core_box(tile).slices] = joined.table(tile)[part.core]
        return whole

    counted = Counted(labels(joined))
    how = Refinement(link=Linking(overlap, gap))
    found = refine(joined, counted, plan, how, planes=True, pause=lambda: None)
    assert counted.reads in (0, len(plan)), "each tile is read once"
    return labels(found), found.objects


def slowly(planes, overlap, gap):
    """The same, object by object and plane by plane."""
    chains = {}
    previous, following = set(), set()
    for z in range(len(planes)):
        for distance in range(1, 2 + gap):
            if z < distance:
                continue
            above, here = planes[z - distance], planes[z]
            iou = {}
            for a, b in product(np.unique(above[above > 0]), np.unique(here[here > 0])):
                both = ((above == a) & (here == b)).sum()
                if both and a not in following and b not in previous:
                    iou[a, b] = both / ((above == a) | (here == b)).sum()
            for (a, b), value in iou.items():
                rivals = [v for pair, v in iou.items() if pair[0] == a or pair[1] == b]
                if value >= overlap and value == max(rivals):
                    assert rivals.count(value) == 1, "a tie; take other random planes"
                    chains[b] = a
                    following.add(a)
                    previous.add(b)
    result = planes.copy()
    for b in np.unique(planes[planes > 0]):
        root = b
        while root in chains:
            root = chains[root]
        result[planes == b] = root
    return result


def random_planes(seed, shape=(8, 44, 60), fill=0.3):
    """Every plane labelled by itself, with ids of its own; some planes are empty."""
    import cc3d
    from engine_fakes import blobs

    mask = blobs(shape, seed, fill)[0] > 0
    rng = np.random.default_rng(seed)
    planes = np.zeros(shape, np.uint32)
    for z in range(shape[0]):
        labels = cc3d.connected_components(mask[z] & (z != 4), connectivity=8).astype(np.uint32)
        for lost in rng.choice(max(labels.max(), 1), 2) + 1:
            labels[labels == lost] = 0
        planes[z] = np.where(labels > 0, labels + planes.max(), 0)
    return planes


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("overlap", "gap"), [(0.1, 0), (0.25, 1), (0.5, 2), (1.0, 0)])
def test_tiled_and_whole_are_as_a_slow_rewrite_says(seed, overlap, gap):
    from engine_fakes import same_objects

    planes = random_planes(seed)
    expected = slowly(planes, overlap, gap)
    whole, objects = linked(planes, overlap, gap)
    tiled, others = linked(planes, overlap, gap, TILED)
    assert same_objects(whole, expected)
    assert same_objects(tiled, expected)
    assert len(objects) == len(others) == len(np.unique(expected)) - 1
    if overlap < 1:
        assert len(objects) < len(np.unique(planes)) - 1, "some are linked"


@pytest.mark.parametrize("tiling", [WHOLE, TILED])
def test_the_table_is_that_of_the_linked_labels(tiling):
    planes = random_planes(1)
    ids = np.unique(planes[planes > 0])
    scores = {int(i): float(i % 5) / 4 for i in ids}
    labels, objects = linked(planes, 0.2, 1, tiling, scores)
    assert sorted(np.unique(labels)) == list(range(len(objects) + 1))
    for identity in range(1, len(objects) + 1):
        where = np.argwhere(labels == identity)
        assert objects.area[identity - 1] == len(where)
        assert objects.low[identity - 1].tolist() == where.min(0).tolist()
        assert objects.high[identity - 1].tolist() == (where.max(0) + 1).tolist()
        np.testing.assert_allclose(objects.centroid[identity - 1], where.mean(0))
        mean = np.mean([scores[i] for i in planes[labels == identity].tolist()])
        np.testing.assert_allclose(objects.score[identity - 1], mean, rtol=1e-5)


def test_two_touching_columns_stay_two():
    planes = np.zeros((6, 40, 60), np.uint32)
    for z in range(6):
        planes[z, 10:30, 10 : 30 + z % 2] = 2 * z + 1
        planes[z, 10:30, 30 + z % 2 : 50] = 2 * z + 2
    for tiling in (WHOLE, TILED):
        labels, objects = linked(planes, tiling=tiling)
        assert len(objects) == 2
        assert len(np.unique(labels[:, 20, 12])) == len(np.unique(labels[:, 20, 48])) == 1
        assert labels[0, 20, 12] != labels[0, 20, 48]


@pytest.mark.parametrize("upwards", [True, False])
def test_of_a_fork_the_larger_branch_goes_on(upwards):
    planes = np.zeros((7, 40, 60), np.uint32)
    for z in range(4):
        planes[z, 10:30, 10:50] = z + 1
    for z in range(4, 7):
        planes[z, 10:30, 10:36] = 10 + z
        planes[z, 10:30, 38:50] = 20 + z
    if upwards:
        planes = planes[::-1].copy()
    for tiling in (WHOLE, TILED):
        labels, objects = linked(planes, tiling=tiling)
        assert len(objects) == 2
        assert len(np.unique(labels[:, 20, 15])) == 1, "trunk and larger branch"
        assert sorted(objects.area.tolist()) == [3 * 20 * 12, 4 * 800 + 3 * 20 * 26]


def test_a_fork_into_two_equal_halves_does_not_depend_on_the_tiles():
    planes = np.zeros((4, 40, 60), np.uint32)
    planes[:2, 10:30, 10:50] = np.array([1, 2])[:, None, None]
    # As a tile they are numbered from the right, as tiles from the left.
    planes[2:, 10:30, 10:29] = np.array([5, 6])[:, None, None]
    planes[2:, 10:30, 31:50] = np.array([3, 4])[:, None, None]
    for tiling in (WHOLE, TILED, Tiling((1, 40, 16), (0, 20, 20))):
        labels, objects = linked(planes, tiling=tiling)
        assert len(objects) == 2
        assert labels[0, 20, 30] == labels[3, 20, 12] != labels[3, 20, 48]


@pytest.mark.parametrize(("missing", "gap", "count"), [(1, 0, 2), (1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_a_gap_is_bridged_when_asked(missing, gap, count):
    planes = np.zeros((8, 30, 30), np.uint32)
    for z in (*range(3), *range(3 + missing, 8)):
        planes[z, 8:22, 8:22] = z + 1
    for tiling in (WHOLE, Tiling((1, 12, 12), (0, 14, 14))):
        labels, objects = linked(planes, gap=gap, tiling=tiling)
        assert len(objects) == count
        assert not labels[3 : 3 + missing].any(), "nothing is made up"


def test_what_goes_on_is_not_bridged_to_another():
    """The nearest plane goes first; the one beyond has to begin anew."""
    planes = np.zeros((3, 20, 40), np.uint32)
    planes[0, 5:15, 5:15] = 1
    planes[1, 5:15, 8:18] = 2
    planes[2, 5:15, 3:12] = 3  # over the first one, hardly over the second
    _, objects = linked(planes, 0.3, gap=1)
    assert objects.area.tolist() == [200, 90]


def test_the_overlap_is_exact():
    planes = np.zeros((2, 10, 40), np.uint32)
    planes[0, :, :16] = 1
    planes[1, :, 8:24] = 2  # a third of both
    assert len(linked(planes, 1 / 3)[1]) == 1
    assert len(linked(planes, 0.34)[1]) == 2


class Tubes:
    """Discs on a grid of 32 pixels in every plane, made as they are read."""

    shape = (40, 1024, 1024)
    columns = 1024 // 32

    def __getitem__(self, key):
        z, y, x = (np.arange(k.start, k.stop) for k in key)
        number = (y // 32)[:, None] * self.columns + x // 32 + 1
        disc = ((y % 32 - 16) ** 2)[:, None] + (x % 32 - 16) ** 2 < 100
        return np.where(disc, number, 0)[None].astype(np.uint32) + np.where(
            disc, z[:, None, None] * np.uint32(self.columns**2), 0
        ).astype(np.uint32)


def test_memory_is_that_of_some_tiles_and_not_of_the_volume():
    tubes = Tubes()
    plan = Plan.cut(tubes.shape, Tiling((1, 256, 256), (0, 16, 16)), False)
    count = tubes.columns**2
    one = tile_labels(
        Segmentation(tubes[slice(0, 1), slice(0, 1024), slice(0, 1024)]),
        Plan.cut((1, 1024, 1024), WHOLE, False),
        0,
    ).objects
    up = np.repeat(np.arange(40, dtype=np.int32), count)[:, None] * np.array([1, 0, 0], np.int32)
    objects = Objects(
        np.tile(one.area, 40),
        np.tile(one.centroid, (40, 1)) + up,
        np.tile(one.low, (40, 1)) + up,
        np.tile(one.high, (40, 1)) + up,
        np.tile(one.score, 40),
        np.tile(one.kind, 40),
    )
    tracemalloc.start()
    number, group = link_planes(tubes, plan, objects, Linking(0.5, 1), lambda: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == count
    assert (group.reshape(40, count) == np.arange(count)).all()
    volume = 4 * np.prod(tubes.shape)
    assert peak < volume / 8, f"{peak / 2**20:.1f} MiB"


@pytest.mark.parametrize("tiling", [WHOLE, TILED])
def test_empty_planes_and_nothing_at_all(tiling):
    planes = np.zeros((5, 50, 60), np.uint32)
    assert len(linked(planes, gap=1, tiling=tiling)[1]) == 0
    planes[3, 10:20, 10:20] = 4
    labels, objects = linked(planes, gap=1, tiling=tiling)
    assert len(objects) == 1 and (labels[3, 10:20, 10:20] == 1).all()
    planes[0, 10:20, 10:20] = 2
    assert len(linked(planes, gap=1, tiling=tiling)[1]) == 2

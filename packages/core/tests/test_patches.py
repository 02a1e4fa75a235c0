from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellseg import intensity
from cellseg.data import ZYX, Sample
from cellseg.errors import ConfigError, DataError
from cellseg.normalise import Normaliser, normalised
from cellseg.objects import ObjectIndex
from cellseg.options import parse
from cellseg.patches import Patch, PatchGrid, PatchSampler
from cellseg.sampling_options import PatchOptions


class Lazy:
    """Counts what is read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        self.read += self.array[key].size
        return self.array[key]


def squares(
    shape: ZYX, boxes: list[tuple[int, int, int]], size: int = 6, name: str = "s", depth: int = 1
) -> Sample:
    """Square objects with their corners at ``boxes``; each pixel of the image tells its place."""
    labels = np.zeros(shape, np.uint16)
    for number, (z, y, x) in enumerate(boxes, start=1):
        labels[z : z + depth, y : y + size, x : x + size] = 3 * number
    image = np.stack([np.arange(labels.size).reshape(shape), labels]).astype(np.float32)
    return Sample(name=name, image=image, labels=labels)


def scattered(seed: int, shape: ZYX = (1, 150, 170), count: int = 25) -> Sample:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, np.subtract(shape, (0, 6, 6)), (count, 3))
    return squares(shape, [tuple(map(int, c)) for c in corners], name=f"s{seed}")


def counted(patch: Patch, size: int) -> int:
    ids, sizes = np.unique(patch.labels[patch.labels > 0], return_counts=True)
    return int((sizes >= size).sum()) if len(ids) else 0


def aligned(patch: Patch, sample: Sample) -> None:
    """The patch is what the sample has at its corner."""
    inside = [
        (max(a, 0), min(a + n, m))
        for a, n, m in zip(patch.corner, patch.labels.shape, sample.labels.shape, strict=True)
    ]
    there = tuple(slice(a, b) for a, b in inside)
    here = tuple(slice(a - c, b - c) for (a, b), c in zip(inside, patch.corner, strict=True))
    np.testing.assert_array_equal(patch.labels[here], np.asarray(sample.labels)[there])
    expected = np.asarray(sample.image)[(slice(None), *there)]
    np.testing.assert_array_equal(patch.image[(slice(None), *here)], expected)


@pytest.mark.parametrize("budget", [intensity.BLOCK, 700])
@pytest.mark.parametrize("factor", [1, 70_000_000])
def test_the_index_equals_counting(
    budget: int, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intensity.block_slices, "__defaults__", (budget,))
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, 60, (3, 9, 11)), np.ones((1, 7, 5))).astype(np.uint32)
    labels = np.where(labels > 30, 0, labels).astype(np.uint32) * factor
    index = ObjectIndex.of(labels)
    assert set(index.ids.tolist()) == set(np.unique(labels).tolist()) - {0}
    assert (np.diff(index.low[:, 1]) >= 0).all()
    for number, label in enumerate(index.ids):
        places = np.argwhere(labels == label)
        assert index.sizes[number] == len(places)
        np.testing.assert_array_equal(index.low[number], places.min(0))
        np.testing.assert_array_equal(index.high[number], places.max(0) + 1)
    for corner in rng.integers(-5, 50, (50, 3)).tolist():
        shape = (1, 20, 23)
        window = tuple(slice(max(a, 0), max(a + n, 0)) for a, n in zip(corner, shape, strict=True))
        here = set(np.unique(labels[window]).tolist()) - {0}
        whole, partly = index.seen(corner, shape)
        wholly = [
            label
            for label in here
            if np.count_nonzero(labels[window] == label) == np.count_nonzero(labels == label)
        ]
        assert whole == len(wholly)
        assert here <= set(wholly) | set(index.ids[partly].tolist())


def test_labels_that_are_no_ids_are_refused() -> None:
    labels = np.zeros((1, 20, 20), np.int32)
    labels[0, 3, 3] = -1
    with pytest.raises(DataError, match="field-3: has the label -1"):
        ObjectIndex.of(labels, "field-3")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.sampled_from([1, 10, 20, 36]),
    st.sampled_from([(1, 64, 64), (1, 40, 96), (1, 200, 64), (2, 50, 50)]),
)
def test_patches_hold_enough_objects(seed: int, wanted: int, size: int, shape: ZYX) -> None:
    samples = [scattered(seed), scattered(seed + 1), scattered(seed + 2, (3, 90, 120), 12)]
    sampler = PatchSampler(samples, shape, min_instances=wanted, min_instance_size=size, seed=seed)
    by_name = {sample.name: sample for sample in samples}
    for index in range(12):
        patch = sampler.patch(index)
        assert patch.image.shape == (2, *shape) and patch.image.dtype == np.float32
        assert patch.labels.shape == shape and patch.labels.dtype == np.uint32
        assert counted(patch, size) >= wanted
        aligned(patch, by_name[patch.name])


def test_objects_larger_than_the_patch_and_cut_ones_count_by_what_is_seen() -> None:
    labels = np.zeros((1, 300, 300), np.uint32)
    labels[0, :, :150], labels[0, :, 150:] = 1, 2
    sample = Sample(name="big", image=np.zeros((1, 1, 300, 300), np.float32), labels=labels)
    sampler = PatchSampler([sample], (1, 64, 64), min_instances=2, min_instance_size=1000)
    for index in range(30):
        assert counted(sampler.patch(index), 1000) == 2


def test_a_patch_depends_on_seed_and_index_alone() -> None:
    samples = [normalised(scattered(seed), Normaliser()) for seed in range(3)]
    one = PatchSampler(samples, (1, 64, 64), min_instances=2, seed=5)
    other = pickle.loads(pickle.dumps(PatchSampler(samples, (1, 64, 64), min_instances=2, seed=5)))
    uncached = PatchSampler(samples, (1, 64, 64), min_instances=2, seed=5, cache=0)
    patches = {index: one.patch(index) for index in range(20)}
    for index in reversed(range(20)):
        for sampler in (one, other, uncached):
            again = sampler.patch(index)
            assert (again.name, again.corner) == (patches[index].name, patches[index].corner)
            np.testing.assert_array_equal(again.image, patches[index].image)
            np.testing.assert_array_equal(again.labels, patches[index].labels)
    elsewhere = PatchSampler(samples, (1, 64, 64), min_instances=2, seed=6)
    places = {(patch.name, patch.corner) for patch in patches.values()}
    assert places != {(p.name, p.corner) for p in map(elsewhere.patch, range(20))}


def test_every_object_and_every_image_is_seen() -> None:
    samples = [scattered(1), scattered(2, count=8)]
    sampler = PatchSampler(samples, (1, 64, 64), min_instances=1)
    patches = [sampler.patch(index) for index in range(400)]
    for sample in samples:
        mine = [patch for patch in patches if patch.name == sample.name]
        assert 140 < len(mine) < 260, "images take turns"
        seen = set(np.unique(np.concatenate([p.labels.ravel() for p in mine])).tolist())
        assert seen == set(np.unique(np.asarray(sample.labels)).tolist())


def test_anywhere_means_the_empty_parts_too() -> None:
    sample = squares((1, 400, 400), [(0, 0, 0)])
    sampler = PatchSampler([sample], (1, 64, 64), min_instances=0)
    assert sum(counted(sampler.patch(index), 1) for index in range(30)) < 15
    assert len(PatchSampler([squares((1, 80, 80), [])], (1, 64, 64), min_instances=0)) == 1


def test_rare_crowds_are_found() -> None:
    lonely = [(0, y, x) for y in range(0, 900, 100) for x in range(0, 900, 100)]
    sample = squares((1, 1000, 1000), [*lonely, (0, 955, 955), (0, 948, 962)], name="rare")
    sampler = PatchSampler([sample], (1, 32, 32), min_instances=2, min_instance_size=36)
    assert all(counted(sampler.patch(index), 36) == 2 for index in range(20))


def test_images_without_enough_objects_are_skipped_and_named() -> None:
    good, poor = scattered(0), squares((1, 90, 90), [(0, 5, 5)], name="poor")
    far = squares((1, 300, 300), [(0, 5, 5), (0, 280, 280)], name="far")
    sampler = PatchSampler([poor, good, far], (1, 64, 64), min_instances=2)
    assert sampler.skipped == ("poor", "far") and len(sampler) == 1
    assert {sampler.patch(index).name for index in range(10)} == {good.name}
    assert {patch.name for patch in sampler.grid()} == {"poor", "far", good.name}
    with pytest.raises(DataError, match=r"No image has 2 objects.*poor, far") as error:
        PatchSampler([poor, far], (1, 64, 64), min_instances=2)
    assert "--min-instances" in str(error.value.hint)


def test_small_objects_do_not_count() -> None:
    sample = squares((1, 90, 90), [(0, 5, 5), (0, 30, 30)], size=4)
    assert len(PatchSampler([sample], (1, 64, 64), min_instance_size=16))
    with pytest.raises(DataError):
        PatchSampler([sample], (1, 64, 64), min_instance_size=17)


@pytest.mark.parametrize("shape", [(1, 64, 64), (4, 64, 40), (1, 20, 64)])
def test_small_images_are_padded_with_background(shape: ZYX) -> None:
    sample = squares((1, 31, 50), [(0, 10, 10), (0, 20, 30)])
    image = np.where(np.asarray(sample.labels)[None] > 0, 9.0, 2.0).astype(np.float32)
    sample = Sample(name="small", image=image, labels=sample.labels)
    for patch in (
        PatchSampler([sample], shape, min_instances=1).patch(0),
        PatchGrid([sample], shape)[0],
    ):
        aligned(patch, sample)
        assert patch.labels.shape == shape and patch.image.shape == (1, *shape)
        np.testing.assert_array_equal(patch.image[0], np.where(patch.labels > 0, 9, 2))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(3, 60), st.integers(3, 60)),
    st.tuples(st.integers(1, 3), st.integers(5, 40), st.integers(5, 40)),
)
def test_the_grid_covers_everything(size: ZYX, shape: ZYX) -> None:
    sample = squares(size, [])
    seen = np.zeros(size, int)
    grid = PatchGrid([sample], shape)
    for patch in grid:
        aligned(patch, sample)
        there = [
            slice(max(a, 0), min(a + n, m))
            for a, n, m in zip(patch.corner, shape, size, strict=True)
        ]
        seen[tuple(there)] += 1
    assert seen.min() >= 1
    assert len(grid) == np.prod([-(-m // n) for m, n in zip(size, shape, strict=True)])


@pytest.mark.parametrize("bad", [-1, 1 << 32])
def test_patches_for_validation_refuse_labels_that_are_no_ids(bad: int) -> None:
    labels = np.zeros((1, 32, 32), np.int64)
    labels[0, 3, 4] = bad
    grid = PatchGrid([Sample(name="a", image=np.zeros((1, 1, 32, 32)), labels=labels)], (1, 32, 32))
    with pytest.raises(DataError, match=f"a: has the label {bad}"):
        grid[0]


def test_labels_must_be_there_and_fit() -> None:
    good = scattered(0)
    for labels, message in ((None, "odd has no labels"), (np.zeros((1, 9, 9), int), "odd: the")):
        odd = Sample(name="odd", image=good.image, labels=labels)
        with pytest.raises(DataError, match=message):
            PatchSampler([good, odd], (1, 64, 64))
        with pytest.raises(DataError, match=message):
            PatchGrid([odd], (1, 64, 64))


def test_a_patch_reads_a_patch() -> None:
    plain = scattered(0, (1, 500, 500), 200)
    image, labels = Lazy(np.asarray(plain.image)), Lazy(np.asarray(plain.labels))
    sample = Sample(name="lazy", image=image, labels=labels)
    sampler = PatchSampler([sample], (1, 64, 64), min_instances=2, cache=0)
    image.read = labels.read = 0
    for index in range(10):
        sampler.patch(index)
    assert image.read == 10 * 2 * 64 * 64
    assert labels.read <= 30 * 64 * 64


def test_memory_for_decoded_images_is_bounded() -> None:
    images = [Lazy(np.asarray(scattered(seed).image)) for seed in range(4)]
    samples = [
        Sample(name=str(i), image=image, labels=scattered(i).labels)
        for i, image in enumerate(images)
    ]
    each = images[0].array.nbytes + np.asarray(samples[0].labels).nbytes
    sampler = PatchSampler(samples, (1, 64, 64), cache=2 * each + 5)
    assert [image.read for image in images] == [images[0].array.size] * 2 + [0, 0]
    for index in range(40):
        sampler.patch(index)
    assert [image.read > image.array.size for image in images[:2]] == [False, False]
    assert all(image.read > 0 for image in images[2:])


def test_what_is_kept_cannot_be_spoilt() -> None:
    sampler = PatchSampler([scattered(0)], (1, 64, 64))
    before = sampler.patch(0)
    image, labels = before.image.copy(), before.labels.copy()
    before.image[:], before.labels[:] = -1, 0
    np.testing.assert_array_equal(sampler.patch(0).image, image)
    np.testing.assert_array_equal(sampler.patch(0).labels, labels)


def test_a_damaged_image_is_found_before_training() -> None:
    plain = scattered(0)
    image = np.asarray(plain.image).copy()
    image[0, 0, 140, 150] = np.nan
    sample = normalised(Sample(name="nan", image=image, labels=plain.labels), Normaliser())
    for cache in (0, 1 << 20):
        with pytest.raises(DataError, match="nan: 1 pixels"):
            PatchSampler([sample], (1, 64, 64), cache=cache)


def test_options_make_a_sampler() -> None:
    options = parse(PatchOptions, {"patch_size": 48, "patch_depth": 2, "min_instances": 3})
    sampler = PatchSampler.of([scattered(0, (3, 90, 90))], options, seed=1)
    assert sampler.shape == (2, 48, 48) and counted(sampler.patch(0), 25) >= 3
    with pytest.raises(ConfigError, match="--patch-size"):
        parse(PatchOptions, {"patch_size": 3})


def test_the_largest_crowd_is_counted() -> None:
    labels = np.zeros((1, 96, 96), np.uint32)
    for number, (y, x) in enumerate(itertools.product(range(5, 96, 16), repeat=2), 1):
        labels[0, y : y + 6, x : x + 6] = number
    crowded = Sample(name="crowd", image=np.zeros((1, 1, 96, 96), np.float32), labels=labels)
    lonely = Sample(name="lonely", image=crowded.image, labels=(labels == 8).astype(np.uint32))
    for side, wanted in ((48, 9), (96, 36), (128, 36)):
        assert PatchSampler([lonely, crowded], (1, side, side)).crowd() == wanted
        assert PatchSampler([lonely], (1, side, side)).crowd() == 1


def test_how_long_objects_are() -> None:
    labels = np.zeros((1, 64, 64), np.uint32)
    for number, length in enumerate(range(4, 14), 1):
        labels[0, 5 * number : 5 * number + 4, :length] = number
    sampler = PatchSampler(
        [Sample(name="bars", image=np.zeros((1, 1, 64, 64), np.float32), labels=labels)],
        (1, 64, 64),
        min_instance_size=1,
    )
    assert [sampler.extent(share) for share in (0.0, 0.5, 1.0)] == [4, 8, 13]


def test_real_images(real_data: Any) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder = real_data / "dsb2018_fluo"
    samples = []
    for path in itertools.islice(sorted((folder / "images").glob("*.tif")), 4):
        image, labels = tifffile.imread(path), tifffile.imread(folder / "labels" / path.name)
        raw = Sample(name=path.stem, image=image[None, None], labels=labels[None])
        samples.append(normalised(raw, Normaliser()))
    sampler = PatchSampler(samples, (1, 128, 128), min_instances=2)
    for index in range(20):
        assert counted(sampler.patch(index), 25) >= 2


def test_the_patches_are_pinned() -> None:
    """A resumed training sees the patches that come next, also with a new release."""
    samples = [scattered(1), scattered(2), scattered(3, (3, 90, 120), 12)]
    expected = [
        ("s3", (2, 4, 6)),
        ("s1", (0, 54, 69)),
        ("s3", (2, 4, 14)),
        ("s3", (2, 5, 8)),
        ("s3", (2, 24, 48)),
        ("s2", (0, 34, 52)),
    ]
    for weight in (1.0, 0.3):
        weighty = [replace(sample, weight=weight) for sample in samples]
        sampler = PatchSampler(weighty, (1, 64, 64), min_instance_size=10, seed=5)
        places = [(p.name, p.corner) for p in map(sampler.patch, range(6))]
        assert places == expected


def test_an_id_may_exceed_the_number_of_voxels():
    index = ObjectIndex.of(np.array([[[0, 34853, 5]]], np.uint32))
    assert dict(zip(index.ids.tolist(), index.sizes.tolist(), strict=True)) == {5: 1, 34853: 1}

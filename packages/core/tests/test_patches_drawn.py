"""Which patches are drawn: weights, classes, unknown labels; and what stays in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cellseg.augment import Augmentation
from cellseg.classes import SHIFT, UNKNOWN, encoded
from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.objects import ObjectIndex
from cellseg.options import parse
from cellseg.patches import PatchSampler, background, cut
from cellseg.sampling_options import AugmentOptions, PatchOptions


class Lazy:
    """Counts what is read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        self.read += self.array[key].size
        return self.array[key]


def scattered(seed: int) -> Sample:
    """Squares 1 to 25 in random places, on noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, 150, 170), np.uint16)
    for number, (y, x) in enumerate(rng.integers(0, (144, 164), (25, 2)), start=1):
        labels[0, y : y + 6, x : x + 6] = number
    return Sample(name=f"s{seed}", image=rng.random((1, *labels.shape), np.float32), labels=labels)


def drawn(sampler: PatchSampler, count: int) -> list[str]:
    return [sampler.patch(index).name for index in range(count)]


def test_samples_come_as_often_as_they_weigh() -> None:
    weights = {"s1": 1.0, "s2": 3.0, "s3": 0.0, "s4": 4.0}
    samples = [replace(scattered(i), weight=weights[f"s{i}"]) for i in range(1, 5)]
    sampler = PatchSampler(samples, (1, 64, 64), seed=3)
    names = drawn(sampler, 800)
    assert {patch.name for patch in sampler.grid()} == set(names) == {"s1", "s2", "s4"}
    for name, weight in weights.items():
        assert abs(names.count(name) - 100 * weight) < 60, name
    again = PatchSampler(samples, (1, 64, 64), seed=3)
    assert drawn(again, 20) == names[:20]


def test_weights_that_make_no_sense_are_refused() -> None:
    for weight in (-1.0, float("nan")):
        with pytest.raises(DataError, match="s2 has the weight"):
            PatchSampler([scattered(1), replace(scattered(2), weight=weight)], (1, 64, 64))


def classed(neurons: int = 200, clefts: int = 2, name: str = "em") -> Sample:
    """Many objects of class 1, few of class 2, in voxels of 20 x 20, and some that are unknown."""
    rng = np.random.default_rng(0)
    side = 20 * 16
    cells = rng.permutation(16 * 16)[: neurons + clefts]
    ids, kinds = np.zeros(16 * 16, np.int64), np.zeros(16 * 16, np.int64)
    ids[cells] = np.arange(1, len(cells) + 1)
    kinds[cells] = 1
    kinds[cells[:clefts]] = 2
    labels = np.kron(ids.reshape(16, 16), np.ones((20, 20), np.int64))[None]
    kinds = np.kron(kinds.reshape(16, 16), np.ones((20, 20), np.int64))[None]
    coded = np.where(kinds == 2, encoded(labels, 2), encoded(labels, 1)).astype(np.uint32)
    coded[0, :, side - 20 :] = UNKNOWN
    image = rng.random((1, 1, side, side), np.float32)
    return Sample(name=name, image=image, labels=coded, classes=("background", "neuron", "cleft"))


def clefts_seen(sampler: PatchSampler, count: int = 60) -> int:
    patches = [sampler.patch(index) for index in range(count)]
    return sum(bool(((p.labels >> SHIFT) == 2).any()) for p in patches)


def test_rare_classes_are_seen_as_often_as_others() -> None:
    sample = classed()
    balanced = PatchSampler([sample], (1, 20, 20), min_instance_size=10)
    anyhow = PatchSampler([sample], (1, 20, 20), min_instance_size=10, balance_classes=False)
    assert 20 < clefts_seen(balanced) < 45
    assert clefts_seen(anyhow) < 10
    assert ((balanced.patch(0).labels >> SHIFT).max()) in (1, 2)


def test_balancing_does_nothing_with_one_class() -> None:
    plain = scattered(0)
    one = Sample(
        name="s0",
        image=plain.image,
        labels=encoded(np.asarray(plain.labels), 2),
        classes=("background", "a", "b"),
    )
    samplers = [PatchSampler([sample], (1, 64, 64)) for sample in (plain, one)]
    for index in range(10):
        first, second = (sampler.patch(index) for sampler in samplers)
        assert first.corner == second.corner
        np.testing.assert_array_equal(encoded(first.labels, 2), second.labels)


def test_classes_need_names() -> None:
    sample = replace(classed(), classes=("background", "neuron"))
    with pytest.raises(DataError, match="em has objects of class 2, but its classes end at 1"):
        PatchSampler([sample], (1, 64, 64))


def test_what_is_not_known_is_no_object_and_no_background() -> None:
    labels = np.zeros((1, 40, 40), np.uint32)
    labels[0, :20, :20], labels[0, 20:] = UNKNOWN, UNKNOWN
    image = np.where(labels == UNKNOWN, 100.0, 2.0).astype(np.float32)[None]
    sample = Sample(name="half", image=image, labels=labels)
    assert len(ObjectIndex.of(labels)) == 0
    with pytest.raises(DataError, match="No image has 1 objects"):
        PatchSampler([sample], (1, 16, 16))
    assert background(image, labels).tolist() == [2.0]
    patch = cut(sample, (0, -5, -5), (1, 50, 50))
    np.testing.assert_array_equal(patch.image[0, 0, :5], 2.0)
    assert (patch.labels == UNKNOWN).sum() == (labels == UNKNOWN).sum()
    labels[labels == 0] = 3
    assert ObjectIndex.of(labels).ids.tolist() == [3]
    assert background(image, labels).tolist() == [2.0], "where nothing is background: the minimum"


def test_augmentation_keeps_the_largest_ids() -> None:
    options = AugmentOptions(affine_probability=1, elastic_probability=1)
    labels = np.asarray(classed().labels)[:, :64, :64].copy()
    labels[0, :20] = UNKNOWN
    image = np.ones((1, *labels.shape), np.float32)
    _, moved = Augmentation(options)(image, labels, np.random.default_rng(0))
    assert moved.dtype == np.uint32
    assert UNKNOWN in moved and set(np.unique(moved)) <= {*np.unique(labels), 0}


def test_large_plain_ids_do_not_look_like_classes() -> None:
    plain = scattered(0)
    large = np.asarray(plain.labels).astype(np.uint32) * 50_000_000
    samples = [replace(plain, labels=labels) for labels in (plain.labels, large)]
    samplers = [PatchSampler([sample], (1, 64, 64)) for sample in samples]
    for index in range(8):
        small, patch = (sampler.patch(index) for sampler in samplers)
        assert small.corner == patch.corner and int(patch.labels.max()) < 1 << SHIFT
        np.testing.assert_array_equal(small.labels > 0, patch.labels > 0)
        pairs = set(zip(small.labels.ravel().tolist(), patch.labels.ravel().tolist(), strict=True))
        assert len(pairs) == len(np.unique(small.labels)) == len(np.unique(patch.labels))


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 0), (0.3, 2), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_a_share_of_the_images_is_kept_in_memory(rate: float, kept: int) -> None:
    images = [Lazy(np.asarray(scattered(seed).image)) for seed in range(4)]
    samples = [
        Sample(name=str(i), image=image, labels=scattered(i).labels)
        for i, image in enumerate(images)
    ]
    sampler = PatchSampler(samples, (1, 64, 64), cache=1, cache_rate=rate)
    assert [image.read > 0 for image in images] == [i < kept for i in range(4)]
    for index in range(30):
        sampler.patch(index)
    for image in images[:kept]:
        assert image.read == image.array.size, "read once"
    assert all(image.read > 0 for image in images[kept:])


def test_shares_of_the_images_are_not_rounded_up_by_chance() -> None:
    images = [Lazy(np.zeros((1, 1, 20, 20), np.float32)) for _ in range(100)]
    labels = np.ones((1, 20, 20), np.uint8)
    samples = [Sample(name=str(i), image=image, labels=labels) for i, image in enumerate(images)]
    PatchSampler(samples, (1, 16, 16), cache_rate=0.07)
    assert sum(image.read > 0 for image in images) == 7


def test_two_ways_to_cache_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--cache and --cache-rate exclude"):
        parse(PatchOptions, {"cache": 100, "cache_rate": 0.5})
    with pytest.raises(ConfigError, match="--cache-rate"):
        parse(PatchOptions, {"cache_rate": 1.5})
    assert parse(PatchOptions, {"cache": 512, "cache_rate": 0.5}).cache_rate == 0.5

    class Small(PatchOptions):
        cache: int = 0
        """Another default."""

    assert parse(Small, {"cache_rate": 1}).cache == 0
    options = parse(PatchOptions, {"cache_rate": 1, "balance_classes": False})
    image = Lazy(np.asarray(scattered(0).image))
    PatchSampler.of([replace(scattered(0), image=image)], options, seed=0)
    assert image.read == image.array.size

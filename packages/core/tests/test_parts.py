from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.normalise import Normaliser, normalised
from cellseg.parts import Crop, blocks, place
from cellseg.patches import PatchSampler
from cellseg.sampling_options import NormaliseOptions

SHAPE = (12, 30, 40)


def volume(name: str = "v", shape: tuple[int, int, int] = SHAPE) -> Sample:
    image = np.arange(2 * np.prod(shape), dtype=np.uint16).reshape(2, *shape)
    labels = np.zeros(shape, np.uint16)
    labels[:, ::10, ::10], labels[:, 1::10, ::10] = 3, 3
    return Sample(name=name, image=image, labels=labels, classes=("background", "cell"), weight=2)


def part(name: str, sample: Sample, split: str = "train") -> Sample:
    here = place(name, {sample.name: sample})
    assert here is not None
    return here.cut(split)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crop_is_what_slicing_gives(axis: int) -> None:
    array = np.random.default_rng(0).integers(0, 99, (2, *SHAPE))
    crop = pickle.loads(pickle.dumps(Crop(array, axis, 3, 10)))
    here: list[slice] = [slice(None)] * 4
    here[axis + 1] = slice(3, 10)
    expected = array[tuple(here)]
    assert crop.shape == expected.shape and crop.dtype == array.dtype
    for key in (
        (slice(0, 2), slice(0, 7), slice(0, 7), slice(0, 7)),
        (slice(1, 2), slice(2, 5), slice(1, 4), slice(4, 6)),
    ):
        np.testing.assert_array_equal(crop[key], expected[key])


def test_a_crop_tells_what_its_array_tells() -> None:
    class Stored:
        shape, dtype, chunks, where = SHAPE, np.dtype(np.uint8), (4, 8, 8), "a.h5"

        def __getitem__(self, key: Any) -> Any:
            return np.zeros(self.shape, self.dtype)[key]

    crop = Crop(Stored(), 0, 2, 8)
    assert crop.chunks == (4, 8, 8) and crop.where == "a.h5"
    assert getattr(Crop(np.zeros(SHAPE), 0, 2, 8), "chunks", None) is None
    with pytest.raises(TypeError, match="step 1"):
        crop[slice(0, 6, 2), slice(0, 4), slice(0, 4)]


def test_a_part_is_a_sample_of_its_own() -> None:
    whole = volume()
    cut = part("v[y:5-24]", whole, "val")
    assert cut.name == "v[y:5-24]" and cut.split == "val" and cut.group == "v"
    assert cut.classes == whole.classes and cut.weight == 2
    assert cut.image.shape == (2, 12, 20, 40) and cut.labels is not None
    assert cut.labels.shape == (12, 20, 40)
    key = (slice(0, 12), slice(0, 20), slice(0, 40))
    np.testing.assert_array_equal(cut.image[slice(0, 2), *key], np.asarray(whole.image)[:, :, 5:25])
    np.testing.assert_array_equal(cut.labels[key], np.asarray(whole.labels)[:, 5:25])


def test_names_that_look_like_parts() -> None:
    odd = volume("v[z:0-3]")
    assert place("v[z:0-3]", {"v[z:0-3]": odd, "v": volume()}) is not None
    assert part("v[z:0-3]", odd) is odd
    assert part("v[z:0-3][x:2-4]", odd).image.shape == (2, 12, 30, 3)
    for name in ("w[z:0-3]", "v[c:0-3]", "v[z:0:3]", "w"):
        assert place(name, {"v": volume()}) is None


@pytest.mark.parametrize("name", ["v[z:0-12]", "v[y:30-31]", "v[x:7-6]"])
def test_parts_beyond_the_image_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"there is no such part: v has the voxels 0 to"):
        place(name, {"v": volume()})


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from(["auto", "z", "y", "x"]),
    st.floats(0.05, 0.9),
    st.integers(0, 20),
)
def test_blocks_and_their_gap_make_the_whole(
    shape: tuple[int, int, int], axis: Any, fraction: float, gap: int
) -> None:
    sample = Sample(name="v", image=np.zeros((1, *shape), np.uint8))
    length = max(shape) if axis == "auto" else shape["zyx".index(axis)]
    try:
        [(kept, held)] = blocks([sample], axis, fraction, gap)
    except DataError as error:
        assert length - max(round(fraction * length), 1) - gap < 1
        assert f"{length} voxels" in str(error) and "--val-gap" in str(error.hint)
        return
    assert kept.start == 0 and held.stop == length and kept.stop is not None
    assert held.start - kept.stop == gap and kept.stop > 0
    assert held.stop - held.start == max(round(fraction * length), 1)
    assert kept.axis == held.axis
    assert place(kept.name, {"v": sample}) == kept and place(held.name, {"v": sample}) == held


def test_auto_cuts_across_the_longest_axis() -> None:
    samples = [volume("a"), volume("b", (50, 30, 50)), volume("c", (1, 64, 20))]
    names = [kept.name for kept, _ in blocks(samples, "auto", 0.25, 4)]
    assert names == ["a[x:0-25]", "b[z:0-33]", "c[y:0-43]"]


def test_a_part_is_normalised_with_the_whole_as_in_prediction() -> None:
    whole, normaliser = volume(), Normaliser()
    expected = normalised(whole, normaliser)
    cut = normalised(part("v[z:0-3]", whole), normaliser)
    key = (slice(0, 2), slice(0, 4), slice(0, 30), slice(0, 40))
    np.testing.assert_array_equal(cut.image[key], expected.image[key])
    alone = normalised(Sample(name="v", image=np.asarray(whole.image)[:, :4]), normaliser)
    assert not np.allclose(alone.image[key], cut.image[key])
    for cache in (0, 1 << 20):
        patch = PatchSampler([cut], (4, 30, 40), min_instance_size=1, cache=cache).patch(0)
        np.testing.assert_array_equal(patch.image, expected.image[key])


def test_statistics_of_a_data_set_are_those_of_the_training_parts() -> None:
    whole = volume()
    options = NormaliseOptions(normalise="min-max", normalise_scope="dataset")
    found = Normaliser.fit(options, [part("v[z:0-3]", whole)]).dataset
    assert found is not None
    width = 4 * 30 * 40 - 1
    np.testing.assert_allclose(found.scale, [1 / width] * 2)

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg.checks.blocks import blocks
from cellseg.checks.images import measure_image
from cellseg.checks.labels import measure_labels
from cellseg.data import ZYX

SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))


@given(SHAPES, st.integers(1, 300))
def test_blocks_cover_once(shape: ZYX, budget: int) -> None:
    seen = np.zeros(shape, int)
    for block in blocks(shape, budget):
        seen[block] += 1
        assert seen[block].size <= max(budget, 16) or seen[block].size <= budget + 16
    assert (seen == 1).all()


@settings(max_examples=200)
@given(
    SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 3))),
    st.integers(1, 200),
)
def test_pieces_do_not_depend_on_blocks(labels: np.ndarray, budget: int) -> None:
    found = measure_labels(labels, budget)
    parts, count = cc3d.connected_components(labels, connectivity=26, return_N=True)
    values = [int(labels[parts == i][0]) for i in range(1, count + 1)]
    sizes = [int((parts == i).sum()) for i in range(1, count + 1)]
    told = zip(found.ids[found.piece_ids].tolist(), found.piece_sizes.tolist(), strict=True)
    assert sorted(told) == sorted(zip(values, sizes, strict=True))
    assert found.ids.tolist() == sorted(set(values))
    for i, value in enumerate(found.ids):
        assert found.sizes[i] == (labels == value).sum()
        assert found.pieces[i] == values.count(int(value))
        own = [p for p in range(1, count + 1) if values[p - 1] == value]
        biggest = max(sizes[p - 1] for p in own)
        boxes = [np.argwhere(parts == p) for p in own if sizes[p - 1] == biggest]
        extents = [tuple(np.ptp(box, axis=0) + 1) for box in boxes]
        assert tuple(found.extents[i]) in extents


def test_the_rim_counts_only_along_real_axes() -> None:
    labels = np.zeros((1, 9, 9), np.int16)
    labels[0, 3:5, 3:5] = 4
    labels[0, 7:, 2] = 9
    found = measure_labels(labels)
    assert found.ids.tolist() == [4, 9] and found.at_rim.tolist() == [False, True]
    deep = np.repeat(labels, 3, axis=0)
    assert measure_labels(deep).at_rim.tolist() == [True, True]


def test_empty_labels() -> None:
    found = measure_labels(np.zeros((2, 5, 5), np.uint32), 10)
    assert found.ids.size == found.piece_sizes.size == 0 and found.extents.shape == (0, 3)


@settings(max_examples=100)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 18), SHAPES, SHAPES).map(
        lambda s: (s[0], s[1], s[2][1], s[3][2])
    )),
    st.integers(1, 200),
    st.integers(0, 9),
)  # fmt: skip
def test_images_are_measured_as_if_whole(image: np.ndarray, budget: int, seed: int) -> None:
    inside = np.random.default_rng(seed).random(image.shape[1:]) < 0.5
    found = measure_image(image, inside.astype(np.uint8), budget)
    for channel, pixels in zip(found.channels, image, strict=True):
        assert (channel.low, channel.high) == (pixels.min(), pixels.max())
        assert channel.at_high == pytest.approx((pixels == pixels.max()).mean())
        assert channel.constant == (np.ptp(pixels) == 0)


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    image = np.arange(48, dtype=np.float32).reshape(1, 1, 6, 8)
    image[0, 0, 0, 3], image[0, 0, 5, 5] = np.nan, np.inf
    (channel,) = measure_image(image, np.ones((1, 6, 8), np.uint8), 10).channels
    assert (channel.not_finite, channel.low, channel.high) == (2, 0.0, 47.0)
    (channel,) = measure_image(np.full((1, 1, 2, 2), np.nan, np.float32)).channels
    assert channel.not_finite == 4 and channel.constant


def test_contrast_is_that_of_objects_and_their_rim() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(100.0, 10.0, (2, 2, 40, 40))
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[1, 10:20, 12:22] = 1
    rim = np.zeros(labels.shape, bool)
    rim[1, 3:27, 5:29] = True
    rim &= labels == 0
    image[:, 1, 10:20, 12:22] += 7
    image[:, :, :, 30:] += 500
    for channel, pixels in zip(measure_image(image, labels).channels, image, strict=True):
        inside, around = pixels[labels > 0], pixels[rim]
        spread = np.concatenate([inside, around]).std()
        assert channel.contrast == pytest.approx((inside.mean() - around.mean()) / spread)


def test_polarity() -> None:
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, 5:12, 5:12] = 1
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 1, 20, 20))
    for image, polarity in ((labels, "bright"), (1.0 - labels, "dark"), (labels * 0, "unclear")):
        assert measure_image(image + noise, labels).channels[0].polarity == polarity


def test_a_fingerprint_is_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (2, 3, 40, 50), np.uint8)
    other = image.copy()
    other[1, 2, 39, 49] ^= 1
    prints = [
        measure_image(a).fingerprint
        for a in (image, image.copy(order="F"), other, image.astype(np.uint16), image[:, ::-1])
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 4

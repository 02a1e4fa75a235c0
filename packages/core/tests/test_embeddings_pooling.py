"""Pooling equals what the voxels say one by one, for any grid, tiling and shape of objects."""

from __future__ import annotations

import embedding_fakes as fakes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import cellseg as cs
from cellseg.data import Tiling
from cellseg.embeddings.describe import Describer
from cellseg.embeddings.pooling import Moments, overlap, rows_of
from cellseg.embeddings.run import Embedded, Embedding, Failure
from cellseg.embeddings.units import Unit, ahead, grouped, read_units
from cellseg.engine.plan import Plan
from cellseg.normalise import Normaliser


def embedded(
    image: NDArray[np.float32],
    labels: NDArray[np.integer],
    plan: Plan,
    options: fakes.LookOptions,
    *,
    batch: int = 1,
    most: int | None = None,
    seed: int = 42,
) -> tuple[Embedded | None, list[Failure]]:
    done: list[Embedded] = []
    failures: list[Failure] = []
    unit = Unit(0, "image", None, cs.Sample(name="image", image=image), labels, plan)
    embed = fakes.load_look(cs.PredictJob(options=options, device="cpu"))
    embedding = Embedding(
        Describer(embed, "look"),
        True,
        done=lambda unit, found: done.append(found),
        failed=failures.append,
        seen=lambda unit, tile: None,
    )
    arrivals = read_units([unit], Normaliser(method="none"), most, seed, embedding.given_up)
    for group in grouped(ahead(arrivals), batch):
        embedding.take(group)
    return (done[0] if done else None), failures


def scene(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Noise, and boxes of any size as objects; later ones cover earlier ones."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    labels = np.zeros(shape, np.uint32)
    for name in rng.choice(10**6, rng.integers(0, 9), replace=False):
        low = [rng.integers(0, n) for n in shape]
        high = [rng.integers(a, n) + 1 for a, n in zip(low, shape, strict=True)]
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = name + 1
    return image, labels


lengths = st.integers(1, 40)
steps = st.one_of(st.integers(1, 9).map(float), st.floats(0.3, 20))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 6), lengths, lengths),
    step=st.tuples(steps, steps, steps),
    core=st.tuples(st.integers(1, 6), st.integers(4, 40), st.integers(4, 40)),
    halo=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)),
    padding=st.integers(0, 2),
    volumetric=st.booleans(),
    batch=st.integers(1, 3),
)
@example(3, (1, 30, 17), (1.0, 16.0, 16.0), (1, 8, 8), (0, 4, 4), 1, False, 2)
def test_pooled_over_tiles_is_what_the_voxels_say(
    seed, shape, step, core, halo, padding, volumetric, batch
):
    image, labels = scene(seed, shape)
    options = fakes.LookOptions(steps=step, padding=padding)
    plan = Plan.cut(shape, Tiling(core, halo), volumetric)
    wanted = fakes.oracle(image, labels, plan, options)
    found, failures = embedded(image, labels, plan, options, batch=batch)
    assert not failures
    assert found is not None
    assert found.ids.tolist() == sorted(wanted)
    for row, name in enumerate(found.ids.tolist()):
        mean, deviation, highest = wanted[name]
        np.testing.assert_allclose(found.mean[row], mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.deviation[row], deviation, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.highest[row], highest.astype(np.float32))
        places = np.argwhere(labels == name)
        assert found.area[row] == len(places)
        np.testing.assert_allclose(found.centroid[row], places.mean(0), atol=1e-9)
        np.testing.assert_array_equal(found.low[row], places.min(0))
        np.testing.assert_array_equal(found.high[row], places.max(0) + 1)


def test_a_tile_that_is_not_square_is_pooled_where_it_is():
    """Labels squeezed onto a square grid would take the vectors of other cells."""
    image = np.zeros((1, 1, 32, 96), np.float32)
    labels = np.zeros((1, 32, 96), np.uint16)
    labels[0, 20:26, 70:78] = 5
    image[0][labels == 5] = 1
    options = fakes.LookOptions(steps=(1.0, 2.0, 2.0), padding=32)
    found, _ = embedded(image, labels, Plan((1, 32, 96), (1, 32, 96), (0, 0, 0)), options)
    assert found is not None
    assert found.mean[0].tolist() == [1, 11, 36.5, 1]


def test_a_single_voxel_has_the_vector_of_its_cell():
    image, labels = scene(1, (1, 40, 40))
    labels[:] = 0
    labels[0, 39, 39] = 7
    options = fakes.LookOptions(steps=(1.0, 16.0, 16.0))
    found, _ = embedded(image, labels, Plan((1, 40, 40), (1, 40, 40), (0, 0, 0)), options)
    assert found is not None
    cell = image[0, 0, 32:, 32:].mean()
    np.testing.assert_allclose(found.mean[0], [cell, 2, 2, 1], rtol=1e-6)
    np.testing.assert_array_equal(found.mean[0], found.highest[0])
    assert not found.deviation.any()


@pytest.mark.parametrize("offset", [0.0, 1e4, -3e7])
def test_far_from_zero_no_digit_is_lost(offset):
    """The textbook formula, squares minus the square of the mean, gives noise there."""
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(3, 500)) * 8 + offset).astype(np.float32)
    moments = Moments(2, 3, True)
    naive = np.zeros((2, 3))
    voxels: list[list[NDArray[np.float64]]] = [[], []]
    for part in np.split(np.arange(500), 10):
        labels = rng.integers(0, 3, (1, 8, len(part))).astype(np.uint32)
        rows = rows_of(labels, np.array([1, 2], np.uint32))
        cells = (np.zeros(1, np.int64), np.zeros(8, np.int64), part)
        found = overlap(rows, cells, (1, 1, 500))
        moments.add(found, vectors[:, found.cells])
        for row in (0, 1):
            voxels[row] += [vectors[:, part[x]].astype(float) for *_, x in np.argwhere(rows == row)]
            chosen = vectors[:, part][:, np.nonzero(rows == row)[2]]
            naive[row] += (chosen**2).sum(1) - chosen.mean(1) ** 2 * chosen.shape[1]
    deviation = moments.deviation()
    for row in (0, 1):
        every = np.array(voxels[row])
        assert moments.count[row] == len(every)
        np.testing.assert_allclose(moments.mean[row], every.mean(0), rtol=1e-14)
        np.testing.assert_allclose(deviation[row], every.std(0), rtol=1e-9)
        np.testing.assert_array_equal(moments.highest[row], every.max(0).astype(np.float32))
    if offset:
        lost = np.sqrt(np.abs(naive / moments.count[:, None]))
        assert np.abs(lost / deviation - 1).max() > 0.01, "the naive way is no worse"


def test_few_channels_at_once_change_nothing(monkeypatch):
    image, labels = scene(4, (2, 30, 30))
    plan = Plan((2, 30, 30), (1, 16, 16), (0, 4, 4))
    options = fakes.LookOptions(steps=(1.0, 3.0, 3.0))
    once, _ = embedded(image, labels, plan, options)
    monkeypatch.setattr("cellseg.embeddings.pooling._NUMBERS", 1)
    again, _ = embedded(image, labels, plan, options)
    assert once is not None
    assert again is not None
    for name in ("mean", "deviation", "highest"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))


def test_a_draw_keeps_the_vectors_and_depends_on_the_seed():
    image, labels = scene(4, (1, 40, 40))
    labels = (np.arange(1600).reshape(1, 40, 40) // 40 + 1).astype(np.int64)
    plan = Plan((1, 40, 40), (1, 16, 16), (0, 4, 4))
    options = fakes.LookOptions()
    every, _ = embedded(image, labels, plan, options)
    some, _ = embedded(image, labels, plan, options, most=7)
    same, _ = embedded(image, labels, plan, options, most=7)
    other, _ = embedded(image, labels, plan, options, most=7, seed=1)
    assert every is not None and some is not None and same is not None and other is not None
    assert (len(every), len(some), some.found) == (40, 7, 40)
    assert some.ids.tolist() == same.ids.tolist() == sorted(some.ids.tolist())
    assert some.ids.tolist() != other.ids.tolist()
    np.testing.assert_array_equal(some.mean, every.mean[np.isin(every.ids, some.ids)])


def test_tiles_without_objects_are_not_described():
    image, labels = np.zeros((1, 1, 64, 64), np.float32), np.zeros((1, 64, 64), np.uint8)
    labels[0, 40:44, 40:44] = 1
    labels[0, :, 63] = 2  # its bounding box meets the tile at the upper right only there
    fakes.CALLS.clear()
    plan = Plan((1, 64, 64), (1, 16, 16), (0, 0, 0))
    embedded(image, labels, plan, fakes.LookOptions())
    assert len(fakes.CALLS) == 1 + 4


def test_unknown_voxels_are_no_object():
    image, labels = np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 8, 8), np.uint32)
    labels[0, :4] = 0xFFFFFFFF
    labels[0, 6] = 3
    found, _ = embedded(image, labels, Plan((1, 8, 8), (1, 8, 8), (0, 0, 0)), fakes.LookOptions())
    assert found is not None
    assert found.ids.tolist() == [3]


def test_negative_labels_are_an_error_of_the_image():
    image, labels = np.zeros((1, 1, 8, 8), np.float32), np.full((1, 8, 8), -1)
    plan = Plan((1, 8, 8), (1, 8, 8), (0, 0, 0))
    found, failures = embedded(image, labels, plan, fakes.LookOptions())
    assert found is None
    assert "has the label -1" in failures[0].reason
    assert failures[0].data

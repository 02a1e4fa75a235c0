"""Clips of movies: where they lie, what they show, and how they are augmented."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.tracks import Lineage, Track
from cellseg_cellsam2.augmenting import ClipAugmentation
from cellseg_cellsam2.clips import ClipGrid, ClipSampler
from cellseg_cellsam2.movies import movies_of
from cellseg_cellsam2.options import CellSam2Options

SIDE = 64
LINEAGE = Lineage.of(
    [Track(7, 0, 9), Track(40000, 2, 5), Track(8, 6, 9, 40000), Track(9, 6, 9, 40000)]
)


def frames(
    count: int = 10, shape: tuple[int, int, int] = (1, 100, 120), name: str = "movie"
) -> list[Sample]:
    """Track 7 stays; 40000 lives from 2 to 5 and divides into 8 and 9."""
    samples = []
    for t in range(count):
        labels = np.zeros(shape, np.uint32)
        if shape[1] >= 50:
            labels[-1, 10:18, 10:18] = 7
            if 2 <= t <= 5:
                labels[-1, 80:90, 90:100] = 40000
            if t >= 6:
                labels[-1, 80:90, 88:93], labels[-1, 80:90, 97:102] = 8, 9
        image = (labels > 0).astype(np.float32)[None] + t / 100
        samples.append(
            Sample(
                name=f"{name}/{t}",
                image=image,
                labels=labels,
                source=name,
                frame=t,
                tracks=LINEAGE,
            )
        )
    return samples


def sampler(samples: list[Sample], **changes: Any) -> ClipSampler:
    return ClipSampler(samples, **{"length": 3, "side": SIDE, **changes})


def test_a_clip_is_a_function_of_seed_and_number() -> None:
    one, other = sampler(frames()), sampler(frames(), cache=0)
    for index in (0, 5, 1000):
        a, b = one.clip(index), other.clip(index)
        assert np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
    different = [sampler(frames(), seed=1).clip(index).first for index in range(20)]
    assert different != [one.clip(index).first for index in range(20)]


def test_frames_follow_each_other_and_keep_their_ids() -> None:
    for index in range(20):
        clip = sampler(frames()).clip(index)
        assert clip.images.shape == (1, 3, SIDE, SIDE) and clip.labels.shape == (3, SIDE, SIDE)
        shown = clip.images.min(axis=(0, 2, 3))
        assert np.allclose(shown, (clip.first + np.arange(3)) / 100)
        assert set(np.unique(clip.labels)) <= {0, 7, 8, 9, 40000}
        assert clip.labels.any() and clip.lineage is LINEAGE
        last = int(clip.name.rpartition("/")[2])
        assert last == clip.first


def test_all_frames_that_a_clip_can_begin_with_are_drawn() -> None:
    drawn = sampler(frames())
    assert len(drawn) == 8 and drawn.divisions == 2
    assert {drawn.clip(index).first for index in range(60)} == set(range(8))


def test_some_clips_are_chosen_for_their_divisions() -> None:
    every = sampler(frames(), division_share=1.0)
    for index in range(20):
        clip = every.clip(index)
        assert clip.first in (4, 5)
        at = 5 - clip.first
        assert np.count_nonzero(clip.labels[at] == 40000) == 100, "the whole mother is in view"
    none = [Sample(name="a", image=np.zeros((1, 1, 64, 64)), labels=np.ones((1, 64, 64), np.uint8))]
    assert sampler(none, length=1, division_share=1.0).clip(3).labels.all()


def test_an_empty_first_frame_and_an_empty_movie() -> None:
    samples = frames()
    empty = [replace(one, labels=np.zeros_like(one.labels)) for one in samples[:3]]
    late = sampler([*empty[:2], *samples[2:]], least=50)
    clips = [late.clip(index) for index in range(40)]
    assert all(clip.labels.any() for clip in clips)
    assert any(not clip.labels[0].any() for clip in clips)
    assert not sampler(empty).clip(0).labels.any()


def test_movies_are_cut_where_frames_are_missing() -> None:
    samples = frames()
    del samples[3]
    movies = movies_of(samples[::-1], 3)
    assert [[one.frame for one in movie.frames] for movie in movies] == [
        [0, 1, 2],
        [4, 5, 6, 7, 8, 9],
    ]
    assert movies[1].births == {2: (40000,)}, "counted from the first frame of the run"
    assert sampler([*samples[:2], *samples[3:]]).skipped == ("movie/0", "movie/1")
    with pytest.raises(DataError, match="No movie has 30 frames"):
        sampler(samples, length=30)


def test_a_single_daughter_and_one_after_a_gap_are_no_division() -> None:
    tracks = [
        Track(1, 0, 2),
        Track(2, 3, 9, 1),
        Track(3, 0, 2),
        Track(4, 4, 9, 3),
        Track(5, 4, 9, 3),
    ]
    samples = [replace(one, tracks=Lineage.of(tracks)) for one in frames()]
    assert sampler(samples).divisions == 0


def test_clips_of_several_frames_need_tracks() -> None:
    still = Sample(name="still", image=np.zeros((1, 1, 64, 64)), labels=np.zeros((1, 64, 64)))
    with pytest.raises(ConfigError, match="still is a still image") as error:
        sampler([*frames(), still])
    assert "--num-frames 1" in str(error.value.hint)
    with pytest.raises(ConfigError, match="movie/0 has no tracks"):
        sampler([replace(one, tracks=None) for one in frames()])
    assert sampler([*frames(), still], length=1).clip(0).labels.shape == (1, SIDE, SIDE)


def test_frames_that_cannot_be_are_refused() -> None:
    samples = frames()
    with pytest.raises(DataError, match="both frame 0"):
        sampler([*samples, replace(samples[0], name="again")])
    large = Lineage.of([Track(1 << 28, 0, 9)])
    with pytest.raises(DataError, match="has the track 268435456"):
        sampler([replace(one, tracks=large) for one in samples])
    with pytest.raises(DataError, match="has no labels"):
        sampler([replace(samples[0], labels=None)])


def test_of_a_volume_one_plane_with_an_object_is_shown() -> None:
    deep = sampler(frames(shape=(4, 100, 120)))
    assert all(deep.clip(index).labels.any() for index in range(10))
    assert deep.clip(0).images.shape == (1, 3, SIDE, SIDE)


def test_small_images_are_padded() -> None:
    clip = sampler(frames(shape=(1, 50, 52))).clip(0)
    assert clip.labels.shape == (3, SIDE, SIDE) and not clip.labels[:, :6].any()


def test_samples_are_drawn_as_often_as_their_weight_says() -> None:
    both = [*frames(), *[replace(one, weight=0.0) for one in frames(name="other")]]
    heavy = [*frames(), *[replace(one, weight=9.0) for one in frames(name="other")]]
    assert len(sampler(both)) == 8
    drawn = [sampler(heavy).clip(index).name for index in range(50)]
    assert sum(name.startswith("other") for name in drawn) > 35


def test_validation_covers_movies() -> None:
    grid = ClipGrid(frames(), length=3, side=SIDE)
    assert len(grid) == 3 * 4
    assert [grid[4 * i].first for i in range(3)] == [0, 3, 6]
    seen = sum(np.count_nonzero(clip.labels[0] == 7) for clip in grid[:4])
    assert seen >= 64
    with pytest.raises(DataError, match="to validate on"):
        ClipGrid(frames(2), length=3, side=SIDE)


def augmented(index: int, **changes: Any) -> tuple[Any, Any, Any]:
    options = CellSam2Options(
        **{
            "affine_probability": 0,
            "elastic_probability": 0,
            "blur_probability": 0,
            "noise_probability": 0,
            "brightness_probability": 0,
            "contrast_probability": 0,
            "gamma_probability": 0,
            "illumination_probability": 0,
            **changes,
        }
    )
    clip = sampler(frames()).clip(index)
    images, labels = ClipAugmentation(options)(
        clip.images, clip.labels, np.random.default_rng(index)
    )
    return clip, images, labels


def test_time_is_never_turned() -> None:
    turned = 0
    for index in range(24):
        clip, images, labels = augmented(index, flip_probability=1.0, rotate90_probability=0)
        assert np.allclose(images.min(axis=(0, 2, 3)), clip.images.min(axis=(0, 2, 3)))
        assert np.array_equal(images[0] > 0.5, labels > 0), "image and labels move together"
        turned += not np.array_equal(labels, clip.labels)
    assert turned > 20


def test_all_frames_undergo_the_same_change() -> None:
    options = CellSam2Options(affine_probability=1, elastic_probability=1)
    plane = np.random.default_rng(0).random((1, 1, 64, 64), np.float32)
    still = np.zeros((3, 64, 64), np.uint32)
    still[:, 20:40, 10:50] = 1
    calm = options.model_copy(update={"noise_probability": 0.0, "gain_noise_probability": 0.0})
    images, labels = ClipAugmentation(calm)(
        np.repeat(plane, 3, axis=1), still, np.random.default_rng(3)
    )
    assert np.array_equal(labels[0], labels[1]) and np.array_equal(labels[0], labels[2])
    assert np.allclose(images[:, 0], images[:, 1]) and not np.allclose(images[0, 0], plane[0, 0])


def test_uneven_light_is_smooth_and_bounded() -> None:
    options = {"illumination_probability": 1, "illumination_range": 0.3, "flip_probability": 0}
    clip, images, labels = augmented(0, **options, rotate90_probability=0)
    assert np.array_equal(labels, clip.labels)
    low = clip.images.min()
    bright = clip.images[0] > 0.5
    factors = (images[0][bright] - low) / (clip.images[0][bright] - low)
    assert factors.min() >= 0.69 and factors.max() <= 1.31 and np.ptp(factors) > 0.001

"""The conformance tests of trackers: part of ``cellseg.testing.BackendTests``, and skipped by
backends that only segment."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cellseg.data import Sample, Tile, Tracked
from cellseg.specs import PredictJob, PredictorSpec, TrackerMaker, Trained
from cellseg.tracks import Lineage, Track

_RADIUS = 5
_APART = 14.0
_FASTEST = 1.5


def moving_blobs(
    seed: int = 0, shape: tuple[int, int, int] = (1, 64, 64), frames: int = 6, count: int = 4
) -> list[Sample]:
    """A tiny movie of bright discs that move slowly over noise, normalised, with its ground truth.

    Images are ``(1, z, y, x)`` float32 with background near 0 and discs near 1; labels are
    ``(z, y, x)`` uint32, the ids of tracks. Discs never touch, each other or the border; ``count``
    0 gives a movie without objects. Where they do not fit, there are fewer.
    """
    rng = np.random.default_rng(seed)
    size = np.array(shape[1:])
    times = np.arange(frames)[:, None]
    placed: list[NDArray[np.float64]] = []
    for _ in range(500 * count):
        path = rng.uniform(8, size - 8) + times * rng.uniform(-_FASTEST, _FASTEST, 2)
        inside = (path >= 8).all() and (path <= size - 8).all()
        apart = all(np.hypot(*(path - other).T).min() > _APART for other in placed)
        if len(placed) < count and inside and apart:
            placed.append(path)
    tracks = Lineage.of(Track(number, 0, frames - 1) for number in range(1, len(placed) + 1))
    grid = np.indices(shape[1:])
    samples = []
    for frame in range(frames):
        labels = np.zeros(shape, np.uint32)
        for number, path in enumerate(placed, 1):
            away = grid - path[frame][:, None, None]
            labels[:, (away**2).sum(0) < _RADIUS**2] = number
        image = rng.normal(0.0, 0.05, (1, *shape)) + (labels > 0)
        samples.append(
            Sample(
                name=f"moving-{seed}#{frame}",
                image=image.astype(np.float32),
                labels=labels,
                source=f"moving-{seed}",
                frame=frame,
                tracks=tracks,
            )
        )
    return samples


class TrackerTests:
    """What it means to follow objects from frame to frame."""

    shape: ClassVar[tuple[int, int, int]]
    steady_frames: ClassVar[int] = 20
    """Frames after which what a tracker remembers of an unchanging scene must not grow any more."""

    def test_identities_are_kept(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """Discs that move slowly are found and keep their ids, most of them all the time."""
        tracker, movie = self._maker(fitted, predictor)(None), moving_blobs(4, self.shape, 8)
        before: dict[int, int] = {}
        found = links = kept = 0
        for sample in movie:
            labels = tracker.step(_tile(sample)).labels
            now = _names(labels, sample)
            found += len(now)
            both = now.keys() & before.keys()
            links += len(both)
            kept += sum(now[disc] == before[disc] for disc in both)
            before = now
        assert movie[0].tracks is not None
        assert found > 0.5 * len(movie) * len(movie[0].tracks.tracks), "most discs must be found"
        assert kept >= 0.8 * links, "discs that hardly move must keep their ids"

    def test_what_a_tracker_says_fits_together(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """Labels of the tile's shape; mothers that have ended; scores of what is there."""
        tracker, seen, ended = self._maker(fitted, predictor)(None), set[int](), set[int]()
        for sample in moving_blobs(5, self.shape, 8):
            found = tracker.step(_tile(sample))
            assert isinstance(found, Tracked)
            assert found.labels.shape == self.shape and found.labels.dtype.kind in "iu"
            ids = set(np.unique(found.labels).tolist()) - {0}
            assert min(ids, default=1) > 0
            assert set(found.scores) <= ids and set(found.classes) <= ids
            assert all(0 <= score <= 1 for score in found.scores.values())
            assert set(found.parents) <= ids - seen, "only new objects come from a division"
            mothers = set(found.parents.values())
            assert mothers <= seen - ids, "a mother was there before, and has ended"
            ended |= mothers
            assert not ids & ended, "a mother does not come back"
            seen |= ids

    def test_another_tracker_goes_on_from_a_state(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """The state is all there is to a tracker, also by way of a file, and as objects come."""
        make = self._maker(fitted, predictor)
        movie = [*moving_blobs(6, self.shape, 3), *moving_blobs(7, self.shape, 3)]
        whole, part = make(None), make(None)
        for number, sample in enumerate(movie):
            if number in (1, 3, 5):
                part = make(_stored(part.state()))
            _same(whole.step(_tile(sample)), part.step(_tile(sample)))

    def test_asking_for_the_state_changes_nothing(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """Nor does what is then done to the tracker change a state."""
        make, movie = self._maker(fitted, predictor), moving_blobs(6, self.shape, 4)
        asked, other = make(None), make(None)
        for sample in movie:
            held = asked.state()
            before = {name: array.copy() for name, array in held.items()}
            _same(asked.step(_tile(sample)), other.step(_tile(sample)))
            for name, array in held.items():
                np.testing.assert_array_equal(array, before[name])

    def test_trackers_do_not_mix(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """Two of one maker, by turns, say what each says alone."""
        make = self._maker(fitted, predictor)
        movies = [moving_blobs(seed, self.shape, 4) for seed in (7, 8)]
        both = [make(None), make(None)]
        mixed = [
            [tracker.step(_tile(sample)) for tracker, sample in zip(both, samples, strict=True)]
            for samples in zip(*movies, strict=True)
        ]
        for number, movie in enumerate(movies):
            alone = make(None)
            for frame, sample in zip(mixed, movie, strict=True):
                _same(frame[number], alone.step(_tile(sample)))

    def test_an_empty_first_frame(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """Nothing at first is no error, and what comes then is found as it is without that."""
        make, movie = self._maker(fitted, predictor), moving_blobs(4, self.shape, 4)
        plain, late = make(None), make(None)
        assert not late.step(Tile(image=np.zeros_like(_tile(movie[0]).image))).labels.any()
        first, then = (
            sum(len(_names(tracker.step(_tile(sample)).labels, sample)) for sample in movie)
            for tracker in (plain, late)
        )
        assert then >= 0.8 * first > 0

    def test_an_empty_movie(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """Nothing in, nothing out; and a frame in which all is gone is no error."""
        make, empty = self._maker(fitted, predictor), np.zeros((1, *self.shape), np.float32)
        tracker = make(None)
        for _ in range(3):
            assert not tracker.step(Tile(image=empty)).labels.any()
        tracker = make(_stored(tracker.state()))
        tracker.step(_tile(moving_blobs(4, self.shape, 1)[0]))
        for _ in range(2):
            assert tracker.step(Tile(image=empty)).labels.shape == self.shape

    def test_memory_does_not_grow_with_frames(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """What is remembered of a scene that does not change has an end."""
        tracker = self._maker(fitted, predictor)(None)
        tile, sizes = _tile(moving_blobs(9, self.shape, 1)[0]), []
        for _ in range(2):
            for _ in range(self.steady_frames):
                tracker.step(tile)
            sizes.append(sum(array.nbytes for array in tracker.state().values()))
        assert sizes[1] <= 1.05 * sizes[0], "the state grows with the number of frames"

    def _maker(self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]) -> TrackerMaker:
        if predictor.track is None:
            pytest.skip(f"{predictor.name} tracks nothing, as its card says")
        return predictor.track(self._predict_job(predictor, fitted))

    def _predict_job(
        self, spec: PredictorSpec[Any], fitted: tuple[Path, Trained], probabilities: bool = False
    ) -> PredictJob[Any]:
        raise NotImplementedError


def _tile(sample: Sample) -> Tile:
    return Tile(image=sample.image[:, :, :, :], spacing=sample.spacing)


def _names(labels: NDArray[Any], sample: Sample) -> dict[int, int]:
    """The id of what covers most of each disc, of discs that something covers well."""
    assert sample.labels is not None
    truth, found = sample.labels[:, :, :], {}
    for disc in np.unique(truth[truth > 0]).tolist():
        ids, counts = np.unique(labels[truth == disc], return_counts=True)
        best = int(ids[counts.argmax()])
        if best and 2 * counts.max() > max((truth == disc).sum(), (labels == best).sum()):
            found[int(disc)] = best
    return found


def _same(one: Tracked, other: Tracked) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    assert dict(one.parents) == dict(other.parents)
    assert dict(one.scores) == pytest.approx(dict(other.scores))
    assert dict(one.classes) == dict(other.classes)


def _stored(state: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """As it comes back from a file: numbers and texts, no objects."""
    names: Sequence[str] = list(state)
    file = io.BytesIO()
    np.savez(file, *(state[name] for name in names))
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[f"arr_{number}"] for number, name in enumerate(names)}

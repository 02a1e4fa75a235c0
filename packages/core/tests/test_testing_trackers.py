"""The conformance tests of trackers catch the trackers that they are there to catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracking_fakes import FollowOptions, MiddleTracker, cellseg_predictors

import cellseg as cs
from cellseg.data import Tracked
from cellseg.specs import PredictJob, PredictorSpec, Trained
from cellseg.testing import moving_blobs
from cellseg.tracker_testing import TrackerTests

SPEC = next(iter(cellseg_predictors()))
FITTED = (Path(), Trained())
TESTS = [name for name in vars(TrackerTests) if name.startswith("test_")]


class Kit(TrackerTests):
    __test__ = False
    shape = (1, 64, 64)
    steady_frames = 5

    def _predict_job(self, spec: Any, fitted: Any, probabilities: bool = False) -> PredictJob[Any]:
        return PredictJob(options=FollowOptions(), device="cpu")


def card(tracker: Callable[..., Any]) -> PredictorSpec[Any]:
    return replace(SPEC, track=lambda job: lambda state: tracker(job.options, state))


@pytest.mark.parametrize("test", TESTS)
def test_a_good_tracker_passes(test):
    getattr(Kit(), test)(FITTED, SPEC)


@pytest.mark.parametrize("test", TESTS)
def test_what_tracks_nothing_is_skipped(test):
    with pytest.raises(pytest.skip.Exception, match="tracks nothing"):
        getattr(Kit(), test)(FITTED, replace(SPEC, track=None))


class Forgetful(MiddleTracker):
    """All is new in each frame."""

    def step(self, tile):
        self.known = self.known[:0]
        return super().step(tile)


class Blind(MiddleTracker):
    def step(self, tile):
        return super().step(replace(tile, image=0 * tile.image))


class Counting(MiddleTracker):
    """Its state lacks which ids are taken."""

    def state(self):
        return {**super().state(), "numbers": np.array([1, 0])}


class Hidden(MiddleTracker):
    """Its state lacks where objects were."""

    def state(self):
        return {**super().state(), "known": self.known[:0]}


class Live(MiddleTracker):
    """Its state is what it goes on changing."""

    def state(self):
        return {"known": self.known, "numbers": self.numbers}

    def __init__(self, options, state):
        super().__init__(options, state)
        self.numbers = np.array([self.next, self.steps])

    def step(self, tile):
        found = super().step(tile)
        self.numbers[:] = self.next, self.steps
        return found


class Shared(MiddleTracker):
    """All of them have one memory."""

    def __init__(self, options, state):
        super().__init__(options, state)
        self.known = np.zeros((0, 6))

    known = property(lambda self: Shared.held, lambda self, value: setattr(Shared, "held", value))
    held = np.zeros((0, 6))


class Hoarding(MiddleTracker):
    """It keeps all frames."""

    def __init__(self, options, state):
        super().__init__(options, state)
        self.frames = np.zeros((0, 64, 64)) if state is None else state["frames"]

    def step(self, tile):
        self.frames = np.concatenate([self.frames, tile.image[0]])
        return super().step(tile)

    def state(self):
        return {**super().state(), "frames": self.frames}


class Nervous(MiddleTracker):
    def step(self, tile):
        if not tile.image.any() and not len(self.known):
            raise IndexError("nothing there")
        return super().step(tile)


class Dreaming(MiddleTracker):
    def step(self, tile):
        found = super().step(tile)
        return replace(found, labels=np.maximum(found.labels, 1 - (tile.image[0] > 0.5)))


class Fond(MiddleTracker):
    """It calls objects daughters of what is still there."""

    def step(self, tile):
        found = super().step(tile)
        ids = np.unique(found.labels[found.labels > 0]).tolist()
        return replace(found, parents={ids[0]: ids[1]} if self.steps == 3 else {})


class Sure(MiddleTracker):
    def step(self, tile):
        found = super().step(tile)
        return Tracked(found.labels, found.parents, {int(i): 2.0 for i in np.unique(found.labels)})


@pytest.mark.parametrize(
    ("test", "tracker"),
    [
        ("test_identities_are_kept", Forgetful),
        ("test_identities_are_kept", Blind),
        ("test_what_a_tracker_says_fits_together", Fond),
        ("test_what_a_tracker_says_fits_together", Sure),
        ("test_another_tracker_goes_on_from_a_state", Counting),
        ("test_another_tracker_goes_on_from_a_state", Hidden),
        ("test_asking_for_the_state_changes_nothing", Live),
        ("test_trackers_do_not_mix", Shared),
        ("test_an_empty_first_frame", Blind),
        ("test_an_empty_first_frame", Nervous),
        ("test_an_empty_movie", Dreaming),
        ("test_an_empty_movie", Nervous),
        ("test_memory_does_not_grow_with_frames", Hoarding),
    ],
)
def test_a_fault_is_caught(test, tracker):
    Shared.held = np.zeros((0, 6))
    with pytest.raises((AssertionError, IndexError)):
        getattr(Kit(), test)(FITTED, card(tracker))


def test_moving_blobs_are_a_movie():
    movie = moving_blobs(3, frames=5)
    again = moving_blobs(3, frames=5)
    assert [sample.frame for sample in movie] == list(range(5))
    assert len({sample.source for sample in movie}) == 1
    for one, other in zip(movie, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    ids = [set(np.unique(sample.labels).tolist()) for sample in movie]
    assert ids == [{0, 1, 2, 3, 4}] * 5
    assert {track.id for track in movie[0].tracks.tracks} == {1, 2, 3, 4}
    middles = np.array(
        [[np.argwhere(s.labels[0] == i).mean(0) for i in (1, 2, 3, 4)] for s in movie]
    )
    steps = np.hypot(*np.moveaxis(np.diff(middles, axis=0), -1, 0))
    assert 0 < steps.max() < 3
    assert not np.array_equal(moving_blobs(4)[0].labels, movie[0].labels)
    assert isinstance(movie[0], cs.Sample)
    assert not moving_blobs(3, count=0)[0].labels.any()

"""Identities over time, where trackers of neighbouring tiles agree and where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg.data import Tiling, Tracked
from cellseg.engine.frames import Lazily, StitchedFrames
from cellseg.engine.identities import Identities
from cellseg.engine.labels import StitchedLabels
from cellseg.engine.plan import Plan
from cellseg.engine.records import PartsOnDisk, Record, save
from cellseg.engine.stitch import stitch
from cellseg.engine.tile import tracked_labels
from cellseg.tracks import Track

SHAPE = (1, 32, 96)
PLAN = Plan.cut(SHAPE, Tiling((1, 32, 48), (0, 0, 16)), False)
HALF = 0.5


class Movie:
    """Frames of two tiles; tile 0 sees x below 64, tile 1 above 31."""

    def __init__(self, folder):
        assert [PLAN.read_box(i).start[2] for i in (0, 1)] == [0, 32]
        self.folder = folder
        self.identities = Identities(PLAN, HALF)
        self.frame = 0

    def step(self, boxes, left, right, parents=({}, {}), cut=None):
        """The tracks of objects, given by their first and last x, and what the tiles call them.

        Args:
            boxes: name to range along x.
            left: name to the id of the left tile; what is not there it misses.
            right: the same of the right one.
            parents: by tile.
            cut: ranges of objects as the left tile sees them, where other than in ``boxes``.
        """
        records = []
        for tile, names in enumerate((left, right)):
            labels = np.zeros(SHAPE, np.int64)
            for name, (start, stop) in {**boxes, **((cut or {}) if not tile else {})}.items():
                labels[0, 8:16, start:stop] = names.get(name, 0)
            seen = labels[PLAN.read_box(tile).slices]
            path = self.folder / f"{self.frame}-{tile}.tile"
            save(path, tracked_labels(Tracked(seen, parents[tile]), PLAN, tile))
            records.append(Record(path))
        found = stitch(PLAN, PartsOnDisk(records), lambda i, d: records[i].strip(d), HALF)
        labels = StitchedLabels(PLAN, records, found)
        tracks = self.identities.step(self.frame, found, labels, records)
        store = StitchedFrames(None)
        store.put(0, found, tracks)
        shown = StitchedLabels(PLAN, records, store.stitched(0))[:, :, :]
        np.testing.assert_array_equal(np.unique(shown[shown > 0]), store.tracks(0))
        np.testing.assert_array_equal(np.bincount(shown[shown > 0])[store.tracks(0)],
                                      store.objects(0).area)  # fmt: skip
        self.frame += 1
        return {
            name: int(shown[0, 8, (start + stop) // 2]) for name, (start, stop) in boxes.items()
        }

    @property
    def tracks(self):
        return self.identities.lineage().tracks


@pytest.fixture
def movie(tmp_path):
    return Movie(tmp_path)


def test_an_object_moves_from_tile_to_tile(movie):
    assert movie.step({"a": (10, 20)}, {"a": 7}, {}) == {"a": 1}
    assert movie.step({"a": (34, 44)}, {"a": 7}, {"a": 3}) == {"a": 1}, "in the halo of the other"
    assert movie.step({"a": (43, 53)}, {"a": 7}, {"a": 3}) == {"a": 1}
    assert movie.step({"a": (52, 62)}, {"a": 7}, {"a": 3}) == {"a": 1}
    assert movie.step({"a": (70, 80)}, {}, {"a": 3}) == {"a": 1}
    assert movie.tracks == (Track(1, 0, 4),)


def test_equal_ids_of_tiles_are_other_objects(movie):
    boxes = {"a": (5, 15), "b": (80, 90)}
    for _ in range(2):
        assert movie.step(boxes, {"a": 1}, {"b": 1}) == {"a": 1, "b": 2}


def test_what_was_lost_is_found_in_the_halo_alone(movie):
    """The tile that holds it had lost it; the other one has seen it all the time."""
    movie.step({"a": (36, 46)}, {"a": 7}, {"a": 3})
    movie.step({}, {}, {})
    assert movie.step({"a": (36, 46)}, {"a": 8}, {"a": 3}) == {"a": 1}, "a says that it is new"
    assert movie.step({"a": (36, 46)}, {"a": 8}, {}) == {"a": 1}
    assert movie.tracks == (Track(1, 0, 3),)


def test_where_tiles_disagree_the_one_with_most_of_it_decides(movie):
    both = {"a": (33, 43), "b": (50, 60)}
    names = {"a": 1, "b": 2}
    assert movie.step(both, names, names) == names
    assert movie.step({"a": both["a"]}, {"a": 1}, {"a": 2}) == {"a": 1}, "most is in the left core"
    assert movie.step({"b": both["b"]}, {"b": 1}, {"b": 2}) == {"b": 1}, "as the right tile says"


def test_two_that_claim_one_track(movie):
    """The larger one has it; the other goes on as what another tile says, or begins."""
    movie.step({"a": (20, 60)}, {"a": 1}, {"a": 1})
    found = movie.step({"a": (20, 44), "b": (50, 60)}, {"a": 1}, {"b": 1})
    assert found == {"a": 1, "b": 2}


def test_a_division(movie):
    movie.step({"m": (20, 40)}, {"m": 4}, {"m": 9})
    now = {"d": (16, 26), "e": (34, 44)}
    assert movie.step(now, {"d": 5, "e": 6}, {"e": 10}, ({5: 4, 6: 4}, {10: 9})) == {"d": 2, "e": 3}
    assert movie.step(now, {"d": 5, "e": 6}, {"e": 10}) == {"d": 2, "e": 3}
    assert movie.tracks == (Track(1, 0, 0), Track(2, 1, 2, 1), Track(3, 1, 2, 1))


def test_a_division_that_one_tile_misses(movie):
    """To the right tile the daughter in its core is the mother, which then has ended after all."""
    movie.step({"m": (38, 58)}, {"m": 4}, {"m": 9})
    now = {"d": (34, 44), "e": (52, 62)}
    left, right = {"d": 5, "e": 6}, {"d": 10, "e": 9}
    found = movie.step(now, left, right, ({5: 4, 6: 4}, {}))
    assert found == {"d": 2, "e": 3}
    assert movie.step(now, left, right) == found
    assert movie.tracks == (Track(1, 0, 0), Track(2, 1, 2, 1), Track(3, 1, 2, 1))


@pytest.mark.parametrize("d", [(34, 44), (49, 59)])
def test_a_division_that_one_tile_sees_late(movie, d):
    """The right tile calls one daughter the mother, and sees in the next frame that there are two;
    whichever cores they lie in."""
    movie.step({"m": (38, 58)}, {"m": 4}, {"m": 9})
    now, left = {"d": d, "e": (60, 64)}, {"d": 5, "e": 6}
    found = movie.step(now, left, {"d": 9, "e": 10}, ({5: 4, 6: 4}, {}))
    assert found == {"d": 2, "e": 3}
    late = {"d": 11, "e": 12}
    assert movie.step(now, left, late, ({}, {11: 9, 12: 9})) == found
    assert movie.step(now, {}, late)["e"] == 3, "from now on it knows them"
    assert movie.tracks[1:] == (Track(2, 1, movie.tracks[1].end, 1), Track(3, 1, 3, 1))


def test_a_mother_that_is_left_out_leaves_no_trace(movie):
    now = {"d": (5, 15), "e": (20, 30)}
    assert movie.step(now, {"d": 5, "e": 6}, {}, ({5: 4, 6: 4}, {})) == {"d": 1, "e": 2}
    assert not any(track.parent for track in movie.tracks)


def test_a_daughter_that_comes_later(movie):
    movie.step({"m": (10, 20)}, {"m": 1}, {})
    assert movie.step({"d": (8, 14)}, {"d": 2}, {}, ({2: 1}, {})) == {"d": 2}
    now = {"d": (8, 14), "e": (18, 24)}
    assert movie.step(now, {"d": 2, "e": 3}, {}, ({3: 1}, {})) == {"d": 2, "e": 3}
    assert movie.tracks == (Track(1, 0, 0), Track(2, 1, 2, 1), Track(3, 2, 2, 1))


def test_what_a_tile_cuts_in_two_is_one_track(movie):
    """The left tile sees two objects in its core, the right one sees that they are one."""
    movie.step({"a": (30, 66)}, {"a": 1}, {"a": 1})
    whole = {"a": (30, 66)}
    pieces = {"a": (30, 46), "x": (46, 64)}
    assert movie.step(whole, {"a": 1, "x": 2}, {"a": 1}, cut=pieces) == {"a": 1}
    assert movie.step(whole, {"a": 2}, {"a": 1}) == {"a": 1}, "the piece is known as the whole"
    assert movie.tracks == (Track(1, 0, 2),)


def test_halves_in_a_halo_are_not_the_object(movie):
    """What shares too little with an object of the core beside it says nothing of it."""
    movie.step({"a": (40, 46), "b": (20, 30)}, {"a": 1, "b": 2}, {"a": 1})
    # In the right tile's halo, something wide that holds little of a.
    found = movie.step({"a": (20, 36)}, {"a": 2}, {"a": 1})
    assert found == {"a": 2}


def test_items_are_made_when_asked_for():
    made = []
    lazily = Lazily(5, lambda index: made.append(index) or index * 10)
    assert (len(lazily), lazily[1], lazily[1], lazily[-1]) == (5, 10, 10, 40)
    assert made == [1, 4]
    assert list(lazily) == [0, 10, 20, 30, 40]
    assert list(lazily[1:4:2]) == [10, 30]
    with pytest.raises(IndexError):
        lazily[5]
    assert len(lazily._held) == 2

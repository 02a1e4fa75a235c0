"""Objects are linked to tracks as a made-up movie knows them, whatever moves or divides."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cellseg.errors import ConfigError, DataError, PluginError
from cellseg.linking.assignment import assigned
from cellseg.linking.labels import LinkedLabels
from cellseg.linking.link import link
from cellseg.linking.settings import LinkSettings
from cellseg.metrics import overlaps, score_tracks
from cellseg.options import parse
from cellseg.strict_tracks import strict_tracks
from cellseg.synthetic_movies import make_movie
from cellseg.tracks import Lineage, Track, faults


def frame(*discs, shape=(80, 80)):
    """Discs ``(y, x, radius)``, numbered from 1 as they come."""
    y, x = np.indices(shape)
    labels = np.zeros((1, *shape), np.uint32)
    for number, (at_y, at_x, radius) in enumerate(discs, 1):
        labels[0][(y - at_y) ** 2 + (x - at_x) ** 2 <= radius**2] = number
    return labels


def linked(frames, spacing=(1.0, 1.0, 1.0), **options):
    return link(frames, parse(LinkSettings, options), spacing)


def scores(movie, labels, links):
    strict = strict_tracks(links.tracks, links.lineage)
    tables = [
        overlaps(LinkedLabels(one[None], ids, tracks), truth[None])
        for one, ids, tracks, truth in zip(labels, links.ids, strict.ids, movie.labels, strict=True)
    ]
    found = score_tracks(tables, strict.lineage, movie.lineage)
    assert found.valid, found.problems
    return found.scores


def shuffled(movie, seed=0):
    """The labels of a movie with new ids in each frame, not without gaps."""
    rng = np.random.default_rng(seed)
    frames = []
    for one in movie.labels:
        ids = np.zeros(int(movie.labels.max()) + 1, np.uint32)
        ids[1:] = rng.permutation(3 * len(ids))[: len(ids) - 1] + 1
        frames.append(ids[one])
    return frames


@pytest.mark.parametrize("speed", [2.0, 7.0])
def test_cells_of_a_movie_are_followed_through_divisions(speed) -> None:
    movie = make_movie(4, 20, (256, 256), speed=speed, draw_images=False)
    labels = shuffled(movie)
    ours = scores(movie, labels, linked([one[None] for one in labels]))
    plain = scores(movie, labels, linked([one[None] for one in labels], method="overlap"))
    assert ours["TRA"] > 0.995 and ours["division_f1(1)"] > 0.85
    assert ours["TRA"] >= plain["TRA"] and ours["division_f1(1)"] >= plain["division_f1(1)"]


@pytest.mark.parametrize("method", ["laptrack", "overlap"])
def test_tracks_and_labels_agree(method) -> None:
    movie = make_movie(1, 12, (200, 200), draw_images=False)
    links = linked([one[None] for one in shuffled(movie)], method=method)
    assert not [f for f in faults(links.lineage, links.tracks) if f.breaks and method == "overlap"]
    assert {f.code for f in faults(links.lineage, links.tracks)} <= {"track-gaps", "many-daughters"}
    assert [track.id for track in links.lineage.tracks] == list(
        range(1, len(links.lineage.tracks) + 1)
    )
    begins = [track.begin for track in links.lineage.tracks]
    assert begins == sorted(begins)
    for ids, objects, labels in zip(links.ids, links.objects, shuffled(movie), strict=True):
        assert ids.tolist() == [i for i in np.unique(labels).tolist() if i]
        assert objects.area.sum() == np.count_nonzero(labels)


def test_the_names_of_objects_do_not_matter() -> None:
    movie = make_movie(2, 10, (160, 160), speed=5.0, draw_images=False)
    one, other = (linked([f[None] for f in shuffled(movie, seed)]) for seed in (0, 1))
    assert {(t.begin, t.end) for t in one.lineage.tracks} == {
        (t.begin, t.end) for t in other.lineage.tracks
    }
    assert len(one.lineage.divisions) == len(other.lineage.divisions) > 0


def test_a_cell_that_moves_its_own_size_is_still_the_same() -> None:
    frames = [frame((20, 15 + 12 * i, 7), (60, 65 - 12 * i, 7)) for i in range(5)]
    links = linked(frames)
    assert links.lineage == Lineage.of([Track(1, 0, 4), Track(2, 0, 4)])
    assert len(linked(frames, method="overlap").lineage.tracks) > 2
    assert len(linked(frames, max_distance=10.0).lineage.tracks) == 10


def test_steps_are_expected_to_go_on() -> None:
    """A row of cells that moves by more than half of its pitch, once it has got going."""
    row = [
        frame(
            *((40, 20 + 16 * k + 4 * min(i, 2) + 9 * max(i - 2, 0), 5) for k in range(5)),
            shape=(80, 200),
        )
        for i in range(8)
    ]
    links = linked(row, max_distance=14.0)
    assert [(t.begin, t.end) for t in links.lineage.tracks] == [(0, 7)] * 5


def test_a_division_has_two_daughters_in_place_of_the_mother() -> None:
    frames = [
        frame((40, 40, 10)),
        frame((40, 40, 10)),
        frame((40, 33, 7), (40, 48, 7)),
        frame((40, 30, 7), (40, 51, 7)),
        frame((40, 28, 7), (40, 53, 7)),
    ]
    family = Lineage.of([Track(1, 0, 1), Track(2, 2, 4, 1), Track(3, 2, 4, 1)])
    assert linked(frames).lineage == family
    assert linked(frames, method="overlap").lineage == family
    alone = linked(frames, divisions=False).lineage
    assert [(t.begin, t.end, t.parent) for t in alone.tracks] == [(0, 4, 0), (2, 4, 0)]


def test_a_daughter_that_was_soon_gone_stays_out_when_her_mother_goes_on_as_another() -> None:
    """Track 1 loses a daughter at once, so the other one is she, whose third daughter is gone."""

    def boxes(*along):
        labels = np.zeros((1, 30, 60), np.uint32)
        for number, (start, stop) in enumerate(along, 1):
            labels[0, :, start:stop] = number
        return labels

    two = ((0, 14), (14, 28))
    frames = [boxes((0, 60)), boxes((0, 40), (42, 60)), boxes(*two, (28, 40))]
    links = linked([*frames, *[boxes(*two)] * 4], method="overlap")
    assert links.lineage.tracks == (
        *(Track(1, 0, 1), Track(2, 1, 1), Track(3, 2, 6, 1), Track(4, 2, 6, 1)),
        Track(5, 2, 2),
    )


def test_a_division_is_found_where_the_cells_have_moved_away() -> None:
    frames = [
        frame((40, 30, 10)),
        frame((40, 30, 10)),
        frame((31, 38, 7), (50, 38, 7)),
        frame((30, 40, 7), (51, 40, 7)),
        frame((30, 40, 7), (51, 40, 7)),
    ]
    found = linked(frames, max_distance=25.0).lineage
    assert found.divisions == {1: (2, 3)}


def test_who_comes_over_the_border_beside_a_cell_is_not_its_daughter() -> None:
    frames = [
        frame((30, 40, 9), (70, 10, 9)),
        frame((30, 40, 9), (70, 10, 9), (40, 55, 6)),
        frame((30, 40, 9), (70, 10, 9), (40, 55, 6)),
        frame((30, 40, 9), (70, 10, 9), (40, 55, 6)),
    ]
    assert [t.parent for t in linked(frames).lineage.tracks] == [0, 0, 0]


def test_cells_that_touch_for_a_frame_are_the_same_afterwards() -> None:
    apart = frame((40, 30, 9), (40, 50, 9), (10, 10, 9))
    together = apart.copy()
    together[together == 2] = 1
    links = linked([apart, apart, together, apart, apart])
    assert [(t.begin, t.end, t.parent) for t in links.lineage.tracks] == [(0, 4, 0)] * 3
    assert [sorted(one.tolist()) for one in links.tracks] == [[1, 2, 3]] * 2 + [[1, 3]] + [
        [1, 2, 3]
    ] * 2


def test_a_cell_that_is_cut_in_two_for_a_frame_has_no_daughters() -> None:
    whole = frame((40, 40, 10), (15, 15, 8))
    cut = whole.copy()
    cut[0, :, 40:][cut[0, :, 40:] == 1] = 3
    frames = [whole, whole, cut, whole, whole, whole]
    links = linked(frames)
    assert not links.lineage.divisions
    longest = [t for t in links.lineage.tracks if (t.begin, t.end) == (0, 5)]
    assert len(longest) == 2 and len(links.lineage.tracks) == 3
    assert linked(frames, min_daughter_frames=1).lineage.divisions


@pytest.mark.parametrize(
    ("missing", "max_gap", "tracks"), [(1, 2, 1), (2, 2, 1), (3, 2, 2), (1, 0, 2)]
)
def test_an_object_may_be_missing_for_some_frames(missing, max_gap, tracks) -> None:
    there, gone = frame((40, 40, 8)), frame()
    links = linked([there, there, *[gone] * missing, there], max_gap=max_gap)
    assert len(links.lineage.tracks) == tracks
    assert links.lineage.tracks[0].end == (missing + 2 if tracks == 1 else 1)


def test_empty_frames_and_empty_movies() -> None:
    nothing = frame()
    for method in ("laptrack", "overlap"):
        assert linked([], method=method).lineage == Lineage(())
        assert linked([nothing] * 3, method=method).lineage == Lineage(())
        links = linked([nothing, frame((40, 40, 8)), nothing], method=method)
        assert links.lineage == Lineage.of([Track(1, 1, 1)])
        assert [len(one) for one in links.ids] == [0, 1, 0]


def test_in_volumes_distances_count_as_they_are() -> None:
    """Six planes up is further than six pixels to the side, where planes are far apart."""
    labels = np.zeros((2, 12, 40, 40), np.uint32)
    labels[0, 2:4, 10:20, 10:20] = 1
    labels[1, 2:4, 10:20, 22:32] = 1  # twelve pixels of x
    labels[1, 8:10, 10:20, 10:20] = 2  # six planes
    links = linked(labels, (4.0, 1.0, 1.0), max_distance=14.0, divisions=False)
    assert links.tracks[1].tolist() == [1, 2]
    flat = linked(labels, (1.0, 1.0, 1.0), max_distance=14.0, divisions=False)
    assert flat.tracks[1].tolist() == [2, 1]


def test_assignment_costs_least_in_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = rng.uniform(0, 10, (rng.integers(1, 12), 3)), rng.uniform(0, 10, (9, 3))
        reach = float(rng.uniform(2, 9))
        a, b = assigned(left, right, reach)
        assert len(set(a.tolist())) == len(a) and len(set(b.tolist())) == len(b)
        cost = cdist(left, right, "sqeuclidean")
        assert (cost[a, b] < reach**2).all()
        # Being alone costs half of the reach for each of both, a pair its distance.
        n, m = cost.shape
        whole = np.full((n + m, n + m), 1e9)
        whole[:n, :m] = np.where(cost < reach**2, cost, 1e9)
        whole[:n, m:][np.diag_indices(n)] = whole[n:, :m][np.diag_indices(m)] = reach**2 / 2
        whole[n:, m:] = 0
        least = whole[linear_sum_assignment(whole)].sum()
        ours = cost[a, b].sum() + (n + m - 2 * len(a)) * reach**2 / 2
        assert ours == pytest.approx(least, rel=1e-4)


def test_memory_holds_no_frames() -> None:
    def frames(count):
        for i in range(count):
            yield frame((100, 100 + i % 5, 30), (300, 300 - i % 5, 30), shape=(512, 512))

    peaks = []
    linked(frames(3))  # imports
    for count in (5, 40):
        tracemalloc.start()
        linked(frames(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 512 * 512 * 4


def test_frames_that_differ_in_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"frame 1: has the shape \(1, 80, 81\)"):
        linked([frame(), frame(shape=(80, 81))])


def test_labels_below_zero_are_refused() -> None:
    with pytest.raises(DataError, match="t001"):
        link(
            [frame(), -frame((40, 40, 5)).astype(np.int32)], LinkSettings(), names=["t000", "t001"]
        )


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"min_overlap": 0.2}, "--min-overlap does nothing with --method laptrack"),
        ({"method": "overlap", "max_gap": 1}, "--max-gap does nothing with --method overlap"),
        ({"method": "overlap", "max_distance": 9.0}, "--max-distance does nothing"),
        ({"divisions": False, "min_daughter_frames": 2}, "--min-daughter-frames does nothing"),
    ],
)
def test_options_that_would_be_ignored_by_the_linker_are_refused(options, wrong) -> None:
    with pytest.raises(ConfigError, match=wrong):
        parse(LinkSettings, options)


def test_without_laptrack_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "laptrack", None)
    with pytest.raises(PluginError, match="laptrack is not installed") as error:
        linked([frame()])
    assert "cellseg-core[track]" in (error.value.hint or "")
    assert not linked([frame()], method="overlap").lineage.tracks


def test_linked_labels_read_blocks() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 30, 30)).astype(np.uint32)
    for scale in (1, 1 << 30):  # few large ids are searched for
        ids = np.array([1, 2, 3], np.uint32) * np.uint32(scale)
        ours = LinkedLabels(labels * np.uint32(scale), ids, np.array([9, 4, 7], np.uint32))
        block = ours[slice(0, 1), slice(5, 20), slice(3, 30)]
        assert block.dtype == np.uint32
        assert np.array_equal(block, np.array([0, 9, 4, 7])[labels[:1, 5:20, 3:30]])

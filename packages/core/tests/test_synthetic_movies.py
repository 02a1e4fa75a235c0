"""Synthetic movies: labels and tracks that agree, cells that move and divide as cells do."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from cellseg.errors import ConfigError, StorageError
from cellseg.synthetic_movies import Movie, make_movie, write_ctc


@pytest.fixture(scope="module")
def movie() -> Movie:
    return make_movie(0, 30, (192, 160), 20, cycle=14, death_rate=0.01)


def _places(labels: np.ndarray) -> dict[int, np.ndarray]:
    ids = [int(i) for i in np.unique(labels) if i]
    return dict(zip(ids, np.array(ndimage.center_of_mass(labels > 0, labels, ids)), strict=True))


def test_labels_and_lineage_agree(movie: Movie) -> None:
    assert movie.images is not None
    assert movie.images.shape == movie.labels.shape == (30, 192, 160)
    assert movie.images.dtype == np.uint16 and movie.labels.dtype == np.uint32
    frames: dict[int, list[int]] = {}
    for frame, labels in enumerate(movie.labels):
        for track in np.unique(labels[labels > 0]).tolist():
            frames.setdefault(track, []).append(frame)
    assert frames == {t.id: list(range(t.begin, t.end + 1)) for t in movie.lineage.tracks}
    assert sorted(frames) == list(range(1, len(frames) + 1))  # counted from 1


def test_mothers_end_where_their_two_daughters_begin(movie: Movie) -> None:
    lineage = movie.lineage
    assert len(lineage.divisions) >= 10
    assert lineage.divisions == lineage.daughters
    for mother, daughters in lineage.divisions.items():
        assert len(daughters) == 2
        assert {lineage.by_id[d].begin for d in daughters} == {lineage.by_id[mother].end + 1}


def test_daughters_lie_side_by_side_where_the_mother_was(movie: Movie) -> None:
    for mother, daughters in movie.lineage.divisions.items():
        end = movie.lineage.by_id[mother].end
        before, after = _places(movie.labels[end]), _places(movie.labels[end + 1])
        first, second = (after[d] for d in daughters)
        assert 5 < np.hypot(*(first - second)) < 30
        assert np.hypot(*((first + second) / 2 - before[mother])) < 14


def test_all_ways_to_come_and_go_occur(movie: Movie) -> None:
    inner = movie.labels[:, 6:-6, 6:-6]
    tracks = movie.lineage.tracks
    mothers = set(movie.lineage.divisions)
    enters = [t for t in tracks if t.begin and not t.parent]
    ends = [t for t in tracks if t.end < 29 and t.id not in mothers]
    assert enters, "nobody enters"
    dies = [t for t in ends if (inner[t.end] == t.id).sum() == (movie.labels[t.end] == t.id).sum()]
    assert dies, "nobody dies"
    assert len(dies) < len(ends), "nobody leaves"


def test_cells_grow_and_round_up(movie: Movie) -> None:
    grown = [
        (movie.labels[t.end] == t.id).sum() / (movie.labels[t.begin] == t.id).sum()
        for t in movie.lineage.tracks
        if t.parent and t.id in movie.lineage.divisions
    ]
    assert len(grown) >= 3 and np.median(grown) > 1.3


def test_cells_touch_and_are_in_one_piece(movie: Movie) -> None:
    labels = movie.labels[-1]
    beside = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()])
    assert ((beside.min(0) > 0) & (beside[0] != beside[1])).any()
    for track in np.unique(labels[labels > 0]):
        assert ndimage.label(labels == track)[1] == 1


def test_they_move_as_fast_as_told() -> None:
    def step(speed: float) -> float:
        movie = make_movie(
            1, 8, (200, 200), 8, cycle=math.inf, speed=speed, death_rate=0, draw_images=False
        )
        places = [_places(labels[20:-20, 20:-20]) for labels in movie.labels]
        steps = [
            np.hypot(*(now[i] - then[i]))
            for then, now in itertools.pairwise(places)
            for i in then.keys() & now.keys()
        ]
        return float(np.median(steps))

    assert step(0) < 1 < 3 < step(6) < 10


def test_cells_are_bright(movie: Movie) -> None:
    assert movie.images is not None
    for image, labels in zip(movie.images, movie.labels, strict=True):
        assert image[labels > 0].mean() > 1.5 * image[labels == 0].mean()


def test_same_seed_same_movie_with_images_or_without(movie: Movie) -> None:
    again = make_movie(0, 30, (192, 160), 20, cycle=14, death_rate=0.01, draw_images=False)
    assert again.images is None
    assert again.lineage == movie.lineage
    np.testing.assert_array_equal(again.labels, movie.labels)
    first, second = (make_movie((s, 1), 2, (64, 64)) for s in (1, 2))
    assert not np.array_equal(first.labels, second.labels)


def test_no_cells_and_no_divisions_on_request() -> None:
    empty = make_movie(0, 3, (64, 64), 0)
    assert empty.images is not None and empty.images.std() > 0
    assert not empty.labels.any() and not empty.lineage.tracks
    assert not make_movie(0, 40, (96, 96), cycle=math.inf, draw_images=False).lineage.divisions


def test_small_cells_for_small_networks() -> None:
    movie = make_movie(2, 6, (64, 64), diameter=10, draw_images=False)
    areas = np.bincount(movie.labels.ravel())[1:] / 6
    assert len(movie.lineage.tracks) > 10
    assert (movie.labels > 0).mean() > 0.15 and areas.max() < 250


def test_samples_are_those_of_a_reader(movie: Movie) -> None:
    samples = movie.samples("07", normalise=True)
    assert [s.frame for s in samples] == list(range(30))
    assert {s.source for s in samples} == {"07"} and samples[3].name == "07/t003"
    assert samples[0].image.shape == (1, 1, 192, 160) and samples[0].image.dtype == np.float32
    assert samples[0].labels is not None and samples[0].labels.shape == (1, 192, 160)
    assert samples[0].tracks == movie.lineage
    low, high = np.percentile(samples[5].image[:, :, :, :], (1, 99.8))
    assert abs(low) < 0.01 and abs(high - 1) < 0.01
    with pytest.raises(ConfigError, match="no images"):
        make_movie(0, 1, (64, 64), draw_images=False).samples()


def test_write_ctc(movie: Movie, tmp_path) -> None:
    small = make_movie(1, 2, (64, 64))
    assert write_ctc(tmp_path, [movie, small]) == [tmp_path / "01", tmp_path / "02"]
    assert movie.images is not None
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "01/t029.tif"), movie.images[29])
    for kind, name in (("TRA", "man_track"), ("SEG", "man_seg")):
        masks = tifffile.imread(tmp_path / f"01_GT/{kind}/{name}029.tif")
        assert masks.dtype == np.uint16
        np.testing.assert_array_equal(masks, movie.labels[29])
    table = np.loadtxt(tmp_path / "02_GT/TRA/man_track.txt", int, ndmin=2)
    assert table.tolist() == [[t.id, t.begin, t.end, t.parent] for t in small.lineage.tracks]
    assert len(list((tmp_path / "02").iterdir())) == 2


def test_errors(tmp_path) -> None:
    for wrong, say in (
        ({"frames": 0}, "1 frame"),
        ({"shape": (64, 20)}, "32 x 32"),
        ({"count": -1}, "negative"),
        ({"diameter": 300.0}, "diameter"),
        ({"cycle": 1.0}, "cycle"),
        ({"speed": 20.0}, "speed"),
        ({"death_rate": 2.0}, "death rate"),
    ):
        with pytest.raises(ConfigError, match=say):
            make_movie(0, **wrong)
    with pytest.raises(ConfigError, match="no images"):
        write_ctc(tmp_path, [make_movie(0, 1, (64, 64), draw_images=False)])
    (tmp_path / "01").touch()
    with pytest.raises(StorageError):
        write_ctc(tmp_path, [make_movie(0, 1, (64, 64))])

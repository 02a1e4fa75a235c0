"""The page of a tracking: what it says, draws and refuses."""

from __future__ import annotations

import base64
import io
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from cellseg.errors import DataError
from cellseg.report import write_tracks_page
from cellseg.report.drawing import distinct
from cellseg.report.lineage import MOST_ROWS, lineage_picture
from cellseg.report.movie import Painter, animated, limits_of
from cellseg.synthetic_movies import make_movie
from cellseg.tracks import Lineage, Track

HOSTILE = "<script>alert(1)</script>"
SIZE = (1.0, 1.0, 1.0)


def _blank(shape: tuple[int, ...] = (1, 40, 50)) -> np.ndarray:
    return np.zeros(shape, np.uint32)


def _with(number: int, top: int, left: int, labels: np.ndarray | None = None) -> np.ndarray:
    labels = _blank() if labels is None else labels
    labels[0, top : top + 8, left : left + 8] = number
    return labels


def _painter(lineage: Lineage, scale: float = 1.0, spacing=SIZE, minutes=None) -> Painter:
    return Painter(lineage, scale, None, spacing, minutes)


def _facts(page: str) -> dict[str, int]:
    return {k: int(v) for k, v in re.findall(r"<dt>(\w+)</dt><dd>(\d+)", page)}


def _movie(page: str) -> Image.Image:
    found = re.search(r"data:image/webp;base64,([^\"]+)", page)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_page_of_a_movie(tmp_path) -> None:
    movie = make_movie(0, 12, (128, 96), cycle=10, death_rate=0.02)
    assert movie.images is not None and movie.lineage.divisions
    path = write_tracks_page(
        tmp_path / "page.html",
        HOSTILE,
        [image[None, None] for image in movie.images],
        [labels[None] for labels in movie.labels],
        movie.lineage,
        (1.0, 0.5, 0.5),
        minutes_per_frame=10,
    )
    page = path.read_text()
    assert HOSTILE not in page and "http" not in page.replace("http-equiv", "")
    tracks = movie.lineage.tracks
    assert _facts(page) == {
        "Frames": 12,
        "Tracks": len(tracks),
        "Divisions": len(movie.lineage.divisions),
        "Births": sum(t.begin > 0 and not t.parent for t in tracks),
        "Deaths": sum(t.end < 11 and t.id not in movie.lineage.divisions for t in tracks),
        "Gaps": 0,
    }
    shown = _movie(page)
    assert shown.n_frames == 12 and shown.size == (96 * 5, 128 * 5)
    assert page.count('<path class="track"') == len(tracks)
    assert page.count('<path class="fork"') == sum(t.parent > 0 for t in tracks)
    assert ">hours<" in page
    assert list(tmp_path.iterdir()) == [path]


def test_gaps_are_counted_and_drawn_thin(tmp_path) -> None:
    frames = [_with(7, 5, 5), _blank(), _blank(), _with(7, 5, 5), _with(7, 6, 6)]
    lineage = Lineage.of([Track(7, 0, 4)])
    page = write_tracks_page(tmp_path / "a.html", "gaps", None, frames, lineage, SIZE).read_text()
    assert _facts(page)["Gaps"] == 1
    assert "2 frames in which a track is missing" in page
    assert "missing in 1 to 2" in page
    line = re.search(r'<path class="track" d="([^"]+)"', page)
    assert line and line[1].count("M") == 2
    frames = [_with(7, 5, 5), _blank(), _with(7, 5, 5)]
    lineage = Lineage.of([Track(7, 0, 2)])
    page = write_tracks_page(tmp_path / "b.html", "gap", None, frames, lineage, SIZE).read_text()
    assert ">1 frame in which a track is missing<" in page.replace("\n", "")


def test_a_movie_without_objects(tmp_path) -> None:
    frames = [_blank()] * 3
    page = write_tracks_page(tmp_path / "a.html", "none", None, frames, Lineage(()), SIZE)
    assert "There are no tracks." in page.read_text()
    assert _movie(page.read_text()).size == (600, 480)


def test_contours_tails_and_new_daughters() -> None:
    lineage = Lineage.of([Track(3, 0, 1), Track(4, 2, 5, 3), Track(9, 2, 5, 3)])
    painter = _painter(lineage)
    mother, one, other = (np.array(c) for c in distinct(np.array([3, 4, 9])))
    first = painter.paint(0, None, _with(3, 24, 4)[0])
    assert (first[24, 4:12] == mother).all() and (first[25, 5] == 0).all()
    painter.paint(1, None, _with(3, 24, 14)[0])
    after = painter.paint(2, None, _with(9, 24, 32, _with(4, 24, 22))[0])
    assert (after[24, 22] == one).all() and (after[24, 32] == other).all()
    np.testing.assert_allclose(after[25, 33], other * 0.45, atol=1)  # filled
    assert (after[28, 8:13] > 60).any(axis=1).all(), "the tail does not go back to the mother"
    painter.paint(3, None, _with(4, 24, 22)[0])
    settled = painter.paint(4, None, _with(4, 24, 22)[0])
    assert (settled[25, 23] == 0).all(), "still filled"


def test_tails_are_short() -> None:
    lineage = Lineage.of([Track(1, 0, 19)])
    painter = _painter(lineage)
    for frame in range(20):
        picture = painter.paint(frame, None, _with(1, 24, 2 * frame)[0])
    assert picture[28, 38:46].any() and picture[28, 28:36].any()
    assert not picture[26:31, :24].any()


def test_contrast_is_the_same_in_all_frames() -> None:
    images = [np.full((1, 1, 40, 50), value, np.float32) for value in (0, 100)]
    images[0][..., 20] = 100
    painter = Painter(Lineage(()), 1.0, limits_of(images), SIZE, None)
    dark, light = (painter.paint(i, image, _blank()[0]) for i, image in enumerate(images))
    assert dark[30, 5].max() < 10 < 150 < light[30, 5].min()
    assert limits_of([]) is None


def test_time_and_scale_are_written() -> None:
    plain = _painter(Lineage(()), 4).paint(0, None, _blank()[0])
    timed = _painter(Lineage(()), 4, minutes=7).paint(0, None, _blank()[0])
    scaled = _painter(Lineage(()), 4, (1.0, 0.5, 0.5)).paint(0, None, _blank()[0])
    assert timed[:30, 60:].any() and not plain[:30, 60:].any()
    assert scaled[-12:, 100:].any() and not plain[-12:].any()
    bar = (scaled[-10] == (235, 238, 242)).all(axis=1)
    assert bar.sum() == 5 / 0.5 * 4  # 5 micrometres


def test_every_second_frame_one_plane_and_the_middle(tmp_path) -> None:
    small = _blank((3, 60, 1600))
    small[2, 2:6, 700:720] = 1
    frames = [small] * 301
    lineage = Lineage.of([Track(1, 0, 300)])
    page = write_tracks_page(tmp_path / "a.html", "long", None, frames, lineage, SIZE).read_text()
    assert _movie(page).n_frames == 151
    assert "One frame of 2 is shown. Plane 2 of 3" in page
    assert "The middle 60 x 1536 of 60 x 1600" in page
    assert _facts(page)["Frames"] == 301


@dataclass
class _Large(Sequence[np.ndarray]):
    """Frames that are made when they are asked for."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index >= self.count:
            raise IndexError
        return _with(1, 10, 10, _blank((1, 300, 300)))


def test_memory_does_not_grow_with_the_frames(tmp_path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_tracks_page(
            tmp_path / "a.html", "x", None, _Large(count), Lineage.of([Track(1, 0, count)]), SIZE
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    frame = 600 * 600 * 3
    assert peak(20) - peak(6) < 3 * frame


def test_animation_is_what_was_drawn() -> None:
    pictures = [np.full((32, 48, 3), value, np.uint8) for value in (20, 120, 220)]
    shown = Image.open(io.BytesIO(animated(iter(pictures), 50)))
    assert (shown.n_frames, shown.size, shown.info["loop"]) == (3, (48, 32), 0)
    for index, picture in enumerate(pictures):
        shown.seek(index)
        np.testing.assert_allclose(np.asarray(shown.convert("RGB"), int), picture, atol=6)


def test_mothers_lie_between_their_daughters() -> None:
    lineage = Lineage.of(
        [Track(1, 0, 3), Track(2, 4, 9, 1), Track(3, 4, 6, 1), Track(4, 8, 9, 3), Track(5, 8, 9, 3)]
    )
    picture = lineage_picture(lineage, 10, {})
    assert picture is not None and (picture.families, picture.all_families) == (1, 1)
    at = {int(re.findall(r"\d+", b.text)[0]): b for b in picture.branches}
    assert at[1].y == pytest.approx((at[2].y + at[3].y) / 2, abs=0.06)
    assert at[3].y == pytest.approx((at[4].y + at[5].y) / 2, abs=0.06)
    assert len({b.y for b in picture.branches}) == 5
    assert at[2].begin == at[1].end and at[4].begin > at[3].end
    assert at[4].fork == f"M{at[3].end:g},{at[3].y:g}H{at[4].begin:g}V{at[4].y:g}"
    assert not any(b.appears or b.ends for b in picture.branches)
    assert at[2].end == picture.ticks[-1].at and picture.ticks[-1].text == "10"
    assert at[3].text == "Track 3: frames 4 to 6, daughter of 1, mother of 4, 5"


def test_who_comes_and_goes_is_marked() -> None:
    lineage = Lineage.of([Track(1, 0, 9), Track(2, 3, 9), Track(3, 0, 5), Track(4, 7, 9, 8)])
    picture = lineage_picture(lineage, 10, {}, minutes_per_frame=30)
    assert picture is not None
    marks = {b.text.split(":")[0][6:]: (b.appears, b.ends) for b in picture.branches}
    assert marks == {
        "1": (False, False),
        "2": (True, False),
        "3": (False, True),
        "4": (True, False),  # its mother is no track of the movie
    }
    assert picture.x_label == "hours" and picture.ticks[-1].text == "5"


def test_of_many_families_the_largest_are_shown() -> None:
    single = [Track(i, 0, 9) for i in range(100, 100 + MOST_ROWS + 50)]
    family = [Track(1, 0, 3), Track(2, 4, 9, 1), Track(3, 4, 9, 1)]
    picture = lineage_picture(Lineage.of([*single, *family]), 10, {})
    assert picture is not None
    assert picture.tracks == MOST_ROWS + 1 and picture.families == MOST_ROWS - 1
    assert picture.all_families == MOST_ROWS + 51
    assert picture.branches[0].text.startswith("Track 1:")
    wide = [Track(1, 0, 3), *(Track(i, 4, 9, 1) for i in range(2, 2 * MOST_ROWS))]
    alone = lineage_picture(Lineage.of(wide), 10, {})
    assert alone is not None and alone.tracks == len(wide)


def test_a_deep_lineage_is_no_problem() -> None:
    chain = [Track(i, i, i, i - 1) for i in range(1, 3000)]
    picture = lineage_picture(Lineage.of(chain), 3000, {})
    assert picture is not None and picture.tracks == 2999


def test_what_does_not_belong_together_is_refused(tmp_path) -> None:
    frame, lineage = _with(1, 2, 2), Lineage.of([Track(1, 0, 0)])
    image = np.zeros((1, 1, 40, 50), np.uint16)
    for images, labels, tracks, say in (
        (None, [], lineage, "without frames"),
        ([], [frame], lineage, "0 images and 1 labels"),
        ([image[..., 1:]], [frame], lineage, "frame 0"),
        (None, [frame, frame[:, 1:]], lineage, "labels of frame 1"),
        (None, [frame], Lineage(()), "Frame 0 shows object 1"),
    ):
        with pytest.raises(DataError, match=say):
            write_tracks_page(tmp_path / "a.html", "x", images, labels, tracks, SIZE)
    assert not list(tmp_path.iterdir())

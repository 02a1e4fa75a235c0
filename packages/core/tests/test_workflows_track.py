"""``cellseg track``: label images of movies in all shapes they come in, and what is written."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cellseg.errors import ConfigError, DataError, InterruptedRunError, PartialError, UsageError
from cellseg.events import Failed, Note, Progress
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.synthetic_movies import make_movie, write_ctc
from cellseg.tracked import open_tracked
from cellseg.workflows.track import track
from cellseg.workflows.track_movies import grouped
from cellseg.workflows.track_settings import TrackSettings

FRAMES = 6


@pytest.fixture(scope="module")
def movie():
    return make_movie(3, FRAMES, (96, 96), cycle=8, draw_images=True)


@pytest.fixture
def stack(movie, tmp_path):
    path = tmp_path / "cells.tif"
    labels = movie.labels.astype(np.uint16)
    tifffile.imwrite(path, labels, imagej=True, metadata={"axes": "TYX", "unit": "um"})
    return path


def tracked(labels, output, emit=lambda event: None, **options):
    settings = parse(TrackSettings, {"output": output, "report": False} | options)
    return track(Plugins(), labels, settings, emit=emit)


def test_a_stack_comes_out_with_the_ids_of_its_tracks(stack, movie, tmp_path) -> None:
    events = []
    done = tracked(stack, tmp_path / "out", emit=events.append, format=("tiff", "csv", "ctc"))
    assert [e.step for e in events if isinstance(e, Progress)] == list(range(1, FRAMES + 1))
    assert "6 frames of 1 x 96 x 96" in next(e.text for e in events if isinstance(e, Note))
    assert (done.movies, done.frames) == (1, FRAMES) and done.divisions > 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "cells.csv", "cells.tif", "cells_RES", "cells_tracks.csv"
    ]  # fmt: skip
    assert set(done.outputs) == set((tmp_path / "out").iterdir())
    ours = open_tracked(tmp_path / "out" / "cells.tif")[0]
    assert len(ours.lineage.tracks) == done.tracks
    for before, after in zip(movie.labels, ours.frames, strict=True):
        pairs = np.unique(np.stack([before.ravel(), after[:, :, :].ravel()]), axis=1)
        assert len(pairs[0]) == len(np.unique(before)), "objects stay what they are"
    rows = (tmp_path / "out" / "cells.csv").read_text().splitlines()
    assert rows[0].startswith("frame,id,track,area") and len(rows) == done.objects + 1
    for row in rows[1:]:
        values = row.split(",")
        frame = ours.frames[int(values[0])][:, :, :]
        assert np.count_nonzero(frame == int(values[1])) == int(values[3])


def test_frames_in_files_of_their_own(movie, tmp_path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in (0, 1, 2, 3, 9, 10):  # in the order of numbers, not of letters
        frame = movie.labels[min(number, 5) if number < 10 else 5]
        tifffile.imwrite(folder / f"f{number}_cells.tif", frame)
    with pytest.raises(DataError, match=r"masks: frames are missing between f3_cells and f9_cells"):
        tracked(folder, tmp_path / "out")
    for number, frame in enumerate(movie.labels):
        tifffile.imwrite(folder / f"f{number + 5}_cells.tif", frame)
    for number in (0, 1, 2, 3):
        (folder / f"f{number}_cells.tif").unlink()
    done = tracked(folder, tmp_path / "out")
    assert done.frames == 6 and done.movies == 1
    assert (tmp_path / "out" / "masks.tif").exists()


def test_masks_of_the_challenge(movie, tmp_path) -> None:
    write_ctc(tmp_path / "set", [movie])
    done = tracked(tmp_path / "set" / "01_GT" / "TRA", tmp_path / "out", format=("ctc",))
    assert [p.name for p in done.outputs] == ["01_RES"]
    again = tracked(tmp_path / "out" / "01_RES", tmp_path / "again", format=("ctc",))
    assert again.tracks == done.tracks and again.outputs[0].name == "01_RES"
    for whole in ("set", "set/01", "set/01_GT"):
        with pytest.raises(DataError, match="images and labels of several kinds") as error:
            tracked(tmp_path / whole, tmp_path / "none")
        assert "01_GT/TRA" in (error.value.hint or "")
    assert not (tmp_path / "none").exists()


def test_ome_zarr_and_hdf5_are_linked_again(stack, tmp_path) -> None:
    first = tracked(stack, tmp_path / "out", format=("ome-zarr", "hdf5", "tiff"))
    for name in ("cells.ome.zarr", "cells.h5"):
        again = tracked(tmp_path / "out" / name, tmp_path / f"again-{name[-2:]}")
        assert (again.tracks, again.divisions) == (first.tracks, first.divisions)
        ours, theirs = (
            open_tracked(tmp_path / d / "cells.tif")[0] for d in ("out", f"again-{name[-2:]}")
        )
        for a, b in zip(ours.frames, theirs.frames, strict=True):
            assert np.array_equal(a[:, :, :], b[:, :, :])


def test_movies_of_a_folder_keep_their_names(stack, movie, tmp_path) -> None:
    other = tmp_path / "more" / "b.tif"
    other.parent.mkdir()
    labels = movie.labels[::-1].astype(np.uint16)
    tifffile.imwrite(other, labels, imagej=True, metadata={"axes": "TYX"})
    stack.rename(tmp_path / "more" / "a.tif")
    done = tracked(tmp_path / "more", tmp_path / "out")
    assert done.movies == 2 and done.frames == 2 * FRAMES
    assert {p.name for p in done.outputs if p.suffix == ".tif"} == {"a.tif", "b.tif"}


def test_the_report_shows_the_images(movie, tmp_path) -> None:
    write_ctc(tmp_path / "set", [movie])
    labels, images = tmp_path / "set" / "01_GT" / "TRA", tmp_path / "set" / "01"
    done = tracked(labels, tmp_path / "out", report=True, images=images)
    page = tmp_path / "out" / "01_tracks.html"
    assert page in done.outputs and "data:image/webp" in page.read_text()
    bare = tracked(labels, tmp_path / "bare", report=True)
    black = tmp_path / "bare" / "01_tracks.html"
    assert bare.outputs[-1] == black and len(black.read_text()) < len(page.read_text())


def test_images_that_do_not_belong_to_the_labels_are_refused(stack, movie, tmp_path) -> None:
    short = tmp_path / "short.tif"
    tifffile.imwrite(short, movie.images[:4], imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match="cells has 4 frames, its labels 6"):
        tracked(stack, tmp_path / "out", report=True, images=short)
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, movie.images[:, :90], imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match=r"has the shape \(1, 90, 96\)"):
        tracked(stack, tmp_path / "out", report=True, images=small)
    assert not (tmp_path / "out").exists()


def test_what_is_no_movie_is_refused(movie, tmp_path) -> None:
    single = tmp_path / "single.tif"
    tifffile.imwrite(single, movie.labels[0])
    with pytest.raises(DataError, match="single is a single image of 1 x 96 x 96") as error:
        tracked(single, tmp_path / "out")
    assert "--axes TYX" in (error.value.hint or "")
    (tmp_path / "02_RES").mkdir()
    tifffile.imwrite(tmp_path / "02_RES" / "mask000.tif", movie.labels[0].astype(np.uint16))
    done = tracked(tmp_path / "02_RES", tmp_path / "mask")
    assert done.frames == 1 and (tmp_path / "mask" / "02.tif").is_file(), "one frame, but a movie"
    one = tmp_path / "01.tif"
    tifffile.imwrite(one, movie.labels[:1])
    assert tracked(one, tmp_path / "one", axes="TYX").frames == 1
    assert (tmp_path / "one" / "01.tif").is_file()
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, movie.labels)
    with pytest.raises(DataError, match="ambiguous"):
        tracked(plain, tmp_path / "out")
    assert tracked(plain, tmp_path / "out", axes="TYX").frames == FRAMES
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, movie.labels.astype(np.float32), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match="labels are integers"):
        tracked(image, tmp_path / "other")


def test_results_are_only_replaced_when_told_to(stack, tmp_path) -> None:
    tracked(stack, tmp_path / "out")
    before = (tmp_path / "out" / "cells.tif").read_bytes()
    with pytest.raises(UsageError, match=r"cells.tif exists already"):
        tracked(stack, tmp_path / "out")
    tracked(stack, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "cells.tif").read_bytes() == before, "the same twice"
    with pytest.raises(UsageError, match="--output is missing"):
        tracked(stack, None)
    with pytest.raises(UsageError, match="give a folder, not a file"):
        tracked(stack, tmp_path / "x.tif")
    with pytest.raises(ConfigError, match="--images does nothing with --no-report"):
        tracked(stack, tmp_path / "y", images=stack)


def test_results_never_replace_what_they_are_made_of(stack, movie, tmp_path) -> None:
    before = stack.read_bytes()
    for labels in (stack, tmp_path):
        with pytest.raises(UsageError, match=r"cells.tif would be replaced"):
            tracked(labels, tmp_path, overwrite=True)
    assert stack.read_bytes() == before
    tracked(stack, tmp_path, format=("ctc",))
    masks = sorted((tmp_path / "cells_RES").iterdir())
    with pytest.raises(UsageError, match=r"cells_RES would be replaced"):
        tracked(tmp_path / "cells_RES", tmp_path, overwrite=True, format=("ctc", "csv"))
    assert sorted((tmp_path / "cells_RES").iterdir()) == masks
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "cells.tif"
    tifffile.imwrite(image, movie.images, imagej=True, metadata={"axes": "TYX"})
    for place in (image, image.parent):
        with pytest.raises(UsageError, match=r"cells.tif would be replaced"):
            tracked(stack, image.parent, overwrite=True, images=place, report=True)


def test_stopping_leaves_no_half_of_a_movie(stack, tmp_path) -> None:
    calls = iter([False] * 3 + [True] * 99)
    settings = parse(TrackSettings, {"output": tmp_path / "out"})
    with pytest.raises(InterruptedRunError):
        track(Plugins(), stack, settings, interrupted=lambda: next(calls))
    assert not (tmp_path / "out").exists()


def test_frames_in_the_wrong_order_are_noticed(movie, tmp_path) -> None:
    path = tmp_path / "mixed.tif"
    rng = np.random.default_rng(0)
    frames = np.stack([np.roll(movie.labels[0], rng.integers(20, 76, 2), (0, 1)) for _ in range(9)])
    tifffile.imwrite(path, frames.astype(np.uint16), imagej=True, metadata={"axes": "TYX"})
    events = []
    tracked(path, tmp_path / "out", emit=events.append, max_distance=3.0)
    assert any("in the right order?" in e.text for e in events if isinstance(e, Note))


def test_spacing_of_the_labels_is_kept(movie, tmp_path) -> None:
    path = tmp_path / "scaled.ome.tif"
    metadata = {"axes": "TYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, movie.labels.astype(np.uint16), ome=True, metadata=metadata)
    tracked(path, tmp_path / "out")
    with tifffile.TiffFile(tmp_path / "out" / "scaled.tif") as file:
        assert 'PhysicalSizeX="0.5"' in (file.ome_metadata or "")


@pytest.mark.parametrize(
    ("names", "movies"),
    [
        (["a#0", "a#1", "b#0"], {"a": [0, 1], "b": [2]}),
        (["t000", "t001"], {"root": [0, 1]}),
        (["p1_t1", "p1_t10", "p1_t2"], None),
        (["a_t0", "a_t1", "b_t0", "b_t1"], {"a_t": [0, 1], "b_t": [2, 3]}),
        (
            ["01_RES/mask000", "01_RES/mask001", "02_RES/mask000"],
            {"01": [0, 1], "02": [2]},
        ),
        (["w/A/t1", "w/A/t2", "w/B/t1", "w/B/t2"], {"w/A": [0, 1], "w/B": [2, 3]}),
        (["t2", "t10", "t6"], {"root": [0, 2, 1]}),
    ],
)
def test_names_say_which_frames_are_of_one_movie(names, movies, tmp_path) -> None:
    if movies is None:
        with pytest.raises(DataError, match="frames are missing between p1_t2 and p1_t10"):
            grouped(names, tmp_path / "root")
    else:
        assert grouped(names, tmp_path / "root") == movies


def test_one_broken_movie_among_others(movie, tmp_path) -> None:
    """A frame that cannot be read, one that is missing, pixels that are gone: the others are
    linked."""
    root = tmp_path / "masks"
    for name in ("good", "header", "hole"):
        (root / name).mkdir(parents=True)
        for number, frame in enumerate(movie.labels):
            tifffile.imwrite(root / name / f"t{number}.tif", frame)
    (root / "header" / "t3.tif").write_bytes(b"II*\0")
    (root / "hole" / "t2.tif").unlink()
    cut = root / "cut.tif"
    labels = movie.labels.astype(np.uint16)
    tifffile.imwrite(cut, labels, compression="zlib", metadata={"axes": "TYX"})
    with tifffile.TiffFile(cut) as file:
        start, count = file.pages[3].dataoffsets[0], file.pages[3].databytecounts[0]
    with cut.open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * count)
    events = []
    with pytest.raises(PartialError, match=r"3 movie\(s\) failed .* 1 are") as error:
        tracked(root, tmp_path / "out", emit=events.append)
    wanted = {
        "header": "t3.tif",
        "hole": "between hole/t1 and hole/t3",
        "cut": "cut.tif: cannot be",
    }
    assert error.value.failed.keys() == wanted.keys()
    for name, text in wanted.items():
        assert text in error.value.failed[name]
    assert {e.item for e in events if isinstance(e, Failed)} == set(wanted)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "good.tif", "good.csv", "good_tracks.csv"
    }  # fmt: skip

"""Tracked labels come back from whatever holds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ctc_data import DIVIDING, draw, tracked_result, write_sequence

from cellseg.errors import DataError
from cellseg.outputs.formats import output_for, output_inside
from cellseg.outputs.pairs import Pair, write_pair
from cellseg.outputs.write import write
from cellseg.tracked import TrackedMovie, open_tracked
from cellseg.tracks import Lineage, Track

TRACKS = (Track(1, 0, 2), Track(2, 0, 1), Track(3, 2, 3, 2), Track(4, 2, 3, 2))
RESULT = tracked_result(DIVIDING, TRACKS)


def same(movie: TrackedMovie, shape: tuple[int, ...] = (16, 60)) -> bool:
    labels = [frame[:] for frame in movie.frames]
    rows = [
        draw(row, shape).reshape(frame.shape) for row, frame in zip(DIVIDING, labels, strict=True)
    ]
    return movie.lineage.tracks == TRACKS and all(map(np.array_equal, labels, rows))


def output(folder: Path, format: str = "tiff", name: str = "movie") -> Path:
    made = output_for(format, folder, name, "cells")
    write(RESULT, made)
    return made.path


@pytest.mark.parametrize("format", ["tiff", "ome-zarr", "hdf5", "ctc"])
def test_each_output_by_itself_and_in_its_folder(tmp_path: Path, format: str) -> None:
    path = output(tmp_path / "out", format)
    for place, name in ((path, "movie"), (tmp_path / "out", "movie"), (tmp_path, "out/movie")):
        (movie,) = open_tracked(place)
        assert same(movie) and movie.path == path and movie.segmentation is None
        assert movie.name == name


@pytest.mark.parametrize("format", ["ome-zarr", "ctc"])
def test_the_folder_one_is_in_has_its_name(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output(tmp_path, format))
    (movie,) = open_tracked(Path())
    assert same(movie) and movie.name == "movie"


def test_a_folder_of_several_names_each_once(tmp_path: Path) -> None:
    for format in ("tiff", "ctc", "csv", "geff"):
        output(tmp_path, format, "train/01")
    output(tmp_path, "hdf5", "02")
    first, second = open_tracked(tmp_path)
    assert (first.name, second.name) == ("02", "train/01")
    assert second.path == tmp_path / "train" / "01_RES"
    assert same(first) and same(second)


def test_labels_inside_an_ome_zarr_image(tmp_path: Path) -> None:
    write_pair(Pair("img", np.ones((1, 1, 16, 60), np.uint8), draw({})[None]), tmp_path, "ome-zarr")
    image = tmp_path / "img.ome.zarr"
    one = tracked_result(DIVIDING[:1], (Track(1, 0, 0), Track(2, 0, 0)))
    into = output_inside(image, "cells")
    write(one, into)
    table = tmp_path / "img_cells_tracks.csv"
    assert table.read_text() == "id,begin,end,parent\n1,0,0,0\n2,0,0,0\n"
    for place in (into.path, image, tmp_path):
        (movie,) = open_tracked(place)
        assert (movie.name, movie.path) == ("img", into.path)
        assert np.array_equal(movie.frames[0][:][0], draw(DIVIDING[0]))
        assert movie.lineage == one.tracks
    write(one, output_inside(image, "nuclei"))
    with pytest.raises(DataError, match="has 2 label images with tracks"):
        open_tracked(image)
    assert open_tracked(into.path)[0].lineage == one.tracks


@pytest.mark.parametrize("where", ["", "01_GT", "01_GT/TRA"])
def test_truth_with_its_segmentation(tmp_path: Path, where: str) -> None:
    write_sequence(tmp_path, shape=(5, 16, 60), first=1)
    truth = tmp_path / "01_GT" / "SEG"
    truth.mkdir()
    tifffile.imwrite(truth / "man_seg003.tif", draw({7: 2}, (5, 16, 60)))
    tifffile.imwrite(truth / "man_seg_002_003.tif", draw({9: 3}))
    (movie,) = open_tracked(tmp_path / where)
    assert movie.name == "01" and same(movie, (5, 16, 60))
    assert list(movie.segmentation) == [(1, 3), (2, None)]
    assert np.array_equal(movie.segmentation[1, 3][:], draw({9: 3})[None])
    shutil.rmtree(tmp_path / "01")  # truth is truth without images
    assert len(open_tracked(tmp_path / where)) == 1


def test_a_tree_of_truth(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_sequence(tmp_path / part / "CTC")
    movies = open_tracked(tmp_path)
    assert [movie.name for movie in movies] == ["train/01", "val/01"]
    assert all(same(movie) and movie.segmentation is None for movie in movies)


def test_results_beside_truth_must_be_chosen(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    assert open_tracked(tmp_path, "result")[0].path == tmp_path / "01_GT"  # there is nothing else
    output(tmp_path, "ctc", "01")
    with pytest.raises(DataError, match="holds results and truth") as caught:
        open_tracked(tmp_path)
    assert "01_RES or " in str(caught.value.hint)
    assert open_tracked(tmp_path, "result")[0].path == tmp_path / "01_RES"
    assert open_tracked(tmp_path, "truth")[0].path == tmp_path / "01_GT"
    assert open_tracked(tmp_path / "01_GT")[0].path == tmp_path / "01_GT"


def test_tables_that_are_wrong_are_shown_as_they_are(tmp_path: Path) -> None:
    path = output(tmp_path, "ctc")
    (path / "res_track.txt").write_text("1 0 3 0\n2 2 1 1\n")
    (movie,) = open_tracked(path)
    assert movie.lineage == Lineage.of([Track(1, 0, 3), Track(2, 2, 1, 1)])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        open_tracked(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no tracked labels"):
        open_tracked(tmp_path)
    path = output(tmp_path)
    (tmp_path / "movie_tracks.csv").write_text("id,frame\n")
    with pytest.raises(DataError, match=r"movie_tracks\.csv: is no table of tracks"):
        open_tracked(path)
    (tmp_path / "movie_tracks.csv").unlink()
    with pytest.raises(DataError, match=r"movie\.tif: has no table of tracks") as caught:
        open_tracked(path)
    assert "movie_tracks.csv" in str(caught.value.hint)
    result = output(tmp_path, "ctc", "a")
    (result / "mask001.tif").unlink()
    with pytest.raises(DataError, match="a_RES: masks of frame 1 are missing"):
        open_tracked(result)
    tifffile.imwrite(result / "mask001.tif", np.zeros((16, 59), np.uint16))
    with pytest.raises(DataError, match=r"mask001\.tif: is \(1, 16, 59\)"):
        open_tracked(result)
    tifffile.imwrite(result / "mask001.tif", np.zeros((16, 60), np.float32))
    with pytest.raises(DataError, match=r"mask001\.tif: holds float32 pixels"):
        open_tracked(result)
    (result / "res_track.txt").unlink()
    with pytest.raises(DataError, match=r"res_track\.txt: there is no such file"):
        open_tracked(result)


@pytest.mark.parametrize("name", ["movie.csv", "movie_tracks.csv", "movie.geff"])
def test_outputs_without_masks_are_no_labels(tmp_path: Path, name: str) -> None:
    output(tmp_path)
    if name.endswith(".geff"):
        output(tmp_path, "geff")
    else:
        (tmp_path / name).write_text("id,begin,end,parent\n")
    with pytest.raises(DataError, match="cannot hold tracked labels") as caught:
        open_tracked(tmp_path / name)
    assert "NN_RES" in str(caught.value.hint)

"""Sequences of the Cell Tracking Challenge, as the challenge and others lay them out."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ctc_data import DIVIDING, DIVIDING_TRACKS, draw, image, write_sequence

from cellseg.errors import DataError
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.readers.ctc_folders import is_ctc
from cellseg.splits import SplitOptions, make_splits
from cellseg.tracks import Track

plugins = Plugins([])


def read(path: Path, labelled: bool = True, reader: str = "auto", **options: object):
    return open_dataset(plugins, path, reader, options, labelled)


def test_a_data_set_is_read_frame_by_frame_with_its_tracks(tmp_path: Path) -> None:
    for name in ("01", "02"):
        write_sequence(tmp_path, name)
    assert reader_for(plugins, tmp_path).name == "ctc"
    samples = read(tmp_path)
    assert [sample.name for sample in samples] == [
        f"{n}#{t}" for n in ("01", "02") for t in range(4)
    ]
    assert [sample.frame for sample in samples] == [0, 1, 2, 3] * 2
    assert {sample.source for sample in samples} == {"01", "02"}
    for sample, row in zip(samples, DIVIDING * 2, strict=True):
        assert sample.image.shape == (1, 1, 16, 60)
        assert np.array_equal(sample.labels[:][0], draw(row))
        assert sample.tracks is samples[0].tracks or sample.source == "02"
    assert samples[0].tracks.by_id[3] == Track(3, 2, 3, 2)
    assert samples[0].tracks.divisions == {2: (3, 4)}
    again = pickle.loads(pickle.dumps(samples[1]))
    assert np.array_equal(again.image[:], samples[1].image[:])
    splits = make_splits(samples, SplitOptions(val_fraction=0.5), 0)
    assert {name[:2] for name in splits.train}.isdisjoint({name[:2] for name in splits.val})


@pytest.mark.parametrize("where", ["01", "01_GT"])
def test_one_sequence_by_its_images_or_its_truth(tmp_path: Path, where: str) -> None:
    write_sequence(tmp_path)
    write_sequence(tmp_path, "02")
    samples = read(tmp_path / where)
    assert [sample.name for sample in samples] == [f"01#{t}" for t in range(4)]


def test_images_alone_are_a_movie(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    shutil.rmtree(tmp_path / "01_GT")
    for path in (tmp_path, tmp_path / "01"):
        assert reader_for(plugins, path).name == "ctc"
        samples = read(path, labelled=False)
        assert [(s.source, s.frame, s.labels, s.tracks) for s in samples] == [
            ("01", t, None, None) for t in range(4)
        ]
    with pytest.raises(DataError, match=r"01: has no truth in 01_GT/TRA"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("frame", "first", "table"),
    [
        ("t{:03}", 0, DIVIDING_TRACKS),
        ("t{:04}", 0, DIVIDING_TRACKS),
        ("{:03}", 1, "1 1 3 0\n2 1 2 0\n3 3 4 2\n4 3 4 2\n"),
        ("{:03}", 1, DIVIDING_TRACKS),
        ("img_{:06}", 120, "1 120 122 0\n2 120 121 0\n3 122 123 2\n4 122 123 2\n"),
    ],
)
def test_names_and_first_numbers_of_all_kinds(
    tmp_path: Path, frame: str, first: int, table: str
) -> None:
    write_sequence(tmp_path, frame=frame, first=first, table=table)
    samples = read(tmp_path)
    assert [sample.frame for sample in samples] == [0, 1, 2, 3]
    assert samples[0].tracks.tracks == (
        Track(1, 0, 2), Track(2, 0, 1), Track(3, 2, 3, 2), Track(4, 2, 3, 2)
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("rgb", [False, True])
def test_images_of_8_and_16_bits_and_in_colour(tmp_path: Path, dtype: type, rgb: bool) -> None:
    write_sequence(tmp_path, dtype=dtype, rgb=rgb)
    sample = read(tmp_path)[2]
    grey = image(draw(DIVIDING[2]), 2, dtype)
    expected = np.stack([grey, grey // 2, grey // 3] if rgb else [grey])[:, None]
    assert sample.image.dtype == dtype
    assert np.array_equal(sample.image[:], expected)


def test_volumes_are_volumes_without_being_told(tmp_path: Path) -> None:
    write_sequence(tmp_path, shape=(5, 16, 60))
    sample = read(tmp_path)[1]
    assert sample.image.shape == (1, 5, 16, 60)
    assert np.array_equal(sample.labels[:], draw(DIVIDING[1], (5, 16, 60)))


def test_axes_that_are_stated_go_before_the_habits_of_the_challenge(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    for number in range(4):
        pixels = np.stack([draw(DIVIDING[number])] * 3)
        tifffile.imwrite(tmp_path / "01" / f"t{number:03}.tif", pixels, photometric="minisblack")
    assert read(tmp_path, labelled=False)[0].image.shape == (1, 3, 16, 60)
    assert read(tmp_path, axes="CYX")[0].image.shape == (3, 1, 16, 60)
    with pytest.raises(DataError, match="each file of a sequence is one frame"):
        read(tmp_path, labelled=False, axes="TYX")


def test_ids_above_32767_keep_their_value(tmp_path: Path) -> None:
    write_sequence(tmp_path, rows=({65535: 0}, {40000: 1}), table="65535 0 0 0\n40000 1 1 65535\n")
    first, second = read(tmp_path)
    assert first.labels[:].max() == 65535 and second.labels[:].max() == 40000
    assert first.tracks.by_id[40000].parent == 65535


def test_trees_are_divided_by_their_folders(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_sequence(tmp_path / part / "CTC", "01")
    assert reader_for(plugins, tmp_path).name == "ctc"
    samples = read(tmp_path)
    assert {(s.source, s.split) for s in samples} == {("train/01", "train"), ("val/01", "val")}
    assert {s.source for s in read(tmp_path, labelled=False)} == {"train/01", "val/01", "test/01"}
    for path in (tmp_path / "test", tmp_path / "test/CTC"):
        assert [s.name for s in read(path)] == [f"01#{t}" for t in range(4)]
        assert {s.split for s in read(path)} == {None}


def test_segmentation_truth_of_frames_and_planes(tmp_path: Path) -> None:
    write_sequence(tmp_path, shape=(5, 16, 60))
    truth = tmp_path / "01_GT" / "SEG"
    truth.mkdir()
    volume = draw({7: 2}, (5, 16, 60))
    tifffile.imwrite(truth / "man_seg002.tif", volume)
    tifffile.imwrite(truth / "man_seg_001_003.tif", draw({9: 3}))
    plane, whole = read(tmp_path, ctc_labels="seg")
    assert (plane.name, plane.frame, plane.tracks) == ("01/t001_z003", None, None)
    assert (whole.name, whole.source) == ("01/t002", "01")
    assert np.array_equal(plane.labels[:], draw({9: 3})[None])
    assert np.array_equal(plane.image[:], read(tmp_path)[1].image[:, 3:4])
    assert np.array_equal(whole.labels[:], volume)


def test_silver_truth_has_the_tracks_of_the_gold_one(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    (tmp_path / "01_ST").mkdir()
    masks = tmp_path / "01_GT" / "TRA"
    with pytest.raises(DataError, match="01_ST/SEG") as caught:
        read(tmp_path, ctc_labels="st")
    assert caught.value.hint == "There is other truth: --ctc-labels tra"
    silver = tmp_path / "01_ST" / "SEG"
    silver.mkdir()
    for file in masks.glob("*.tif"):
        shutil.copy(file, silver / file.name.replace("track", "seg"))
    samples = read(tmp_path, ctc_labels="st")
    assert [s.frame for s in samples] == [0, 1, 2, 3]
    assert samples[0].tracks == read(tmp_path)[0].tracks


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    for name in ("01", "02"):
        write_sequence(tmp_path, name)
    (tmp_path / "01" / "t002.tif").unlink()
    (tmp_path / "02_GT" / "TRA" / "man_track001.tif").unlink()
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert "01: images of frame 2 are missing" in str(caught.value)
    assert "masks of frame 1 are missing" in str(caught.value)
    with pytest.raises(DataError, match="images of frame 2"):
        read(tmp_path, labelled=False)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "man_track.txt: there is no such file"),
        ("1 0 2\n", "line 1 is no track: '1 0 2'"),
        ("1 0 2 0\n\n1 1 2 0\n", "the ids 1 are there more than once"),
        ("0 0 2 0\n", "line 1 is no track"),
        ("1 0 2.5 0\n", "line 1 is no track"),
        ("1 2 0 0\n2 0 1 0\n", "Track 1 ends before it begins"),
        ("1 0 2 9\n2 0 1 0\n", "Track 1 has a parent that is no other track"),
        ("1 0 2 0\n2 0 2 0\n3 2 3 2\n4 3 3 2\n", "Track 3 begins before its parent has ended"),
    ],
)
def test_tables_that_cannot_be_right_are_refused(
    tmp_path: Path, table: str | None, message: str
) -> None:
    write_sequence(tmp_path, table=table)
    with pytest.raises(DataError, match=r"man_track\.txt") as caught:
        read(tmp_path)
    assert message in str(caught.value)


def test_tabs_and_blank_lines_in_tables(tmp_path: Path) -> None:
    write_sequence(tmp_path, table=DIVIDING_TRACKS.replace(" ", "\t").replace("\n", "\r\n\r\n"))
    assert len(read(tmp_path)[0].tracks.tracks) == 4


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    tifffile.imwrite(tmp_path / "01_GT/TRA/man_track001.tif", np.zeros((16, 59), np.uint16))
    with pytest.raises(DataError, match=r"man_track001\.tif .*differ in shape"):
        read(tmp_path)


def test_folders_that_only_look_like_it_stay_folders(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(3):
        tifffile.imwrite(plain / f"{number:03}.tif", np.ones((8, 8), np.uint8))
    assert reader_for(plugins, plain).name == "folder"
    samples = read(plain, labelled=False, reader="ctc")
    assert [(s.name, s.frame) for s in samples] == [(f"plain#{t}", t) for t in range(3)]
    tifffile.imwrite(plain / "mean.tif", np.ones((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"mean\.tif: its name has no number"):
        read(plain, labelled=False, reader="ctc")
    with pytest.raises(DataError, match="holds no sequence"):
        read(tmp_path, labelled=False, reader="ctc")


def test_two_files_of_one_frame_are_refused(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    shutil.copy(tmp_path / "01/t001.tif", tmp_path / "01/t0001.tif")
    with pytest.raises(DataError, match=r"t0001\.tif and t001\.tif are both frame 1"):
        read(tmp_path, labelled=False)


def test_masks_by_themselves_are_plain_images(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    shutil.copytree(tmp_path / "01_GT" / "TRA", tmp_path / "01_RES")
    for folder in ("01_RES", "01_GT/TRA"):
        assert reader_for(plugins, tmp_path / folder).name == "folder"


def test_paths_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sequence(tmp_path)
    monkeypatch.chdir(tmp_path / "01")
    for path in (Path(), Path("..")):
        assert [sample.name for sample in read(path)] == [f"01#{t}" for t in range(4)]
    shutil.move(tmp_path / "01", tmp_path / "some")
    monkeypatch.chdir(tmp_path / "some")
    samples = read(Path(), labelled=False, reader="ctc")
    assert [sample.name for sample in samples] == [f"some#{t}" for t in range(4)]
    assert not is_ctc(Path("/"))

"""What is written of movies whose objects are followed, and what can be asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from engine_fakes import digest, read
from tracking_fakes import FRAMES, as_true, lineage_of, run, truth

from cellseg.errors import (
    ConfigError,
    UsageError,
)
from cellseg.events import Note

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import tracking_fakes

    # Their own tests look at them; drawing one takes longer than all of a prediction.
    monkeypatch.setattr("cellseg.report.tracks.write_tracks_page", tracking_fakes.drawn)

    return tracking_fakes


@pytest.fixture
def movie(tmp_path, fakes):
    return fakes.write_movie(tmp_path / "movie", range(FRAMES))


def test_every_format_holds_the_ids_of_tracks(movie, tmp_path):
    import h5py
    import pyarrow.parquet
    import zarr

    formats = ("tiff", "hdf5", "ome-zarr", "geojson", "csv", "parquet", "ctc", "geff")
    out = tmp_path / "out"
    run(movie, out, format=formats, options={"scored": True})
    labels = read(out / "m.tif")
    with h5py.File(out / "m.h5") as file:
        np.testing.assert_array_equal(file["labels"][:], labels)
    stored = zarr.open_array(str(out / "m.ome.zarr" / "labels" / "cells" / "0"), mode="r")
    np.testing.assert_array_equal(stored[:], labels)
    rows = list(csv.DictReader((out / "m.csv").open()))
    table = pyarrow.parquet.read_table(out / "m.parquet").to_pydict()
    shown = [(frame, int(i)) for frame in range(FRAMES) for i in np.unique(labels[frame]) if i]
    assert [(int(row["frame"]), int(row["track"])) for row in rows] == shown
    assert list(zip(table["frame"], table["id"], strict=True)) == shown
    assert table["track"] == table["id"]
    for row, (frame, name) in zip(rows, shown, strict=True):
        y, x = np.nonzero(labels[frame] == name)
        assert int(row["area"]) == len(y)
        assert float(row["centroid_y"]) == pytest.approx(y.mean(), abs=1e-3)
        assert float(row["centroid_x"]) == pytest.approx(x.mean(), abs=1e-3)
        assert float(row["score"]) == 0.75
    features = json.loads((out / "m.geojson").read_text())["features"]
    named = {(f["geometry"]["plane"]["t"], int(f["properties"]["name"])) for f in features}
    assert named == set(shown)
    masks = np.stack([read(out / "m_RES" / f"mask{frame:03d}.tif") for frame in range(FRAMES)])
    as_true(masks, lineage_of(out / "m_tracks.csv"), truth())
    assert (out / "m.geff").is_dir()


def test_some_frames(movie, tmp_path):
    out = tmp_path / "out"
    run(movie, out, batch_time="6-16")
    labels = read(out / "m.tif")
    assert not labels[:5].any()
    assert not labels[16:].any()
    tracks = lineage_of(out / "m_tracks.csv").tracks
    assert {(t.begin, t.end, bool(t.parent)) for t in tracks} == {
        (5, 15, False), (5, 9, False), (10, 15, True)
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no gaps between the frames"):
        run(movie, tmp_path / "gaps", batch_time="1-3, 5-7")


def test_objects_that_are_left_out_leave_their_tracks(movie, tmp_path):
    run(movie, tmp_path / "out", min_area=100)
    tracks = lineage_of(tmp_path / "out" / "m_tracks.csv").tracks
    assert not any(t.parent for t in tracks), "the daughters are too small"
    assert len(tracks) == 4


def test_an_empty_movie(tmp_path):
    (tmp_path / "in").mkdir()
    for frame in range(13):
        np.save(tmp_path / "in" / f"m#{frame:02d}.npy", np.zeros((1, 1, 100, 200), np.uint8))
    formats = ("tiff", "csv", "parquet", "geojson", "hdf5", "ome-zarr", "ctc", "geff")
    summary, _ = run(tmp_path / "in", tmp_path / "out", format=formats)
    assert (summary.objects, summary.tracks) == (0, 0)
    assert not read(tmp_path / "out" / "m.tif").any()
    assert (tmp_path / "out" / "m_tracks.csv").read_text() == "id,begin,end,parent\n"


def test_stills_beside_movies_are_segmented(movie, tmp_path, fakes):
    np.save(movie / "still.npy", np.load(movie / "m#003.npy"))
    summary, events = run(movie, tmp_path / "out", batch_size=2)
    assert summary.images == 2
    names = set(digest(tmp_path / "out"))
    assert names == {"m.tif", "m.csv", "m_tracks.csv", "m_tracks.html", "still.tif", "still.csv"}
    assert read(tmp_path / "out" / "still.tif").max() == 3
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("over the frames of 1 movie(s)" in note for note in notes)


def test_without_tracking_each_frame_is_numbered_by_itself(movie, tmp_path):
    summary, _ = run(movie, tmp_path / "out", track=False)
    assert summary.tracks is None
    assert set(digest(tmp_path / "out")) == {"m.tif", "m.csv"}
    labels = read(tmp_path / "out" / "m.tif")
    assert [frame.max() for frame in labels] == [len(np.unique(f)) - 1 for f in truth()]
    assert "track" not in (tmp_path / "out" / "m.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("values", "match", "hint"),
    [
        ({"backend": "still", "track": True}, "segments each frame by itself", "cellseg track"),
        ({"output_probs": True}, "gives no probabilities", "--no-track"),
        ({"batch_size": 2}, "followed one by one", "--no-track"),
        ({"prompts": "PROMPTS"}, "found and followed", "--no-track"),
        ({"track": False, "format": ("ctc",)}, "segmented frame by frame", "cellseg track"),
    ],
)
def test_settings_that_do_not_go_together(movie, tmp_path, values, match, hint):
    if "prompts" in values:
        values = {"prompts": tmp_path / "p.csv"}
        values["prompts"].write_text("image,frame,object,y,x\nm,0,1,10,10\n")
    with pytest.raises(ConfigError, match=match) as caught:
        run(movie, tmp_path / "out", **values)
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_tracking_stills_is_an_error(tmp_path, movie):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.load(movie / "m#000.npy"))
    with pytest.raises(ConfigError, match="none of the images is a movie"):
        run(tmp_path / "in", tmp_path / "out", track=True)
    with pytest.raises(ConfigError, match="a is no movie"):
        run(tmp_path / "in", tmp_path / "out", format=("tiff", "geff"))


def test_what_is_there_is_not_overwritten(movie, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m_tracks.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"m_tracks.csv exists already"):
        run(movie, tmp_path / "out")
    run(movie, tmp_path / "out", overwrite=True)
    summary, _ = run(movie, tmp_path / "out", resume=True)
    assert (summary.tracks, summary.divisions) == (6, 1)
    (tmp_path / "out" / "m_tracks.html").unlink()
    with pytest.raises(UsageError, match=r"m_tracks.html was written, but is gone"):
        run(movie, tmp_path / "out", resume=True)


@pytest.mark.parametrize("values", [{}, {"overwrite": True}, {"track": False, "overwrite": True}])
def test_labels_never_replace_their_image(tmp_path, fakes, values):
    image = tmp_path / "m.tif"
    frames = np.stack([fakes.frame_of(frame) for frame in range(3)])
    tifffile.imwrite(image, frames.astype(np.uint16), imagej=True, metadata={"axes": "TYX"})
    before = image.read_bytes()
    for images in (image, tmp_path):
        with pytest.raises(UsageError, match=r"m.tif would be replaced"):
            run(images, tmp_path, reader="auto", **values)
    assert image.read_bytes() == before


def test_a_dry_run_says_that_it_tracks(movie, tmp_path):
    summary, _ = run(movie, tmp_path / "out", dry_run=True)
    assert "tracked" in summary.lines()[0]
    assert summary.to_dict()["planned"][0]["tracked"]
    assert not (tmp_path / "out").exists()

"""Outputs of tracks: what the challenge's and GEFF's own validators say, and what comes back."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ctc_data import DIVIDING, Row, tracked_result
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.errors import DataError, PluginError
from cellseg.outputs.formats import output_for
from cellseg.outputs.result import Result
from cellseg.outputs.write import write
from cellseg.strict_tracks import strict_tracks
from cellseg.track_files import read_ctc_table, read_tracks_csv
from cellseg.tracks import Lineage, Track, faults

TRACKS = (Track(1, 0, 2), Track(2, 0, 1), Track(3, 2, 3, 2), Track(4, 2, 3, 2))


def table(result: Result, folder: Path) -> dict[int, tuple[int, int, int]]:
    """The tracks of a result folder, which py-ctcmetrics finds valid."""
    from ctc_metrics.scripts.validate import validate_sequence

    write(result, output_for("ctc", folder, result.name, "cells"))
    with contextlib.redirect_stdout(io.StringIO()):
        assert validate_sequence(str(folder / "movie_RES"), threads=1) == {"Valid": 1}
    lineage = read_ctc_table(folder / "movie_RES" / "res_track.txt")
    masks = [tifffile.imread(f) for f in sorted((folder / "movie_RES").glob("*.tif"))]
    assert len(masks) == len(result.frames)
    assert all(mask.dtype == np.uint16 for mask in masks)
    assert not [f for f in faults(lineage, [np.unique(m[m > 0]) for m in masks]) if f.breaks]
    for mask, frame in zip(masks, result.frames, strict=True):
        labels = np.asarray(frame)
        assert mask.shape == (labels.shape if len(labels) > 1 else labels.shape[1:])
        pairs = np.unique(np.stack([labels.reshape(-1), mask.reshape(-1)]), axis=1)
        assert len(pairs.T) == len(np.unique(labels)) == len(np.unique(mask))
    return {t.id: (t.begin, t.end, t.parent) for t in lineage.tracks}


def written(rows: tuple[Row, ...], tracks: tuple[Track, ...], folder: Path):
    return table(tracked_result(rows, tracks), folder)


def test_tracks_that_are_right_stay_what_they_are(tmp_path: Path) -> None:
    found = written(DIVIDING, TRACKS, tmp_path)
    assert found == {1: (0, 2, 0), 2: (0, 1, 0), 3: (2, 3, 2), 4: (2, 3, 2)}
    text = (tmp_path / "movie_RES" / "res_track.txt").read_bytes()
    assert text == b"1 0 2 0\n2 0 1 0\n3 2 3 2\n4 2 3 2\n"


def test_volumes(tmp_path: Path) -> None:
    found = table(tracked_result(DIVIDING, TRACKS, (4, 16, 60)), tmp_path)
    assert found[4] == (2, 3, 2)


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("group", [1, 3])
def test_tables_are_the_same_in_parts(
    tmp_path: Path, format: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    rows = ({}, *DIVIDING, {})
    result = tracked_result(rows, tuple(Track(t.id, t.begin + 1, t.end + 1) for t in TRACKS))
    paths = []
    for place in ("whole", "parts"):
        output = output_for(format, tmp_path / place, "movie", "cells")
        write(result, output)
        paths.append(output.path)
        monkeypatch.setattr("cellseg.outputs.table._GROUP", group)
    if format == "csv":
        whole, parts = (path.read_text() for path in paths)
        assert whole.count("\n") == 1 + sum(map(len, rows))
    else:
        assert pyarrow.parquet.ParquetFile(paths[1]).num_row_groups > 1
        whole, parts = (pyarrow.parquet.read_table(path) for path in paths)
        assert whole["frame"].to_pylist() == [i for i, row in enumerate(rows) for _ in row]
    assert whole == parts


def test_a_gap_makes_two_tracks(tmp_path: Path) -> None:
    rows = ({1: 0, 2: 3}, {2: 3}, {1: 0, 2: 3}, {}, {1: 0})
    found = written(rows, (Track(1, 0, 4), Track(2, 0, 2)), tmp_path)
    assert found == {1: (0, 0, 0), 2: (0, 2, 0), 3: (2, 2, 1), 4: (4, 4, 3)}


def test_an_only_daughter_is_its_mother(tmp_path: Path) -> None:
    rows = ({5: 0}, {6: 0}, {7: 0, 8: 1})
    tracks = (Track(5, 0, 0), Track(6, 1, 1, 5), Track(7, 2, 2, 6), Track(8, 2, 2, 6))
    assert written(rows, tracks, tmp_path) == {5: (0, 1, 0), 7: (2, 2, 5), 8: (2, 2, 5)}


def test_an_only_daughter_after_a_gap_stays(tmp_path: Path) -> None:
    rows = ({5: 0}, {}, {6: 0})
    assert written(rows, (Track(5, 0, 0), Track(6, 2, 2, 5)), tmp_path)[6] == (2, 2, 5)


def test_three_daughters_stay_three(tmp_path: Path) -> None:
    rows = ({1: 0}, {2: 0, 3: 1, 4: 2})
    tracks = (Track(1, 0, 0), *(Track(i, 1, 1, 1) for i in (2, 3, 4)))
    assert [parent for _, _, parent in written(rows, tracks, tmp_path).values()] == [0, 1, 1, 1]


def test_a_mother_that_goes_on_is_cut_where_it_divides(tmp_path: Path) -> None:
    rows = ({1: 0}, {1: 0}, {1: 0, 2: 1}, {1: 0, 2: 1})
    found = written(rows, (Track(1, 0, 3), Track(2, 2, 3, 1)), tmp_path)
    assert found == {1: (0, 1, 0), 2: (2, 3, 1), 3: (2, 3, 1)}


def test_tracks_that_nothing_shows_are_left_out(tmp_path: Path) -> None:
    rows = ({1: 0}, {3: 0, 4: 1})
    tracks = (Track(1, 0, 0), Track(2, 0, 0, 1), Track(3, 1, 1, 2), Track(4, 1, 1, 2))
    assert written(rows, tracks, tmp_path) == {1: (0, 0, 0), 3: (1, 1, 1), 4: (1, 1, 1)}


def test_ids_beyond_uint16_are_numbered_anew(tmp_path: Path) -> None:
    rows = ({70_000: 0, 3: 1}, {4_000_000_000: 0, 70_001: 1, 3: 3})
    tracks = (
        Track(3, 0, 1), Track(70_000, 0, 0), Track(70_001, 1, 1, 70_000),
        Track(4_000_000_000, 1, 1, 70_000),
    )  # fmt: skip
    found = written(rows, tracks, tmp_path)
    assert found == {1: (0, 1, 0), 2: (0, 0, 0), 3: (1, 1, 2), 4: (1, 1, 2)}
    kept = written(({65_535: 0}, {65_535: 0}), (Track(65_535, 0, 1),), tmp_path)
    assert list(kept) == [65_535]


def test_more_tracks_than_uint16_holds_are_an_error() -> None:
    ids = [np.arange(1, 40_001), np.arange(40_001, 70_001)]
    tracks = [Track(int(i), t, t) for t, present in enumerate(ids) for i in present]
    with pytest.raises(DataError, match="There are 70000 tracks, and only 65535 fit"):
        strict_tracks(ids, Lineage.of(tracks), largest=65_535)
    assert len(strict_tracks(ids, Lineage.of(tracks)).lineage.tracks) == 70_000


def test_tracks_of_large_ids_are_cut_where_they_divide():
    large = 2**31 + 5
    ids = [np.array([large]), *[np.array([7, large])] * 2]
    strict = strict_tracks(ids, Lineage.of([Track(large, 0, 2), Track(7, 1, 2, large)]))
    assert strict.lineage.tracks == (
        Track(7, 1, 2, large), Track(large, 0, 0), Track(large + 1, 1, 2, large)
    )  # fmt: skip
    assert [one.tolist() for one in strict.ids] == [[large], *[[7, large + 1]] * 2]


def test_a_movie_without_objects(tmp_path: Path) -> None:
    result = tracked_result(({}, {}), ())
    for format in ("ctc", "geff", "tiff"):
        write(result, output_for(format, tmp_path, "movie", "cells"))
    assert (tmp_path / "movie_RES" / "res_track.txt").read_bytes() == b""
    assert tifffile.imread(tmp_path / "movie_RES" / "mask001.tif").max() == 0
    assert (tmp_path / "movie_tracks.csv").read_text() == "id,begin,end,parent\n"


def test_long_movies_get_names_of_one_width(tmp_path: Path) -> None:
    short = tracked_result(({1: 0},), (Track(1, 0, 0),), (1, 16, 60))
    long = replace(
        short, frames=short.frames * 1001, objects=short.objects * 1001, ids=short.ids * 1001
    )
    write(long, output_for("ctc", tmp_path, "movie", "cells"))
    names = sorted(f.name for f in (tmp_path / "movie_RES").glob("*.tif"))
    assert (names[0], names[-1]) == ("mask0000.tif", "mask1000.tif")


@pytest.mark.parametrize("format", ["ctc", "geff"])
def test_labels_without_tracks_are_refused(tmp_path: Path, format: str) -> None:
    result = replace(tracked_result(DIVIDING, TRACKS), ids=None, tracks=None)
    with pytest.raises(DataError, match="movie: has no tracks") as caught:
        write(result, output_for(format, tmp_path, "movie", "cells"))
    assert "cellseg track" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "tracks", "message"),
    [
        (({1: 0},), (Track(2, 0, 0),), "Id 1 is in the labels, but no track has it"),
        (
            ({1: 0, 2: 1},),
            (Track(1, 0, 0), Track(2, 0, 0, 1)),
            "Track 2 begins in frame 0, and its",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, rows, tracks, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tracked_result(rows, tracks), output_for("ctc", tmp_path, "movie", "cells"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_labels_that_are_not_as_told_are_refused(tmp_path: Path, change: str) -> None:
    result = tracked_result(DIVIDING, TRACKS)
    frames = [np.array(frame) for frame in result.frames]
    frames[1][frames[1] == 2] = 99 if change == "more" else 0
    with pytest.raises(DataError, match="movie: frame 1 has"):
        write(replace(result, frames=frames), output_for("ctc", tmp_path, "movie", "cells"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["tiff", "ome-zarr", "hdf5", "csv", "parquet"])
def test_every_output_of_tracks_has_their_table_beside_it(tmp_path: Path, format: str) -> None:
    result = tracked_result(DIVIDING, TRACKS)
    write(result, output_for(format, tmp_path, "sub/movie", "cells"))
    assert read_tracks_csv(tmp_path / "sub" / "movie_tracks.csv").tracks == TRACKS
    still = replace(result, tracks=None, ids=None)
    if format in ("tiff", "ome-zarr", "hdf5"):
        write(still, output_for(format, tmp_path, "still", "cells"))
        assert not (tmp_path / "still_tracks.csv").exists()


@st.composite
def movies(draw):
    """Random ids in random frames, parents included that end too late or are nowhere seen."""
    count, frames = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    rows: list[dict[int, int]] = [{} for _ in range(frames)]
    shown = {}
    for number in range(1, count + 1):
        seen = draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
        for row, there in zip(rows, seen, strict=True):
            if there:
                row[number] = number - 1
        shown[number] = [t for t, there in enumerate(seen) if there]
    tracks = []
    for number, at in shown.items():
        before = [n for n, o in shown.items() if at and n != number and (not o or o[0] < at[0])]
        parent = draw(st.sampled_from([0, *before]))
        tracks.append(Track(number, at[0] if at else 0, at[-1] if at else 0, parent))
    return tuple(rows), tuple(tracks)


@settings(max_examples=60, deadline=None)
@given(movies())
def test_whatever_tracks_there_are_the_result_keeps_the_rules(case) -> None:
    rows, tracks = case
    ids = [np.array(sorted(row), np.int64) for row in rows]
    lineage = Lineage.of(tracks)
    strict = strict_tracks(ids, lineage)
    told = faults(strict.lineage, [new.tolist() for new in strict.ids])
    assert [f.code for f in told if f.breaks or f.code == "single-daughter"] == []
    assert [len(new) for new in strict.ids] == [len(old) for old in ids]
    joined = strict_tracks(ids, lineage, gaps=True).lineage
    assert all(len(kids) > 1 for kids in joined.daughters.values())
    # What was one object stays one family.
    family = {}
    for track in strict.lineage.tracks:
        family[track.id] = track
    for old, new in zip(ids, strict.ids, strict=True):
        for a, b in zip(old.tolist(), new.tolist(), strict=True):
            first = next(t for t, one in enumerate(ids) if a in one)
            begin = dict(zip(ids[first].tolist(), strict.ids[first].tolist(), strict=True))[a]
            chain = b
            while chain != begin:
                chain = family[chain].parent
                assert chain


@settings(max_examples=12, deadline=None)
@given(movies())
def test_geff_holds_the_graph(tmp_path_factory, case) -> None:
    from geff.core_io import read_to_memory
    from geff.validate.data import ValidationConfig, validate_data

    rows, tracks = case
    result = tracked_result(rows, tracks)
    folder = tmp_path_factory.mktemp("geff")
    write(result, output_for("geff", folder, "movie", "cells"))
    held = read_to_memory(str(folder / "movie.geff"))
    validate_data(held, ValidationConfig(graph=True, lineage=True, tracklet=True))
    properties = {name: held["node_props"][name]["values"] for name in held["node_props"]}
    nodes = set(zip(properties["t"].tolist(), properties["track"].tolist(), strict=True))
    assert nodes == {(t, number) for t, row in enumerate(rows) for number in row}
    assert len(held["node_ids"]) == result.count
    for source, target in held["edge_ids"].tolist():
        assert properties["t"][source] < properties["t"][target]
    # Each object has at most one before it, and exactly one where its id was there before.
    targets = held["edge_ids"][:, 1].tolist()
    assert len(set(targets)) == len(targets)
    for node, (t, number) in enumerate(
        zip(properties["t"].tolist(), properties["track"].tolist(), strict=True)
    ):
        if any(number in row for row in rows[:t]):
            assert node in targets


def test_geff_of_a_division(tmp_path: Path) -> None:
    from geff.core_io import read_to_memory

    result = tracked_result(DIVIDING, TRACKS, (4, 16, 60))
    write(result, output_for("geff", tmp_path, "movie", "cells"))
    held = read_to_memory(str(tmp_path / "movie.geff"))
    names = [axis.name for axis in held["metadata"].axes]
    assert names == ["t", "z", "y", "x"]
    assert [axis.scale for axis in held["metadata"].axes] == [None, 2.0, 0.5, 0.5]
    props = {name: held["node_props"][name]["values"] for name in held["node_props"]}
    at = {
        (int(t), int(i)): n for n, (t, i) in enumerate(zip(props["t"], props["track"], strict=True))
    }
    edges = {tuple(edge) for edge in held["edge_ids"].tolist()}
    assert edges == {
        (at[a], at[b])
        for a, b in [
            ((0, 1), (1, 1)), ((1, 1), (2, 1)), ((0, 2), (1, 2)), ((1, 2), (2, 3)),
            ((1, 2), (2, 4)), ((2, 3), (3, 3)), ((2, 4), (3, 4)),
        ]
    }  # fmt: skip
    node = at[2, 4]
    assert (props["z"][node], props["y"][node], props["x"][node]) == (1.0, 7.5, 38.0)
    assert props["area"][node] == 3 * 8 * 5
    assert (
        props["lineage_id"][at[0, 2]] == props["lineage_id"][node] != props["lineage_id"][at[0, 1]]
    )


def test_geff_missing_is_told(tmp_path: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "geff", None)
    with pytest.raises(PluginError, match="geff, which is not installed"):
        write(tracked_result(DIVIDING, TRACKS), output_for("geff", tmp_path, "movie", "cells"))

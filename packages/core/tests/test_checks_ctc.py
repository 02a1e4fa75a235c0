"""What is wrong with tracks is found, each thing by its name, and what is right is let alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile
from ctc_data import DIVIDING, DIVIDING_TRACKS, draw, write_sequence

from cellseg.checks.findings import CODES
from cellseg.plugins import Plugins
from cellseg.tracks import Lineage, Track, faults
from cellseg.workflows.check import CheckSettings, DataReport, check

plugins = Plugins([])
ABOUT_TRACKS = {c for c in CODES if c.startswith(("track-", "frames-"))} | {
    "single-daughter",
    "many-daughters",
}


def checked(path: Path, **settings: object) -> DataReport:
    return check(plugins, path, CheckSettings(min_instance_size=2, **settings))


def codes(report: DataReport) -> dict[str, str]:
    return {
        f.code: f.level for f in report.all_findings() if f.code in ABOUT_TRACKS | {"unreadable"}
    }


def test_a_data_set_without_faults(tmp_path: Path) -> None:
    for name in ("01", "02", "03"):
        write_sequence(tmp_path, name, seed=100 * int(name))
    report = checked(tmp_path)
    assert report.ok and report.reader == "ctc"
    assert codes(report) == {}
    told = {f.code for f in report.all_findings()}
    assert not told & {"ids-gaps", "unmatched", "shape"}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("1 0 2 0\n2 0 1 0\n3 2 3 2\n", {"track-unlisted": "error", "single-daughter": "warning"}),
        ("1 0 2 0\n2 0 2 0\n3 2 3 2\n4 2 3 2\n", {"track-order": "error", "track-ends": "warning"}),
        ("1 0 2 0\n2 1 0 0\n3 2 3 2\n4 2 3 2\n", {"track-span": "error", "track-ends": "warning"}),
        ("1 0 2 0\n2 0 1 0\n3 2 3 8\n4 2 3 0\n", {"track-parent": "error"}),
        (DIVIDING_TRACKS + "7 1 2 0\n", {"track-absent": "warning"}),
        ("1 1 2 0\n2 0 1 0\n3 2 3 2\n4 2 3 2\n", {"track-ends": "warning"}),
        ("1 0 2\n", {"unreadable": "error"}),
        (None, {"unreadable": "error"}),
    ],
)
def test_tables_with_faults(tmp_path: Path, table: str | None, expected: dict[str, str]) -> None:
    write_sequence(tmp_path, table=table)
    report = checked(tmp_path)
    assert codes(report) == expected
    assert report.ok == ("error" not in expected.values())
    assert all("01" in f.message for f in report.all_findings() if f.code in expected)


def test_gaps_and_three_daughters(tmp_path: Path) -> None:
    rows = ({1: 0, 9: 8}, {2: 1, 3: 2, 4: 3}, {2: 1, 3: 2, 4: 3, 9: 8})
    table = "1 0 0 0\n2 1 2 1\n3 1 2 1\n4 1 2 1\n9 0 2 0\n"
    write_sequence(tmp_path, rows=rows, table=table)
    report = checked(tmp_path)
    assert codes(report) == {"track-gaps": "warning", "many-daughters": "note"}
    assert "01: Track 9 is missing in frames" in "\n".join(report.lines())


def test_missing_frames_do_not_hide_other_faults(tmp_path: Path) -> None:
    write_sequence(tmp_path, table="1 0 2 0\n2 0 1 0\n3 2 3 2\n")
    write_sequence(tmp_path, "02")
    (tmp_path / "01" / "t001.tif").unlink()
    (tmp_path / "02_GT" / "TRA" / "man_track001.tif").unlink()
    report = checked(tmp_path)
    # That tracks end early or have gaps cannot be said of frames that are not there.
    assert codes(report) == {
        "frames-missing": "error",
        "track-unlisted": "error",
        "single-daughter": "warning",
    }
    missing = [f.message for f in report.all_findings() if f.code == "frames-missing"]
    assert "images of frame 1 are missing" in missing[0]
    assert "masks of frame 1 are missing" in missing[1]
    assert report.figures["images"] == 3 + 3 + 2  # frames, and one verdict for each sequence


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    write_sequence(tmp_path)
    small = draw(DIVIDING[1], (14, 60))
    tifffile.imwrite(tmp_path / "01" / "t001.tif", small)
    tifffile.imwrite(tmp_path / "01_GT" / "TRA" / "man_track001.tif", small)
    assert codes(checked(tmp_path)) == {"frames-differ": "error"}


def test_movies_of_one_name_in_training_and_validation(tmp_path: Path) -> None:
    write_sequence(tmp_path / "a")
    write_sequence(tmp_path / "b", rows=DIVIDING[:3], table="1 0 2 0\n2 0 1 0\n3 2 2 2\n4 2 2 2\n")
    assert codes(checked(tmp_path / "a", val=tmp_path / "b")) == {}


def test_tracks_in_a_collection(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sequence(tmp_path / name, seed=100 * ord(name))
    (tmp_path / "b/01_GT/TRA/man_track.txt").write_text(DIVIDING_TRACKS + "5 0 1 0\n")
    (tmp_path / "datasets.yaml").write_text("datasets: [{path: a}, {path: b}]")
    report = checked(tmp_path)
    assert report.reader == "collection"
    assert codes(report) == {"track-absent": "warning"}
    assert "b/01: Track 5" in "\n".join(report.lines())


def test_faults_name_all_tracks_at_once() -> None:
    tracks = [Track(i, 0, 1) for i in range(1, 9)]
    (fault,) = faults(Lineage.of(tracks), [range(1, 9), []])
    assert (fault.code, fault.ids) == ("track-ends", tuple(range(1, 9)))
    assert "8 tracks" in fault.message and "1, 2, 3, 4, 5 and 3 more" in fault.message
    assert faults(Lineage.of(tracks), [range(1, 9)] * 2) == []


def test_a_track_that_is_its_own_parent_is_no_daughter_of_itself() -> None:
    tracks = [Track(1, 0, 2, 1), Track(2, 3, 5, 1), Track(3, 3, 5, 1)]
    assert [fault.code for fault in faults(Lineage.of(tracks))] == ["track-parent"]


def test_an_only_daughter_after_a_gap_is_how_the_challenge_writes_gaps() -> None:
    gap = Lineage.of([Track(1, 0, 2), Track(2, 4, 5, 1)])
    assert faults(gap) == []
    (fault,) = faults(Lineage.of([Track(1, 0, 2), Track(2, 3, 5, 1)]))
    assert (fault.code, fault.breaks) == ("single-daughter", False)

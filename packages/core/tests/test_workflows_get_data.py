"""``cellseg data get`` as a function, with a catalogue of made-up files."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from cellseg import catalogue
from cellseg.catalogue import CATALOGUE, DataFile, DataSet
from cellseg.download import Remote, Settings
from cellseg.errors import ConfigError, DataError, UsageError
from cellseg.events import Event, Progress
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec
from cellseg.workflows.get_data import get_data

BODY = bytes(2_500_000)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the data set ``toy``, which is in the catalogue."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "a.hdf").write_bytes(BODY)
    with zipfile.ZipFile(folder / "b.zip", "w") as out:
        out.writestr("top/x.txt", b"x")
        out.writestr("top/y.txt", b"yy")
    known = "sha256:" + hashlib.sha256(BODY).hexdigest()
    size = (folder / "b.zip").stat().st_size
    a = Remote(url="https://data.invalid/a", name="a.hdf", size=len(BODY), checksum=known)
    b = Remote(url="https://data.invalid/b", name="b.zip", size=size)
    toy = DataSet(
        name="toy",
        summary="nothing",
        reader="cremi",
        files=(DataFile(remote=a, part="A"), DataFile(remote=b, part="B", unpack=True)),
        holds="things",
        licence="CC0",
        citation="Nobody 2026",
        home="https://data.invalid",
        train="--preset cremi3d",
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "toy", toy)
    return folder


def test_a_folder_holds_one_data_set(mirror: Path, tmp_path: Path) -> None:
    """Otherwise its record would state the licence of one for the files of both."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "source.json").write_text('{"name": "other", "licence": "CC0", "files": {}}')
    with pytest.raises(DataError, match="holds the data set other"):
        get_data("toy", out, settings=Settings(mirror=str(mirror)), emit=lambda e: None)
    assert [p.name for p in out.iterdir()] == ["source.json"]


def test_a_file_in_the_place_of_the_folder_is_told(mirror: Path, tmp_path: Path) -> None:
    for out in (mirror / "a.hdf", mirror / "a.hdf" / "in"):
        with pytest.raises(DataError, match=r"a\.hdf: is a file, not a folder"):
            get_data("toy", out, settings=Settings(mirror=str(mirror)), emit=lambda e: None)


def test_a_damaged_archive_without_a_checksum_is_replaced_by_force(
    mirror: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.zip").write_bytes(bytes((mirror / "b.zip").stat().st_size))
    settings = Settings(mirror=str(mirror))
    with pytest.raises(DataError, match=r"b\.zip: is no ZIP archive") as error:
        get_data("toy", out, parts=("B",), settings=settings, emit=lambda e: None)
    assert error.value.hint and "--force" in error.value.hint
    settings = Settings(mirror=str(mirror), force=True)
    get_data("toy", out, parts=("B",), settings=settings, emit=lambda e: None)
    assert (out / "top/x.txt").read_bytes() == b"x"


def test_files_come_and_archives_are_unpacked(mirror: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    out = tmp_path / "out"
    got = get_data("toy", out, settings=Settings(mirror=str(mirror)), emit=events.append)
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == ["a.hdf", "source.json", "top/x.txt", "top/y.txt"], "no archive, no leftovers"
    assert got.fresh == ("a.hdf", "b.zip")
    steps = [(e.step, e.total) for e in events if isinstance(e, Progress)]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)], "megabytes over both files"
    record = json.loads((out / "source.json").read_text())
    assert record["licence"] == "CC0" and record["citation"] == "Nobody 2026"
    assert record["files"]["a.hdf"]["sha256"] == hashlib.sha256(BODY).hexdigest()
    text = "\n".join(got.lines())
    assert "no checksum of b.zip is known; its SHA-256 is" in text and "a.hdf is known" not in text
    assert f"cellseg train {out} --backend vista3d --preset cremi3d" in text


def test_what_is_there_is_not_fetched_again(mirror: Path, tmp_path: Path) -> None:
    settings = Settings(mirror=str(mirror))

    def again(**changes: object):
        return get_data("toy", tmp_path / "out", settings=settings, emit=lambda e: None, **changes)

    assert again(parts=("B",)).fresh == ("b.zip",)
    assert not (tmp_path / "out/a.hdf").exists()
    (mirror / "b.zip").rename(mirror / "hidden")
    assert again().fresh == ("a.hdf",)
    got = again()
    assert got.fresh == () and "all were there" in next(iter(got.lines()))
    (tmp_path / "out/top/y.txt").write_bytes(b"cut")
    with pytest.raises(DataError, match="no such file in the mirror"):
        again()
    (mirror / "hidden").rename(mirror / "b.zip")
    with pytest.raises(DataError, match="is there already"):
        again()
    settings = Settings(mirror=str(mirror), force=True)
    again()
    assert (tmp_path / "out/top/y.txt").read_bytes() == b"yy"


def test_a_damaged_copy_leaves_no_data(mirror: Path, tmp_path: Path) -> None:
    (mirror / "a.hdf").write_bytes(BODY[:-1] + b"x")
    with pytest.raises(DataError, match="SHA256"):
        get_data(
            "toy", tmp_path / "out", settings=Settings(mirror=str(mirror)), emit=lambda e: None
        )
    assert not (tmp_path / "out").exists()


def test_names_that_are_not_there_are_answered_with_the_nearest(mirror: Path) -> None:
    with pytest.raises(UsageError) as error:
        get_data("snemi", emit=lambda e: None)
    assert "snemi3d" in error.value.hint
    with pytest.raises(UsageError) as error:
        get_data("mitoem2", parts=("jurkatt",), emit=lambda e: None)
    assert "jurkat" in error.value.hint
    with pytest.raises(ConfigError, match="--insecure"):
        get_data("toy", settings=Settings(insecure=True), emit=lambda e: None)


def test_a_damaged_record_is_told(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text("[]")
    with pytest.raises(DataError, match="is damaged"):
        get_data("toy", tmp_path, settings=Settings(mirror=str(mirror)), emit=lambda e: None)


@pytest.mark.parametrize("name", ["snemi3d", "cremi", "mitoem2"])
def test_the_catalogue_is_sound(name: str) -> None:
    data = CATALOGUE[name]
    assert data.reader in Plugins([]).all(DatasetSpec)
    assert data.licence and data.citation and data.home.startswith("https://")
    files = [file.remote for file in data.files]
    assert len({file.name for file in files}) == len(files)
    for file in files:
        assert file.url.startswith("https://") and file.url.endswith(file.name)
        assert re.fullmatch(r"|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.checksum)

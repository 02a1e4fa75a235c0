"""ZIP archives from elsewhere: unpacked whole or not at all, and never outside the folder."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cellseg.download.unpacking import unpack
from cellseg.errors import DataError, StorageError, WeightsError

NOISE = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()


def archive(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            out.writestr(info, data)
    return path


def test_an_archive_is_unpacked_with_its_folders_or_flat(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"top/": b"", "top/x.txt": b"1", "top/in/y.txt": b"22"})
    assert unpack(path, tmp_path / "tree") == ["top/in/y.txt", "top/x.txt"]
    assert (tmp_path / "tree/top/in/y.txt").read_bytes() == b"22"
    assert unpack(path, tmp_path / "flat", flat=True) == ["x.txt", "y.txt"]
    assert sorted(os.listdir(tmp_path / "flat")) == ["x.txt", "y.txt"]


def test_unpacking_replaces_nothing_unless_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"x": b"new", "y": b"new"})
    (tmp_path / "y").write_bytes(b"old")
    with pytest.raises(DataError, match="is there already"):
        unpack(path, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "y"]
    unpack(path, tmp_path, overwrite=True)
    assert (tmp_path / "y").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "c:/x", "a\\..\\x", "link"])
def test_an_archive_that_reaches_outside_is_refused_whole(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", {"good": b"1", name: b"/etc"}, link="link")
    with pytest.raises(DataError, match="would land elsewhere"):
        unpack(path, tmp_path / "in" / "here")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.zip"]


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"x": NOISE})
    whole = bytearray(path.read_bytes())
    whole[3000] ^= 255
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match="no ZIP archive that can be read"):
        unpack(path, tmp_path / "out", error=WeightsError)
    assert list((tmp_path / "out").iterdir()) == []
    path.write_bytes(b"no archive")
    with pytest.raises(DataError):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_told_alike_for_all_ways_of_packing(tmp_path: Path, how: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", how) as out:
        out.writestr("x", NOISE)
    whole = path.read_bytes()
    for place in (35, 45, 60, 3000):
        path.write_bytes(
            whole[:place]
            + bytes(255 ^ each for each in whole[place : place + 9])
            + whole[place + 9 :]
        )
        with pytest.raises(DataError, match="no ZIP archive that can be read"):
            unpack(path, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"x": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flags of the member, before it and in the directory at the end
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"no ZIP archive that can be read: .*encrypted"):
        unpack(path, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("x", b"1")
        out.writestr("x", b"2")
    with pytest.raises(DataError, match="one name"):
        unpack(path, tmp_path / "out")


def test_flat_names_that_meet_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a/x": b"1", "b/x": b"2"})
    with pytest.raises(DataError, match="one name"):
        unpack(path, tmp_path / "out", flat=True)


def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = archive(tmp_path / "a.zip", {"x": bytes(10_000)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 9_999}))
    with pytest.raises(StorageError, match="to unpack"):
        unpack(path, tmp_path / "out")


def test_bombs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    import bz2

    path = tmp_path / "ratio.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as out:
        out.writestr("x", bytes(20 << 20))
    assert len(bz2.compress(bytes(20 << 20))) < 1000
    with pytest.raises(DataError, match="would unpack to"):
        unpack(path, tmp_path / "out")
    path = archive(tmp_path / "overlap.zip", {"a": NOISE, "b": NOISE})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 42 : entry + 46] = (2).to_bytes(4, "little")  # the second starts in the first
    path.write_bytes(content)
    with pytest.raises(DataError, match="shares bytes"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_only_plain_files_are_unpacked(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("special")
    info.external_attr = (kind | 0o666) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(info, b"/dev/sda")
    with pytest.raises(DataError, match="would land elsewhere"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_file_and_a_folder_of_one_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a": b"1", "a/b": b"2"})
    with pytest.raises(DataError, match="of one name"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_in_an_archive_stays_packed(tmp_path: Path) -> None:
    inner = archive(tmp_path / "inner.zip", {"x": bytes(1 << 20)}).read_bytes()
    path = archive(tmp_path / "a.zip", {"inner.zip": inner})
    assert unpack(path, tmp_path / "out") == ["inner.zip"]

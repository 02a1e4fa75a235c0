from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg.errors import ConfigError, DataError, PluginError, UsageError
from cellseg.locations import (
    Location,
    collapsed,
    existing,
    is_remote,
    location,
    refuse_remote,
    shown,
)
from cellseg.options import Options, parse


class Places(Options):
    data: Location = Path()
    """Anywhere."""
    more: Location | None = None
    """Anywhere or nowhere."""
    model: Path | None = None
    """On this computer."""


def test_texts_without_an_address_are_paths() -> None:
    assert location("a/b.zarr") == Path("a/b.zarr")
    assert location(Path("a")) == Path("a")
    assert location("file:///a/b%20c") == Path("/a/b c")
    assert not is_remote(location("a/b"))


@pytest.mark.parametrize(
    "text", ["s3://bucket/a/plate.zarr", "memory://a/b", "http://host:80/a b", "https://h/x.zarr"]
)
def test_an_address_stays_as_it_is(text: str) -> None:
    path = location(text)
    assert is_remote(path)
    assert str(path) == str(location(text + "/")) == text
    assert str(path / "A/1") == text + "/A/1"
    assert (path / "A" / "1").name == "1"
    assert (path / "A").parent == path
    assert path.resolve() == path.absolute() == path.expanduser() == path
    again = pickle.loads(pickle.dumps(path / "A"))
    assert again == path / "A"
    assert type(again) is type(path)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("s4://bucket/a", "s4:// is no kind of address", "s3://"),
        ("ftp://host/a", "ftp:// is no kind of address", "http://"),
        ("s3:///a", "names no bucket", "None"),
        ("https://", "names no host", "None"),
        ("https://me:sesame@host/a", "password", "environment"),
        ("https://host/a?sig=sesame", "query", "None"),
        ("file://results", "names no file of this computer", "three slashes"),
        ("file://data/a.zarr", "names no file of this computer", "three slashes"),
        ("file:///data/a#1.zarr", "names no file of this computer", "file://"),
    ],
)
def test_addresses_that_cannot_be_used(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        location(text)
    assert "sesame" not in str(caught.value) + str(caught.value.hint)
    assert hint in str(caught.value.hint)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellseg import locations

    monkeypatch.setattr(locations, "find_spec", lambda name: None if name == "gcsfs" else object())
    with pytest.raises(PluginError, match="gcsfs") as caught:
        location("gs://bucket/a")
    assert caught.value.hint == 'Install it: uv pip install "cellseg-core[remote]" gcsfs'
    monkeypatch.setattr(locations, "find_spec", lambda name: None if name == "upath" else object())
    with pytest.raises(PluginError, match="universal-pathlib") as caught:
        location("s3://bucket/a")
    assert caught.value.hint == 'Install it: uv pip install "cellseg-core[remote]"'


def test_options_take_addresses_where_they_may() -> None:
    found = parse(Places, {"data": "s3://bucket/a", "more": Path("b")})
    assert is_remote(found.data)
    assert found.more == Path("b")
    assert json.loads(found.model_dump_json()) == {
        "data": "s3://bucket/a",
        "more": "b",
        "model": None,
    }
    assert parse(Places, found.model_dump(mode="json")) == found
    assert parse(Places, found.model_dump()) == found
    with pytest.raises(UsageError, match="--model names must be on this computer"):
        parse(Places, {"model": "s3://bucket/a"})
    with pytest.raises(ConfigError, match=r"--more: s4://b: s4:// is no kind.*Did you mean"):
        parse(Places, {"more": "s4://b"})
    with pytest.raises(ConfigError, match="--more: https://host/a: holds") as caught:
        parse(Places, {"more": "https://me:sesame@host/a"})
    assert "sesame" not in str(caught.value)
    with pytest.raises(ConfigError, match="--data: Input is not a path"):
        parse(Places, {"data": 3})


def test_where_only_this_computer_will_do() -> None:
    refuse_remote(None, "it")
    refuse_remote(Path("a"), "it")
    with pytest.raises(UsageError, match="s3://bucket/a: a run must be on this computer"):
        refuse_remote(location("s3://bucket/a"), "a run")
    assert shown("https://me:sesame@host/a?b=sesame") == "https://host/a"


def test_a_path_that_lost_a_slash(tmp_path: Path) -> None:
    from cellseg.plugins import Plugins
    from cellseg.readers import reader_for

    assert collapsed(Path("s3://bucket/a"))
    assert not collapsed(Path("C:/bucket/a"))
    with pytest.raises(DataError, match="no such file") as caught:
        reader_for(Plugins(), Path("s3://bucket/a"))
    assert "locations.location" in str(caught.value.hint)


def test_files_in_a_store() -> None:
    folder = location("memory://test-locations")
    file = folder / "a" / "b [1].txt"
    assert not file.exists()
    assert not folder.is_dir()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.write_text("é")
    assert file.read_text() == "é"
    assert file.is_file() and (folder / "a").is_dir() and not (folder / "a").is_file()
    assert [one.name for one in folder.iterdir()] == ["a"]
    assert existing([file, folder / "b", Path(__file__)]) == [file, Path(__file__)]


def test_removing_takes_nothing_else_along() -> None:
    from cellseg.remote import remove_below

    for name in ("a/1", "a/b*/2", "a2/3", "a"):
        (location("memory://test-removing") / name / "x").write_bytes(b"1")
    remove_below(location("memory://test-removing/a"), first=("x",))
    left = location("memory://test-removing")
    assert [one.name for one in left.iterdir()] == ["a2"]


def test_paths_of_this_computer_import_nothing_for_stores() -> None:
    code = (
        "import sys\n"
        "from cellseg.plugins import Plugins\n"
        "from cellseg.readers import reader_for\n"
        "from cellseg.locations import location\n"
        f"reader_for(Plugins(()), location({__file__!r}).parent, 'tiff')\n"
        "print(sorted({'fsspec', 'upath', 's3fs', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

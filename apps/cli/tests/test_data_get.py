"""``cellseg data``: the list, and a download from a server on loopback."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellseg import catalogue
from cellseg.catalogue import DataFile, DataSet
from cellseg.download import Remote


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server for the files in ``served``."""
    folder = tmp_path / "served"
    folder.mkdir()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def toy(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    body = b"0123456789"
    (tmp_path / "served/a.hdf").write_bytes(body)
    remote = Remote(
        url=f"{url}/a.hdf",
        name="a.hdf",
        checksum="sha256:" + hashlib.sha256(body).hexdigest(),
    )
    data = DataSet(
        name="toy",
        summary="nothing",
        reader="cremi",
        files=(DataFile(remote=remote),),
        holds="a.hdf",
        licence="CC0",
        citation="Nobody 2026",
        home="https://data.invalid",
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "toy", data)
    return tmp_path / "out"


def test_the_list_shows_licences_and_citations(cellseg) -> None:
    done = cellseg("data", "list")
    assert done.code == 0
    for words in ("snemi3d", "cremi", "mitoem2", "CC-BY-4.0", "doi:10.1016/j.cell.2015.06.054"):
        assert words in done.out
    listed = cellseg("data", "list", "--json").json
    assert [one["name"] for one in listed][:3] == ["snemi3d", "cremi", "mitoem2"]
    assert listed[1]["files"][0]["checksum"].startswith("sha256:")
    assert listed[2]["files"][0]["checksum"] == "", "nobody states one"


def test_get_downloads_and_says_how_to_go_on(cellseg, toy: Path) -> None:
    done = cellseg("data", "get", "toy", "-o", toy)
    assert done.code == 0, done.err
    assert (toy / "a.hdf").read_bytes() == b"0123456789"
    assert f"cellseg train {toy} --backend vista3d -o RUN" in done.out
    assert "Nobody 2026" in done.out and "Downloading" in done.err
    again = cellseg("data", "get", "toy", "-o", toy, "--json").json
    assert again["downloaded"] == [] and again["files"]["a.hdf"]["compared"] is True


def test_a_wrong_file_has_the_exit_code_of_data(cellseg, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "served/a.hdf").write_bytes(b"012345678X")
    done = cellseg("data", "get", "toy", "-o", toy)
    assert done.code == 4 and "SHA256" in done.err
    assert list(toy.rglob("*")) == [], "nothing stays"
    done = cellseg("data", "get", "toy", "-o", toy, "--json")
    assert done.json["error"]["exit_code"] == 4


def test_a_missing_file_and_an_unknown_name(cellseg, toy: Path, tmp_path: Path, url: str) -> None:
    (tmp_path / "served/a.hdf").unlink()
    done = cellseg("data", "get", "toy", "-o", toy)
    assert done.code == 4 and "404" in done.err and str(toy / "a.hdf") in done.err
    done = cellseg("data", "get", "cremmi")
    assert done.code == 2 and "Did you mean 'cremi'?" in done.err
    (tmp_path / "served/a.hdf").write_bytes(b"0123456789")
    assert cellseg("data", "get", "toy", "-o", toy, "--mirror", url, "--quiet").err == ""


def test_without_a_subcommand_the_help_is_shown(cellseg) -> None:
    done = cellseg("data")
    assert "get" in done.out + done.err and "list" in done.out + done.err

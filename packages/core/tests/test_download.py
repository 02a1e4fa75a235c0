"""Downloads, against a server on loopback that misbehaves as told."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash
from rough_server import BODY, Server, started

from cellseg.download import Remote, Settings, fetch
from cellseg.download.remote import shown
from cellseg.errors import ConfigError, DataError, StorageError, WeightsError
from cellseg.events import Event, Note, Progress

SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
XXH128 = "xxh128:" + xxhash.xxh128(BODY).hexdigest()
QUICK = Settings(pause=0.01, timeout=5)


@pytest.fixture
def server() -> Iterator[Server]:
    with started() as made:
        yield made


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., list[Event]]:
    """Download the server's file to ``tmp_path / "a.bin"``; the events."""

    def run(settings: Settings = QUICK, **changes: object) -> list[Event]:
        events: list[Event] = []
        values = {"url": f"{server.url}/a", "name": "a.bin", "checksum": SHA256, **changes}
        got = fetch(Remote(**values), tmp_path, settings, events.append)
        assert got.path.read_bytes() == server.body
        assert got.sha256 == hashlib.sha256(server.body).hexdigest()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin"], "nothing is left behind"
        return events

    return run


def test_a_file_comes_whole_and_progress_counts_megabytes(server, get) -> None:
    events = get(size=len(BODY))
    assert [e.step for e in events if isinstance(e, Progress)] == [1, 2, 3, 4]
    assert {e.total for e in events if isinstance(e, Progress)} == {4}
    assert "range" not in server.seen[0]


@pytest.mark.parametrize("checksum", [SHA256, MD5, XXH128], ids=["sha256", "md5", "xxh128"])
def test_what_is_there_is_checked_and_not_fetched_again(server, get, tmp_path, checksum) -> None:
    get(checksum=checksum)
    get(checksum=checksum)
    assert len(server.seen) == 1
    (tmp_path / "a.bin").write_bytes(b"something else")
    with pytest.raises(DataError, match="is there, but is not the file expected") as error:
        get(checksum=checksum)
    assert "--force" in error.value.hint
    assert (tmp_path / "a.bin").read_bytes() == b"something else"
    get(Settings(force=True), checksum=checksum)


def test_a_cut_download_goes_on_where_it_was(server, get) -> None:
    server.plan = ["cut", "cut", "cut"]
    events = get()
    assert [seen.get("range") for seen in server.seen[:2]] == [None, f"bytes={len(BODY) // 2}-"]
    assert server.seen[1]["if-range"] == '"one"'
    steps = [e.step for e in events if isinstance(e, Progress)]
    assert steps[-1] == 4
    assert sum(isinstance(e, Note) for e in events) == 3


def test_a_later_call_goes_on_too(server, get, tmp_path) -> None:
    server.plan = ["cut"]
    with pytest.raises(DataError, match=r"1\.\d MB are kept") as error:
        get(Settings(retries=0))
    assert str(tmp_path / "a.bin") in error.value.hint, "where to put it by hand"
    assert not (tmp_path / "a.bin").exists()
    get()
    assert server.seen[-1]["range"] == f"bytes={len(BODY) // 2}-"


def test_a_server_without_ranges_sends_it_all_again(server, get) -> None:
    server.plan, server.ranges = ["cut"], False
    get()
    assert "range" in server.seen[-1]


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server, get, tmp_path) -> None:
    server.plan = ["cut"]
    with pytest.raises(DataError):
        get(Settings(retries=0))
    server.etag, server.body = '"two"', BODY[::-1]
    get(checksum="sha256:" + hashlib.sha256(server.body).hexdigest())


def test_without_a_validator_only_a_checksum_allows_to_go_on(server, get) -> None:
    server.etag, server.plan = "", ["cut"]
    get()
    assert "range" in server.seen[-1] and "if-range" not in server.seen[-1]


def test_without_validator_and_checksum_it_starts_anew(server, get) -> None:
    server.etag, server.plan = "", ["cut"]
    get(checksum="")
    assert "range" not in server.seen[-1]


def test_a_weak_tag_is_no_validator(server, get) -> None:
    server.etag, server.plan = 'W/"one"', ["cut"]
    get()
    assert "if-range" not in server.seen[-1]


def test_another_part_than_asked_for_is_not_used(server, get) -> None:
    server.plan = ["cut", "shift"]
    get()
    assert "range" not in server.seen[-1]


def test_a_part_that_is_whole_already_is_accepted(server, get, tmp_path) -> None:
    server.plan = ["cut"]
    with pytest.raises(DataError):
        get(Settings(retries=0))
    (tmp_path / ".part-a.bin").write_bytes(BODY)
    get()
    assert server.seen[-1]["range"] == f"bytes={len(BODY)}-"


def test_a_part_that_is_too_long_is_thrown_away(server, get, tmp_path) -> None:
    server.plan = ["cut"]
    with pytest.raises(DataError):
        get(Settings(retries=0))
    (tmp_path / ".part-a.bin").write_bytes(BODY + b"more")
    get()


@pytest.mark.parametrize("error", [DataError, WeightsError])
def test_a_wrong_checksum_is_refused_and_nothing_stays(server, get, tmp_path, error) -> None:
    server.plan = ["corrupt"]
    with pytest.raises(error, match=r"its SHA256 is [0-9a-f]{64} instead of") as caught:
        get(Settings(error=error))
    assert server.url in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_refused_before_anything_comes(server, get, tmp_path) -> None:
    with pytest.raises(DataError, match=f"has {len(BODY)} bytes there, and 7 are expected"):
        get(size=7)
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again(server, get) -> None:
    server.plan = ["503", "429", "500"]
    get()
    assert len(server.seen) == 4


@pytest.mark.parametrize(("code", "words"), [("404", "404"), ("403", "token"), ("401", "token")])
def test_a_lasting_refusal_is_not_asked_again(server, get, tmp_path, code, words) -> None:
    server.plan = [code] * 9
    with pytest.raises(DataError, match=words) as error:
        get()
    assert f"{server.url}/a" in str(error.value)
    assert len(server.seen) == 1


def test_a_server_that_stays_busy_is_given_up(server, get) -> None:
    server.plan = ["503"] * 9
    with pytest.raises(DataError, match="503"):
        get(Settings(pause=0.01, retries=2))
    assert len(server.seen) == 3


def test_nobody_there_names_the_address_and_what_to_do(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
    remote = Remote(url=url, name="a.bin")
    with pytest.raises(DataError, match="cannot be downloaded") as error:
        fetch(remote, tmp_path / "new", Settings(pause=0.01, retries=1), lambda event: None)
    assert url in str(error.value)
    assert str(tmp_path / "new/a.bin") in error.value.hint and "--mirror" in error.value.hint


def test_an_unknown_host_says_that_the_computer_may_be_offline(tmp_path, monkeypatch) -> None:
    def nowhere(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    remote = Remote(url="http://data.invalid/a", name="a")
    with pytest.raises(DataError, match="online"):
        fetch(remote, tmp_path, Settings(retries=0), lambda event: None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_bad_certificate_is_accepted_only_if_asked(server, tmp_path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -subj /CN=me"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    remote = Remote(url=f"{server.url.replace('http', 'https')}/a", name="a", checksum=SHA256)
    events: list[Event] = []
    with pytest.raises(DataError, match=r"certificate is not valid .*--insecure"):
        fetch(remote, tmp_path, QUICK, events.append)
    assert events == [], "another try would not help"
    insecure = Settings(insecure=True, pause=0.01)
    assert fetch(remote, tmp_path, insecure, events.append).compared
    server.plan = ["corrupt"]
    with pytest.raises(DataError, match="SHA256"):
        fetch(remote, tmp_path / "b", insecure, events.append)


def test_a_secret_goes_to_its_own_host_alone(server, tmp_path) -> None:
    with started() as other:
        server.moved["/moved"] = f"{other.elsewhere}/a"
        settings = Settings(headers={"Authorization": "Bearer hush"}, pause=0.01)
        remote = Remote(url=f"{server.url}/moved", name="a.bin", checksum=SHA256)
        fetch(remote, tmp_path, settings, lambda event: None)
        assert server.seen[0]["authorization"] == "Bearer hush"
        assert "authorization" not in other.seen[0]
        mirrored = Settings(mirror=other.elsewhere, headers=settings.headers)
        fetch(remote, tmp_path / "b", mirrored, lambda event: None)
        assert "authorization" not in other.seen[1]
    assert "hush" not in repr(settings)


def test_a_secret_is_in_no_message(server, tmp_path) -> None:
    server.plan = ["403"]
    settings = Settings(headers={"Authorization": "Bearer hush"})
    remote = Remote(url=f"{server.url}/a?key=hush", name="a.bin")
    with pytest.raises(DataError) as error:
        fetch(remote, tmp_path, settings, lambda event: None)
    assert "hush" not in f"{error.value} {error.value.hint}"
    assert shown("https://me:hush@host/a?b=hush#c") == "https://host/a"


def test_a_redirect_to_something_else_than_http_is_refused(server, tmp_path) -> None:
    server.moved["/moved"] = "ftp://127.0.0.1/a"
    with pytest.raises(DataError, match="not secure"):
        fetch(Remote(url=f"{server.url}/moved", name="a"), tmp_path, QUICK, lambda event: None)


def test_a_mirror_serves_files_of_the_same_names(server, tmp_path) -> None:
    remote = Remote(url="https://data.invalid/x?y", name="a b.bin", checksum=SHA256)
    folder = tmp_path / "mirror"
    folder.mkdir()
    for mirror in (server.url + "/", str(folder)):
        (folder / "a b.bin").write_bytes(BODY)
        target = tmp_path / str(len(mirror))
        got = fetch(remote, target, Settings(mirror=mirror), lambda event: None)
        assert got.fresh and got.compared and got.path == target / "a b.bin"
    (folder / "a b.bin").unlink()
    with pytest.raises(DataError, match="no such file in the mirror"):
        fetch(remote, tmp_path / "c", Settings(mirror=str(folder)), lambda event: None)


def test_a_full_disk_is_told_before_anything_comes(server, get, monkeypatch, tmp_path) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"0\.00 GB are free"):
        get()
    assert not (tmp_path / "a.bin").exists()


def test_what_makes_no_sense_is_refused(tmp_path) -> None:
    def refused(words: str, settings: Settings = QUICK, **values: str) -> None:
        given = {"url": "https://data.invalid/a", "name": "a", **values}
        with pytest.raises(ConfigError, match=words):
            fetch(Remote(**given), tmp_path, settings, lambda event: None)

    refused("is no file name", name="../a")
    refused("is no checksum", checksum="sha256:123")
    refused("is no checksum", checksum="crc:12345678")
    refused("no http", url="file:///etc/passwd")
    refused("--insecure needs a SHA-256", Settings(insecure=True), checksum=MD5)
